"""Configurations with some options changed."""

from typing import Any

from diffstride_experiments.config import Config
from diffstride_experiments.studies import changes


def changed(config: Config, **options: Any) -> Config:
    """Return a configuration with other options; ``training__epochs`` is training.epochs."""
    return changes.changed(
        config, {name.replace("__", "."): value for name, value in options.items()}
    )
