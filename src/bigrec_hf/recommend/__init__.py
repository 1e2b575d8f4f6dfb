"""Recommendations for files of users, by the language model of a run or by any other of its rankers."""
