"""Means and spreads over the runs of a study, and tables of them."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from diffstride_experiments.report import millions
from diffstride_experiments.studies.study import Outcome

__all__ = [
    "Difference",
    "Row",
    "Spread",
    "costs_and_strides",
    "costs_table",
    "group",
    "markdown_table",
    "strides_table",
]


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation (n - 1 in the denominator) of some values."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Iterable[float]) -> "Spread":
        """Return the mean and deviation of some values. The deviation of one value is NaN."""
        array = np.fromiter(values, float)
        return cls(array.mean(), array.std(ddof=1) if array.size > 1 else math.nan)

    def __format__(self, spec: str) -> str:
        """Return ``mean ± deviation``, both in the given format."""
        if math.isnan(self.deviation):
            return format(self.mean, spec)
        return f"{self.mean:{spec}} ± {self.deviation:{spec}}"


@dataclass(frozen=True)
class Row:
    """Runs that differ only in the seed.

    Attributes
    ----------
    labels : tuple of str
        Labels that the runs have in common.
    outcomes : tuple of Outcome
        One outcome for each seed: its mean over the splits of the data, if there are several.
    """

    labels: tuple[str, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def accuracy(self) -> Spread:
        """Accuracy in percent."""
        return Spread.of(100 * outcome.accuracy for outcome in self.outcomes)

    @property
    def multiply_adds(self) -> Spread:
        """Multiply-adds per sample at the end, in millions."""
        return Spread.of(outcome.multiply_adds / 1e6 for outcome in self.outcomes)

    @property
    def cost(self) -> str:
        """Mean multiply-adds in millions at the initial and at the learnt strides."""
        first = self.mean(lambda outcome: outcome.first_multiply_adds)
        last = self.mean(lambda outcome: outcome.multiply_adds)
        return millions(first, last)

    @property
    def strides(self) -> list[tuple[Spread, Spread]]:
        """Learnt strides along height and width of each place."""
        values = np.array([outcome.strides for outcome in self.outcomes])
        return [(Spread.of(place[:, 0]), Spread.of(place[:, 1])) for place in values.swapaxes(0, 1)]

    def mean(self, value: Callable[[Outcome], float]) -> float:
        """Return the mean of some value over the seeds."""
        return Spread.of(map(value, self.outcomes)).mean


@dataclass(frozen=True)
class Difference:
    """Difference of the accuracies of two rows, over the seeds that both have.

    Attributes
    ----------
    mean, error : float
        Mean in percentage points, and its standard error, which is NaN for a single seed.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, row: Row, reference: Row) -> "Difference":
        """Return how far a row is ahead of another, seed by seed."""
        theirs = {outcome.seed: outcome.accuracy for outcome in reference.outcomes}
        values = [
            100 * (outcome.accuracy - theirs[outcome.seed])
            for outcome in row.outcomes
            if outcome.seed in theirs
        ]
        spread = Spread.of(values)
        return cls(spread.mean, spread.deviation / math.sqrt(len(values)))

    def __str__(self) -> str:
        """Return ``+mean ± error``."""
        if math.isnan(self.error):
            return f"{self.mean:+.1f}"
        return f"{self.mean:+.1f} ± {self.error:.1f}"


def group(outcomes: Iterable[Outcome]) -> dict[tuple[str, ...], Row]:
    """Return one row for each set of labels, in the order in which they first occur.

    Runs of one seed that differ only in the split of the data are averaged.
    """
    found: dict[tuple[str, ...], dict[int, list[Outcome]]] = {}
    for outcome in outcomes:
        found.setdefault(outcome.labels, {}).setdefault(outcome.seed, []).append(outcome)
    return {
        labels: Row(labels, tuple(_over_splits(members) for members in by_seed.values()))
        for labels, by_seed in found.items()
    }


def _over_splits(outcomes: Sequence[Outcome]) -> Outcome:
    """Return the mean of the outcomes of one seed over the splits of the data."""
    if len(outcomes) == 1:
        return outcomes[0]
    strides = np.mean([outcome.strides for outcome in outcomes], axis=0)

    def mean(value: Callable[[Outcome], float]) -> float:
        return float(np.mean(list(map(value, outcomes))))

    return replace(
        outcomes[0],
        accuracy=mean(lambda outcome: outcome.accuracy),
        strides=tuple((height, width) for height, width in strides.tolist()),
        multiply_adds=round(mean(lambda outcome: outcome.multiply_adds)),
        trained_multiply_adds=round(mean(lambda outcome: outcome.trained_multiply_adds)),
        seconds=mean(lambda outcome: outcome.seconds),
    )


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is text and whose others are numbers."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def costs_table(columns: Sequence[str], rows: Iterable[Row]) -> str:
    """Return a table of the accuracy and the cost of each row.

    Parameters
    ----------
    columns : sequence of str
        Headings for the labels.
    rows : iterable of Row

    Returns
    -------
    str
        Markdown.
    """
    header = [
        *columns,
        "accuracy, %",
        "multiply-adds per sample, 10⁶",
        "over the training, 10¹²",
        "seconds",
    ]
    return markdown_table(
        header,
        (
            [
                *row.labels,
                f"{row.accuracy:.1f}",
                row.cost,
                f"{row.mean(lambda outcome: outcome.trained_multiply_adds) / 1e12:.2f}",
                f"{row.mean(lambda outcome: outcome.seconds):.0f}",
            ]
            for row in rows
        ),
    )


def costs_and_strides(columns: Sequence[str], rows: Sequence[Row]) -> str:
    """Return `costs_table` and `strides_table` for rows on images."""
    strides = strides_table(columns, rows, ("height", "width"))
    return f"{costs_table(columns, rows)}\n## Learnt strides\n\n{strides}"


def strides_table(columns: Sequence[str], rows: Iterable[Row], axes: tuple[str, str]) -> str:
    """Return a table of the learnt strides, with one column for each place and axis.

    Parameters
    ----------
    columns : sequence of str
        Headings for the labels.
    rows : iterable of Row
        Rows. Rows whose method does not learn its strides are left out.
    axes : pair of str
        What height and width stand for.

    Returns
    -------
    str
        Markdown.
    """
    learnt = [row for row in rows if row.outcomes[0].learns_strides]
    places = range(1, 1 + len(learnt[0].strides))
    header = [*columns, *(f"{axis} {place}" for place in places for axis in axes)]
    return markdown_table(
        header,
        (
            [*row.labels, *(f"{spread:.2f}" for place in row.strides for spread in place)]
            for row in learnt
        ),
    )
