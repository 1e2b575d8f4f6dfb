"""Everything exchanged with the Hugging Face Hub: publishing, downloading, loading a recommender."""
