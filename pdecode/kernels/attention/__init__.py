"""Attention over `Visibility`: one entry, several ways to compute it."""
