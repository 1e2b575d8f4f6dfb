"""The `prepare` stage: raw interaction files become a prepared data set."""
