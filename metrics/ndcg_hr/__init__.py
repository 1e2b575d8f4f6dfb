"""NDCG@K and HR@K over a full catalog: an `evaluate` metric and the exact ranking behind it."""
