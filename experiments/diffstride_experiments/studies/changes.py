"""Options that differ from others in a few values."""

from collections.abc import Mapping
from typing import Any

from diffstride_experiments.config import Config

__all__ = ["changed"]


def changed(config: Config, changes: Mapping[str, Any]) -> Config:
    """Return options with some values changed, checked anew.

    Parameters
    ----------
    config : Config
        Options.
    changes : mapping of str
        Values by their names as on the command line, such as ``"model.strides"``.

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
