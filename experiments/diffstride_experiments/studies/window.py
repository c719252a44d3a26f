"""Which window, and how fast its strides learn: variants at equal multiply-adds."""

from collections.abc import Sequence

from diffstride_backends import plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import COLOURS, png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.budget import cost, with_budget
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, Style, draw_against_cost
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import Row, group, report_rows

__all__ = ["WINDOW"]

COLUMNS = ("method", "smoothness", "stride learning rate")
STRIDES = (2.0, 2.0, 2.0)
REFERENCE: MethodName = "diffstride-relative"
# At rho = 1 a stride of 2 would downsample nothing.
SMOOTHNESS: dict[MethodName, tuple[float, ...]] = {
    REFERENCE: (0.25, 0.5),
    "diffstride-paper": (1.0, 2.0, 4.0),
    "diffstride-tensorflow": (4.0,),
}
# The first one is too small to move a stride.
OTHER_RATES = {"not learnt": 1e-9, "0.003": 0.003, "0.1": 0.1}
# With these strides spectral pooling has maps as large as the reference's at stride 2: 20, 14, 10.
SAME_SIZES = (32 / 20, 20 / 14, 14 / 10)


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    start = changed(base, {"methods": (REFERENCE,), "model.strides": STRIDES})
    shape = INPUT_SHAPES["images"]
    budget = cost(start, shape)
    variants = [
        (_labels(method, f"{smoothness:g}", f"{base.optimizer.stride_learning_rate:g}"), changes)
        for method, values in SMOOTHNESS.items()
        for smoothness in values
        for changes in [{"methods": (method,), "model.smoothness": smoothness}]
    ]
    reference = SMOOTHNESS[REFERENCE][0]
    variants += [
        (
            _labels(REFERENCE, f"{reference:g}", label),
            {"model.smoothness": reference, "optimizer.stride_learning_rate": rate},
        )
        for label, rate in OTHER_RATES.items()
    ]
    variants += [
        (
            _labels("spectral", ramp, "not learnt"),
            {"methods": ("spectral",), "model.strides": strides},
        )
        for ramp, strides in {"no ramp": STRIDES, "no ramp, larger maps": SAME_SIZES}.items()
    ]
    return [
        Case(labels, changed(wide, {"seed": seed}))
        for labels, changes in variants
        for wide in [with_budget(changed(start, changes), budget, shape)]
        for seed in seeds
    ]


def _labels(method: MethodName, smoothness: str, rate: str) -> tuple[str, ...]:
    return METHODS[method].label, smoothness, rate


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = list(group(outcomes).values())
    series: dict[Style, list[Row]] = {}
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
    return report_rows(COLUMNS, rows, {"window": png(figure, DPI)})


WINDOW = Study(
    name="window",
    title="The window and its learning rate at about equal multiply-adds (CIFAR10 images)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    report=_report,
)
