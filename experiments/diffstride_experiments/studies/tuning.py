"""The choice of the options that the other studies share, on held-out training samples."""

from collections.abc import Sequence
from typing import Any

from diffstride_backends import plotting

from diffstride_experiments.config import Config
from diffstride_experiments.plot import png
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, Style, draw_by_category
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import Row, group, report_rows

__all__ = ["TUNING"]

COLUMNS = ("learning of strides", "initial strides")
STARTS = {"2, 2, 2": (2.0, 2.0, 2.0), "4, 2, 4": (4.0, 2.0, 4.0)}
RATE = "optimizer.stride_learning_rate"
VARIANTS: dict[str, dict[str, Any]] = {
    # Too small to move a stride.
    "not learnt": {RATE: 1e-9},
    "rate 0.003": {RATE: 0.003},
    "rate 0.03": {RATE: 0.03},
    "rate 0.1, at least 1.5": {RATE: 0.1, "model.lower_limit": 1.5},
    "rate 0.03, smoothness 0.5": {RATE: 0.03, "model.smoothness": 0.5},
    "rate 0.03, cosine": {RATE: 0.03, "optimizer.schedule": "cosine"},
}
COLOURS = (
    plotting.GREY,
    plotting.BLUE,
    plotting.ORANGE,
    plotting.GREEN,
    plotting.VERMILLION,
    plotting.PURPLE,
)


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    shared = {"methods": ("diffstride-relative",), "evaluate_on": "validation"}
    return [
        Case(
            (variant, start),
            changed(base, {**shared, **options, "model.strides": strides, "seed": seed}),
        )
        for start, strides in STARTS.items()
        for variant, options in VARIANTS.items()
        for seed in seeds
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = group(outcomes)
    series: dict[Style, list[Row]] = {
        (variant, colour, "o"): [rows[variant, start] for start in STARTS]
        for variant, colour in zip(VARIANTS, COLOURS, strict=True)
    }
    figure = plotting.make_figure(7, 3.6)
    axes = figure.subplots()
    draw_by_category(axes, list(STARTS), series)
    axes.set_xlabel("initial strides")
    axes.set_ylabel("validation accuracy ± sd, %")
    plotting.legend_below(figure, axes)
    return report_rows(
        COLUMNS, list(rows.values()), {"tuning": png(figure, DPI)}, samples="validation"
    )


TUNING = Study(
    name="tuning",
    title="How strides are to be learnt: DiffStride (relative) on held-out CIFAR10 images",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    report=_report,
)
