"""The errors that a console command reports on one line, without a traceback."""

__all__ = ["ExperimentError", "UsageError"]


class ExperimentError(RuntimeError):
    """A run cannot start or continue; the message says why and what to do."""


class UsageError(ExperimentError):
    """An option or a recipe is not allowed; the message names it, its value and what is allowed."""
