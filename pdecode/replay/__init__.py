"""A decode seen again: one HTML page that shows the order in which a text came."""
