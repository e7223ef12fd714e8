"""Token statistics of the vocabulary head."""
