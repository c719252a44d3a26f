"""Frameworks that the core does not know, each implemented in a few lines."""
