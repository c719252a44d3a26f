"""What does the complexity penalty buy? Accuracy against multiply-adds over its factor."""

from collections.abc import Sequence

from diffstride_backends import plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import COLOURS, png
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, Style, draw_against_cost
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import group, report_rows

__all__ = ["PENALTY"]

COLUMNS = ("method", "what varies")
STRIDES = (2.0, 2.0, 2.0)
FACTORS = (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)
WIDTHS = {"conv": (1.0, 1.5, 2.0, 3.0), "spectral": (1.0, 1.5, 2.0)}
SERIES: dict[MethodName, Style] = {
    "conv": ("strided convolution, wider", COLOURS["conv"], "s"),
    "spectral": ("spectral pooling, wider", COLOURS["spectral"], "o"),
    "diffstride-penalised": ("DiffStride, more λ", COLOURS["diffstride-penalised"], "D"),
}


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    grid = [
        (f"λ = {factor:g}", "diffstride-penalised", {"training.penalty": factor})
        for factor in FACTORS
    ]
    grid += [
        (
            f"{width:g} x the channels",
            method,
            {"model.channels": tuple(round(width * count) for count in base.model.channels)},
        )
        for method, widths in WIDTHS.items()
        for width in widths
    ]
    return [
        Case(
            (METHODS[method].label, label),
            changed(
                base, {"methods": (method,), "model.strides": STRIDES, "seed": seed, **options}
            ),
        )
        for label, method, options in grid
        for seed in seeds
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = list(group(outcomes).values())
    series = {
        style: [row for row in rows if row.outcomes[0].method == method]
        for method, style in SERIES.items()
    }
    figure = plotting.make_figure(9, 4.4)
    axes = figure.subplots()
    draw_against_cost(axes, series, connect=True)
    axes.set_ylabel("accuracy ± sd, %")
    for row in series[SERIES["diffstride-penalised"]]:
        axes.annotate(
            row.labels[1],
            (row.multiply_adds.mean, row.accuracy.mean),
            xytext=(5, 5),
            textcoords="offset points",
            fontsize="small",
        )
    plotting.legend_below(figure, axes)
    return report_rows(COLUMNS, rows, {"pareto": png(figure, DPI)})


PENALTY = Study(
    name="penalty",
    title="The complexity penalty, and wider strided networks (CIFAR10 images)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    report=_report,
)
