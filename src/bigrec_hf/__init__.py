"""BIGRec on the Hugging Face stack: an LM generates the next item's title, the title is grounded to the catalog."""

__version__ = "0.1.0"
