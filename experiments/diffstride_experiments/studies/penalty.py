"""What does the complexity penalty buy? Accuracy against multiply-adds for several factors."""

from collections.abc import Sequence

import diffstride_plotting as plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import png
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import (
    DPI,
    Style,
    annotate_against_cost,
    draw_against_cost,
    style,
)
from diffstride_experiments.studies.seeds import of_seeds
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import Row, costs_and_strides, group

__all__ = ["PENALTY"]

COLUMNS = ("network", "what varies")
STRIDES = (2.0, 2.0, 2.0)
FACTORS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)
WIDTHS = (1.0, 1.5, 2.0)
FIXED_STRIDES = ((1.0, 1.5, 2.0), (1.5, 1.5, 2.0), (3.0, 2.0, 2.0), (3.0, 3.0, 3.0))


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    grid: list[tuple[MethodName, str, dict[str, object]]] = [
        ("diffstride-penalised", f"λ = {factor:g}", {"training.penalty": factor})
        for factor in FACTORS
    ]
    for method in ("conv", "spectral"):
        grid += [
            (
                method,
                f"{width:g} x the channels",
                {"model.channels": tuple(round(width * n) for n in base.model.channels)},
            )
            for width in WIDTHS
        ]
    grid += [
        ("spectral", f"strides {', '.join(f'{s:g}' for s in strides)}", {"model.strides": strides})
        for strides in FIXED_STRIDES
    ]
    return [
        case
        for method, label, options in grid
        for case in of_seeds(
            (METHODS[method].label, label),
            changed(base, {"model.strides": STRIDES, "methods": (method,), **options}),
            seeds,
        )
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = list(group(outcomes).values())

    def chosen(method: MethodName, begin: str) -> list[Row]:
        label = METHODS[method].label
        return [row for row in rows if row.labels[0] == label and begin in row.labels[1]]

    series: dict[Style, list[Row]] = {
        style("conv", "strided convolution, wider"): chosen("conv", "channels"),
        style("spectral", "spectral pooling, wider"): chosen("spectral", "channels"),
        (
            "spectral pooling, other strides",
            plotting.SKY,
            "v",
        ): chosen("spectral", "strides"),
        style("diffstride-penalised", "DiffStride, larger λ"): chosen("diffstride-penalised", "λ"),
    }
    figure = plotting.make_figure(7.5, 4.8)
    axes = figure.subplots()
    draw_against_cost(axes, series, connect=True)
    learnt = chosen("diffstride-penalised", "λ")
    annotate_against_cost(axes, {row.labels[1]: row for row in learnt}, (6, -12))
    plotting.legend_below(figure, axes)
    return Report(costs_and_strides(COLUMNS, rows), {"trade-off": png(figure, DPI)})


PENALTY = Study(
    name="penalty",
    title="The complexity penalty, beside fixed strides and wider networks (CIFAR10 images)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    report=_report,
)
