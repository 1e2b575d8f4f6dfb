"""Rankings without a language model or training."""
