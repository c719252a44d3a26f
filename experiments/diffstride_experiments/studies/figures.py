"""What the figures of the studies have in common."""

from collections.abc import Iterable, Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes

from diffstride_experiments.plot import scale_costs
from diffstride_experiments.studies.summary import Row

__all__ = ["DPI", "Style", "draw_against_cost", "draw_by_category"]

DPI = 150

Style = tuple[str, str, str]
"""Label, colour and marker of a series."""


def draw_by_category(
    axes: Axes, categories: Sequence[str], series: Mapping[Style, Sequence[Row]]
) -> None:
    """Draw accuracies side by side for each category, with their standard deviations."""
    for index, ((label, colour, marker), rows) in enumerate(series.items()):
        shift = 0.14 * (index - (len(series) - 1) / 2)
        axes.errorbar(
            [place + shift for place in range(len(rows))],
            [row.accuracy.mean for row in rows],
            yerr=[row.accuracy.deviation for row in rows],
            fmt=marker,
            color=colour,
            label=label,
            capsize=2,
        )
    axes.set_xticks(range(len(categories)), [fill(name, 12) for name in categories])


def draw_against_cost(
    axes: Axes, series: Mapping[Style, Iterable[Row]], *, connect: bool = False
) -> None:
    """Draw accuracy against the multiply-adds at the end, with both standard deviations."""
    for (label, colour, marker), rows in series.items():
        ordered = sorted(rows, key=lambda row: row.multiply_adds.mean)
        axes.errorbar(
            [row.multiply_adds.mean for row in ordered],
            [row.accuracy.mean for row in ordered],
            xerr=[row.multiply_adds.deviation for row in ordered],
            yerr=[row.accuracy.deviation for row in ordered],
            fmt=marker,
            linestyle="-" if connect else "none",
            color=colour,
            label=label,
            capsize=2,
            linewidth=1,
        )
    scale_costs(axes)
    axes.set_xlabel("multiply-adds per sample at the end, 10⁶")
