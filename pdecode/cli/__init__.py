"""The command line. Nothing else of the package imports it."""
