"""Language models: loading, identifying, and encoding text with them."""
