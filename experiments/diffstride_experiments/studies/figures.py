"""Common parts of the studies' figures."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from textwrap import fill

from matplotlib.axes import Axes

from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import COLOURS, scale_costs
from diffstride_experiments.studies.summary import Row, Spread

__all__ = [
    "DPI",
    "Style",
    "annotate_against_cost",
    "draw_against_cost",
    "draw_by_category",
    "style",
]

DPI = 150

Style = tuple[str, str, str]
"""Label, colour and marker of a series."""

MARKERS: Mapping[MethodName, str] = {"conv": "s", "spectral": "o", "diffstride": "D"}


def style(method: MethodName, label: str | None = None) -> Style:
    """Return the style of a method, with its own label or another."""
    return label or METHODS[method].label, COLOURS[method], MARKERS.get(method, "v")


def draw_by_category(
    axes: Axes,
    categories: Sequence[str],
    series: Mapping[Style, Sequence[Row]],
    value: Callable[[Row], Spread],
) -> None:
    """Draw a value of each row side by side for each category, with its standard deviation."""
    for index, ((label, colour, marker), rows) in enumerate(series.items()):
        shift = 0.14 * (index - (len(series) - 1) / 2)
        values = [value(row) for row in rows]
        axes.errorbar(
            [place + shift for place in range(len(rows))],
            [found.mean for found in values],
            yerr=[found.deviation for found in values],
            fmt=marker,
            color=colour,
            label=label,
            capsize=2,
        )
    axes.set_xticks(range(len(categories)), [fill(name, 12) for name in categories])


def draw_against_cost(
    axes: Axes, series: Mapping[Style, Iterable[Row]], *, connect: bool = False
) -> None:
    """Draw accuracy against final multiply-adds, with both standard deviations."""
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
    axes.set_xlabel("multiply-adds per sample at the end, millions")
    axes.set_ylabel("test accuracy, %")


def annotate_against_cost(
    axes: Axes, rows: Mapping[str, Row], offset: tuple[int, int] = (5, 5)
) -> None:
    """Write a label beside each row's point in a plot of `draw_against_cost`.

    Parameters
    ----------
    axes : Axes
    rows : mapping of str to Row
        Rows by their labels.
    offset : tuple of int
        Distance of the label from the point, in points: to the right and upwards.
    """
    for label, row in rows.items():
        axes.annotate(
            label,
            (row.multiply_adds.mean, row.accuracy.mean),
            xytext=offset,
            textcoords="offset points",
            fontsize="small",
            horizontalalignment="left" if offset[0] > 0 else "right",
        )
