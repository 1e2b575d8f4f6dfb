"""Grounding: from a generated text to a ranking of the catalog."""
