"""NDCG@K and HR@K of rankings, and which differences are real."""
