"""One decision each, one row at a time: pure functions that a family vmaps."""
