"""More rankings of the same examples: baselines, and the language model with other evidence."""
