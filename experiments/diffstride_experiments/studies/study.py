"""What a study is: runs that differ in a few options, and what is made of their outcomes."""

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
        Row of the table that it belongs to, one entry for each of the study's columns. Runs with
        the same labels differ in the seed alone.
    config : Config
        Options of the run, which has one method.
    """

    labels: tuple[str, ...]
    config: Config


@dataclass(frozen=True)
class Point:
    """Strides at some time of a training.

    Attributes
    ----------
    step : int
        Steps done.
    strides : tuple of pair of float
        Stride of each place along height and width.
    multiply_adds : int
        Multiply-adds per sample there.
    """

    step: int
    strides: tuple[tuple[float, float], ...]
    multiply_adds: int


@dataclass(frozen=True)
class Outcome:
    """What a run found.

    Attributes
    ----------
    labels : tuple of str
        As for the `Case`.
    method : str
        Key in `METHODS`.
    seed : int
    accuracy : float
        Share of evaluation samples classified rightly after the last epoch.
    first_strides, strides : tuple of pair of float
        Stride of each place along height and width, initial and learnt.
    feature_maps : tuple of pair of int
        Height and width of each place's output at the end.
    first_multiply_adds, multiply_adds : int
        Multiply-adds per sample at the initial and at the learnt strides.
    trained_multiply_adds : int
        Multiply-adds of the forward passes of the whole training.
    seconds : float
        Time of training and evaluation.
    trajectory : tuple of Point
        Strides and cost from the first step to the last one, where they are learnt.
    run : str
        Name of the run's folder, which stands for its options and the versions it was made with.
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
        """Return the outcome of a case's run, of which results.json keeps the result."""
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
    """What is written of a study.

    Attributes
    ----------
    markdown : str
        Tables.
    figures : dict of str to bytes
        PNG images by their file names without extension.
    sentences : tuple of str
        What the tables say, in words.
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
        Name on the command line, and what is studied.
    data : {"digits", "images", "recordings"}
        What it trains on; only digits are bundled.
    columns : tuple of str
        What the labels of its runs are.
    cases : callable
        Makes the runs from the options that they start from and the seeds.
    report : callable
        Makes tables and figures from all outcomes.
    follow_up : callable, optional
        Makes further runs from the outcomes of the first ones.
    introduction : str, optional
        What is about to be shown. The terminal shows it before the runs, and tables and sentences
        behind them.
    """

    name: str
    title: str
    data: DataKind
    columns: tuple[str, ...]
    cases: Callable[[Config, Sequence[int]], list[Case]]
    report: Callable[[Sequence[Outcome]], Report]
    follow_up: Callable[[Config, Sequence[int], Sequence[Outcome]], list[Case]] | None = None
    introduction: str | None = None
