"""The options of a study."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveInt

from diffstride_experiments.command_line import read_options
from diffstride_experiments.locking import check_folder
from diffstride_experiments.options import Options
from diffstride_experiments.text import AnyPath

__all__ = ["StudyName", "StudyOptions", "parse"]

StudyName = Literal[
    "demo",
    "robustness-digits",
    "robustness-images",
    "robustness-recordings",
    "controls",
    "budget",
    "penalty",
    "rate",
]


class StudyData(Options):
    """The samples."""

    path: AnyPath | None = None
    """Folder of the data where they are not bundled: the recordings of the Free Spoken Digit
    Dataset for robustness-recordings, else CIFAR10, either unpacked from its Python version or as
    train/CLASS/* and test/CLASS/*."""


class StudyOptions(Options):
    """Run a study: a grid of short trainings, each on one thread, and tables and figures of them.

    Interrupted, the same command goes on. What is in the folder already is not run again.
    """

    name: StudyName
    """Which study."""

    data: StudyData = StudyData()

    folder: AnyPath = Path("runs/studies")
    """The study's folder is made in it, and one for the runs of all studies."""

    seeds: PositiveInt = 3
    """Runs of each row, with consecutive seeds. Some rows of robustness-images have two more."""

    first_seed: int = Field(0, ge=0, lt=2**62)
    """The first of the seeds. Other seeds repeat a study with other initial weights and orders."""

    jobs: PositiveInt = Field(le=1024, default_factory=lambda: min(os.cpu_count() or 1, 8))
    """Runs at a time, each with samples of its own in memory. Results do not depend on it."""

    reuse: AnyPath | None = None
    """Folder of results of a study: its runs with the same options and versions are not run again,
    but taken from there."""

    against: AnyPath | None = None
    """Folder of another execution of the study: say how far the means are from its."""


def parse(arguments: Sequence[str]) -> StudyOptions:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str
        Name of a study, then options.

    Returns
    -------
    StudyOptions
        What to run.

    Raises
    ------
    UsageError
        For options that are unknown or not allowed, or for a folder that cannot be made.
    SystemExit
        After the help, if that was asked for.
    """
    chosen = read_options(StudyOptions, arguments, "diffstride-study NAME [OPTIONS]")
    check_folder(chosen.folder / chosen.name, "folder")
    return chosen
