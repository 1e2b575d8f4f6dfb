"""SASRec, the sequential baseline: a small causal transformer over catalog rows."""
