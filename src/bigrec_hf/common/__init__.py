"""Helpers that know nothing of recommendation: files, locks, shards, Hub names, errors."""
