"""The `grpo` stage: reinforcement learning on catalog rows, from an adapter of the objective dense (experimental)."""
