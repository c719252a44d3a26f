"""How much of a test's parameters the quick tests go through; the slow tests take the rest."""

import pytest


def quick_where(is_quick, values):
    """Return parameters: as they are where ``is_quick(position)``, else marked as slow."""
    return [
        value if is_quick(position) else pytest.param(*_arguments(value), marks=pytest.mark.slow)
        for position, value in enumerate(values)
    ]


def quick_first(count, values):
    """Return parameters of which all but the first few are slow."""
    return quick_where(lambda position: position < count, values)


def quick_every(step, values):
    """Return parameters of which all but every so many are slow, the first one quick."""
    return quick_where(lambda position: position % step == 0, values)


def _arguments(value):
    return value if isinstance(value, tuple) and not hasattr(value, "_fields") else (value,)
