"""Runs that differ only in the seed."""

from collections.abc import Sequence

from diffstride_experiments.config import Config
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.study import Case

__all__ = ["of_seeds", "with_more"]


def of_seeds(labels: tuple[str, ...], config: Config, seeds: Sequence[int]) -> list[Case]:
    """Return a run for each seed."""
    return [Case(labels, changed(config, {"seed": seed})) for seed in seeds]


def with_more(seeds: Sequence[int]) -> list[int]:
    """Return the seeds and the two that follow the largest of them."""
    last = max(seeds)
    return [*seeds, last + 1, last + 2]
