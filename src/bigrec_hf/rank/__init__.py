"""More rankings of the same examples: baselines, and the language model combined with other evidence."""
