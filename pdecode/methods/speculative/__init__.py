"""Draft and verify."""
