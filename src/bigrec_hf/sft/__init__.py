"""The `sft` stage: an adapter is trained to generate the next item's title."""
