"""Frameworks that the core was never told of, each an implementation in a few lines."""
