"""`bigrec-hf init`: a recipe for a table of ratings and the machine it is run on."""
