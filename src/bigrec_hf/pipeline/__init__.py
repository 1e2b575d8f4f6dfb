"""All stages from one recipe, in one folder."""
