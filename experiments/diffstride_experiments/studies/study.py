"""Parts of a study: runs that differ in a few options, their outcomes, and the report on them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName

__all__ = ["Case", "Outcome", "Point", "Report", "Study"]

DataKind = Literal["digits", "images", "recordings"]


@dataclass(frozen=True)
class Case:
    """One run of a study.

    Attributes
    ----------
    labels : tuple of str
        Table row of the run, with one entry for each column of the study. Runs with the same labels
        differ only in the seed.
    config : Config
        Options of the run, with one method.
    """

    labels: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Point:
    """Strides at one point of a training.

    Attributes
    ----------
    step : int
        Steps done.
    strides : tuple of pair of float
        Stride of each place along height and width.
    multiply_adds : int
        Multiply-adds per sample at these strides.
    """

    step: int
    strides: tuple[tuple[float, float], ...]
    multiply_adds: int


@dataclass(frozen=True)
class Outcome:
    """Outcome of a run.

    Attributes
    ----------
    labels : tuple of str
        Labels of the `Case`.
    method : str
        Key in `METHODS`.
    seed : int
    accuracy : float
        Share of evaluation samples classified correctly after the last epoch.
    first_strides, strides : tuple of pair of float
        Initial and learnt stride of each place along height and width.
    feature_maps : tuple of pair of int
        Height and width of each place's output at the end.
    first_multiply_adds, multiply_adds : int
        Multiply-adds per sample at the initial and at the learnt strides.
    trained_multiply_adds : int
        Multiply-adds of all forward passes over the whole training.
    seconds : float
        Time of training and evaluation.
    trajectory : tuple of Point
        Strides and cost from the first step to the last, if strides are learnt.
    run : str
        Name of the run's folder, which stands for its options and the package versions.
    """

    labels: tuple[str, ...]
    method: MethodName
    seed: int
    accuracy: float
    first_strides: tuple[tuple[float, float], ...]
    strides: tuple[tuple[float, float], ...]
    feature_maps: tuple[tuple[int, int], ...]
    first_multiply_adds: int
    multiply_adds: int
    trained_multiply_adds: int
    seconds: float
    trajectory: tuple[Point, ...]
    run: str = ""

    @classmethod
    def from_result(cls, case: Case, result: dict[str, Any]) -> Self:
        """Return the outcome of a case from its result, as in results.json."""
        before, after = result["before"], result["after"]
        return cls(
            labels=case.labels,
            method=result["method"],
            seed=case.config.seed,
            accuracy=result["accuracy"],
            first_strides=tuple(map(tuple, before["strides"])),
            strides=tuple(map(tuple, after["strides"])),
            feature_maps=tuple(map(tuple, after["feature_maps"])),
            first_multiply_adds=before["multiply_adds"],
            multiply_adds=after["multiply_adds"],
            trained_multiply_adds=result["trained_multiply_adds"],
            seconds=result["seconds"],
            trajectory=tuple(
                Point(
                    point["step"],
                    tuple(map(tuple, point["strides"])),
                    point["multiply_adds"],
                )
                for point in result["trajectory"]
            ),
            run=case.config.run_dir.name,
        )

    @property
    def learns_strides(self) -> bool:
        """Whether the run's method learns its strides."""
        return METHODS[self.method].learns_strides


@dataclass(frozen=True)
class Report:
    """Report on a study.

    Attributes
    ----------
    markdown : str
        Tables.
    figures : dict of str to bytes
        PNG images by file name without extension.
    sentences : tuple of str
        Sentences that say what the tables show.
    """

    markdown: str
    figures: dict[str, bytes]
    sentences: tuple[str, ...] = ()


@dataclass(frozen=True)
class Study:
    """A grid of runs.

    Attributes
    ----------
    name, title : str
        Name on the command line, and title of the results.
    data : {"digits", "images", "recordings"}
        Data to train on. Only the digits come with a package.
    columns : tuple of str
        Headings for the labels of the runs.
    cases : callable
        Function that makes the runs from the base options and the seeds.
    report : callable
        Function that makes tables and figures from all outcomes.
    follow_up : callable, optional
        Function that makes further runs from the base options, the seeds and the first outcomes.
    introduction : str, optional
        Introduction to the study. If it is given, the terminal shows it before the runs, and the
        tables and sentences after them.
    """

    name: str
    title: str
    data: DataKind
    columns: tuple[str, ...]
    cases: Callable[[Config, Sequence[int]], list[Case]]
    report: Callable[[Sequence[Outcome]], Report]
    follow_up: Callable[[Config, Sequence[int], Sequence[Outcome]], list[Case]] | None = None
    introduction: str | None = None
