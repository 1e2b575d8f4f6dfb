"""Metrics for `evaluate`, each a folder that is also a Hub Space."""
