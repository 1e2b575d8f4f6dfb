"""Fusion: one exact ranking of the catalog from several texts of an example, or from two indexes."""
