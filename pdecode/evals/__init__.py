"""Measuring: what a method costs here, and what its text is worth."""
