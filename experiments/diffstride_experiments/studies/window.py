"""Which window, and how fast its strides learn: variants at equal multiply-adds."""

from collections.abc import Sequence
from typing import Any

from diffstride_backends import plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import COLOURS
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.budget import cost, with_budget
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import Style, draw_against_cost, png
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import (
    group,
    markdown_table,
    millions,
    strides_table,
)

__all__ = ["WINDOW"]

STRIDES = (2.0, 2.0, 2.0)
REFERENCE: MethodName = "diffstride-relative"
SMOOTHNESS: dict[MethodName, tuple[float, ...]] = {
    "diffstride-relative": (0.25, 0.5, 1.0),
    "diffstride-paper": (1.0, 2.0, 4.0),
    "diffstride-tensorflow": (4.0,),
}
# With these strides spectral pooling has maps as large as the reference's at stride 2: 20, 14, 10.
SAME_SIZES = (32 / 20, 20 / 14, 14 / 10)
# The last one is too small to move a stride: windows that stay as they are.
STRIDE_RATES = (0.03, 0.003, 1e-9)


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    start = changed(base, {"methods": (REFERENCE,), "model.strides": STRIDES})
    shape = INPUT_SHAPES["images"]
    budget = cost(start, shape)
    rate = base.optimizer.stride_learning_rate
    variants: list[tuple[tuple[str, str, str], dict[str, Any]]] = [
        (
            (METHODS[method].label, f"{smoothness:g}", f"{rate:g}"),
            {"methods": (method,), "model.smoothness": smoothness},
        )
        for method, values in SMOOTHNESS.items()
        for smoothness in values
    ]
    variants += [
        (
            (METHODS[REFERENCE].label, "0.25", f"{other:g}" if other > 1e-6 else "not learnt"),
            {"optimizer.stride_learning_rate": other},
        )
        for other in STRIDE_RATES
    ]
    spectral = METHODS["spectral"].label
    variants += [
        ((spectral, "no ramp", "not learnt"), {"methods": ("spectral",)}),
        (
            (spectral, "no ramp, larger maps", "not learnt"),
            {"methods": ("spectral",), "model.strides": SAME_SIZES},
        ),
    ]
    return [
        Case(labels, changed(wide, {"seed": seed}))
        for labels, changes in variants
        for wide in [with_budget(changed(start, changes), budget, shape)]
        for seed in seeds
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = list(group(outcomes).values())
    series: dict[Style, list] = {}
    markers = iter("DovsP^<>X*hp8d")
    for row in rows:
        method, smoothness, rate = row.labels
        style = f"{method}, {smoothness}, {rate}", COLOURS[row.outcomes[0].method], next(markers)
        series[style] = [row]
    figure = plotting.make_figure(9, 4.8)
    axes = figure.subplots()
    draw_against_cost(axes, series)
    axes.set_ylabel("accuracy ± sd, %")
    lines, labels = axes.get_legend_handles_labels()
    figure.legend(
        lines,
        labels,
        loc="outside right upper",
        frameon=False,
        fontsize="small",
        title="method, smoothness, stride rate",
    )
    columns = ("method", "smoothness", "stride learning rate")
    table = markdown_table(
        [*columns, "accuracy, %", "multiply-adds, 10⁶"],
        ([*row.labels, f"{row.accuracy:.1f}", millions(row)] for row in rows),
    )
    strides = strides_table(columns, rows, ("height", "width"))
    return Report(f"{table}\n## Learnt strides\n\n{strides}", {"window": png(figure)})


WINDOW = Study(
    name="window",
    title="Convention, smoothness and stride learning rate at equal multiply-adds (CIFAR10 images)",
    data="images",
    columns=("method", "smoothness", "stride learning rate"),
    cases=_cases,
    report=_report,
)
