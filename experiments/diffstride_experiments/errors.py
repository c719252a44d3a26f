"""The error that the console command reports without a traceback."""

__all__ = ["ExperimentError"]


class ExperimentError(RuntimeError):
    """A run cannot start or go on; the message says why and what to do."""
