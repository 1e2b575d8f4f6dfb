"""A page in the browser to try recommenders on."""
