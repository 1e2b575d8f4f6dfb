"""Helpers unrelated to recommendation: files, locks, shards, Hub names, errors."""
