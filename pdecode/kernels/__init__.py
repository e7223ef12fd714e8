"""Attention over `Visibility` and statistics of the vocabulary head."""
