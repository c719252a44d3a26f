"""Configurations with some options changed."""

from typing import Any

from diffstride_experiments.config import Config


def changed(config: Config, **options: Any) -> Config:
    """Return a configuration with other options; ``training__epochs`` is training.epochs."""
    values = config.model_dump()
    for name, value in options.items():
        *groups, option = name.split("__")
        table = values
        for group in groups:
            table = table[group]
        table[option] = value
    return Config.model_validate(values)
