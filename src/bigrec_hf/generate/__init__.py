"""Step 1: the language model writes titles, in batches, with one process or several."""
