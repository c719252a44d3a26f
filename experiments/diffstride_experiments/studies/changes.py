"""Options that differ in a few values."""

from collections.abc import Mapping, Sequence
from typing import Any

from diffstride_experiments.config import Config

__all__ = ["changed", "common"]


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return options with some values changed, and check them.

    Parameters
    ----------
    config : Config
        Options.
    changes : mapping of str
        New values by option name, as on the command line, such as ``"model.strides"``.

    Returns
    -------
    Config

    Raises
    ------
    pydantic.ValidationError
        If a name is unknown or a value is not allowed.
    """
    values = config.model_dump()
    for name, value in changes.items():
        *groups, option = name.split(".")
        target = values
        for group in groups:
            target = target[group]
        target[option] = value
    return Config.model_validate(values)


def common(options: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the values that several groups of options have in common, also in nested groups."""
    first, *others = options
    shared: dict[str, Any] = {}
    for name, value in first.items():
        values = [other.get(name) for other in others]
        if isinstance(value, Mapping) and all(isinstance(other, Mapping) for other in values):
            shared[name] = common([value, *values])
        elif all(other == value for other in values):
            shared[name] = value
    return shared
