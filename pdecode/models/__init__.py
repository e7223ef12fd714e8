"""Models behind the `Model` record."""
