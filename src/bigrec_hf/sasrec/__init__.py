"""SASRec, the sequential baseline: a small causal transformer over catalog rows, trained on the same examples as the LM."""
