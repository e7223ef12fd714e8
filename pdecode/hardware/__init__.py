"""Machines that are not here: what a decode would need and cost on them."""
