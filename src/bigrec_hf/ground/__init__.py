"""From a text to a ranking of the catalog."""
