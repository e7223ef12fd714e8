"""Parallel orders."""
