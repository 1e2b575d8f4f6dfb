"""Distances weighted by popularity or a collaborative model's scores."""
