"""Where does the gain come from? Learning, placement, convention, or the multiply-adds alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import diffstride_plotting as plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import png
from diffstride_experiments.studies.bases import INPUT_SHAPES, MODELS
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
from diffstride_experiments.studies.summary import (
    Difference,
    Row,
    costs_and_strides,
    group,
    markdown_table,
)
from diffstride_experiments.studies.width import parameters, widened

__all__ = ["CONTROLS"]

COLUMNS = ("initial strides", "network")
STARTS = {"2, 2, 2": (2.0, 2.0, 2.0), "3, 2, 3": (3.0, 2.0, 3.0), "4, 4, 4": (4.0, 4.0, 4.0)}
LEARNT = METHODS["diffstride"].label
HELD = "strides held"
AFTER = "after the convolution"
PAPER = "the paper's convention, after the convolution"
# What a sceptic asks, and the options that give the answer.
NETWORKS: dict[str, dict[str, Any]] = {
    LEARNT: {"methods": ("diffstride",)},
    HELD: {"methods": ("diffstride-held",)},
    AFTER: {"methods": ("diffstride",), "model.placement": "after"},
    # The smoothness of this convention is in frequencies.
    PAPER: {"methods": ("diffstride-paper",), "model.smoothness": None},
}
FIXED: tuple[MethodName, ...] = ("conv", "spectral")
WIDER = {method: f"{METHODS[method].label}, wider" for method in FIXED}
STYLES: dict[str, Style] = {
    LEARNT: style("diffstride"),
    HELD: style("diffstride-held", HELD),
    AFTER: (AFTER, plotting.SKY, "v"),
    PAPER: style("diffstride-paper", PAPER),
    **{label: style(method, label) for method, label in WIDER.items()},
}


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    cases = []
    for network, options in NETWORKS.items():
        for start, strides in STARTS.items():
            config = changed(base, {"model.strides": strides, **options})
            cases += of_seeds((start, network), config, seeds)
    return cases


def _wider(base: Config, seeds: Sequence[int], outcomes: Sequence[Outcome]) -> list[Case]:
    """Return runs of the fixed methods, widened to the final cost of the learnt networks."""
    rows = group(outcomes)
    return [
        case
        for start in STARTS
        for method, label in WIDER.items()
        for case in of_seeds((start, label), _widened(base, rows, start, method), seeds)
    ]


def _widened(
    base: Config, rows: Mapping[tuple[str, ...], Row], start: str, method: MethodName
) -> Config:
    """Return a fixed method's options, as wide as it takes to cost what the learnt network does."""
    config = changed(base, {"methods": (method,), "model.strides": STARTS[start]})
    price = 1e6 * rows[start, LEARNT].multiply_adds.mean
    return widened(config, price, INPUT_SHAPES["images"])


def _parameters(rows: Mapping[tuple[str, ...], Row], start: str, method: MethodName) -> str:
    """Say how many times the parameters of the network that was not widened a wider one has."""
    base = Config(model=MODELS["images"])
    wide = _widened(base, rows, start, method)
    ratio = parameters(wide, INPUT_SHAPES["images"]) / parameters(
        changed(wide, {"model.channels": base.model.channels}), INPUT_SHAPES["images"]
    )
    return f"{wide.model.channels[0]} channels, {ratio:.1f}"


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = group(outcomes)
    labels = [*NETWORKS, *WIDER.values()]
    ordered = [rows[start, label] for start in STARTS for label in labels]
    accuracies = markdown_table(
        ["network", *STARTS],
        (
            [
                label,
                *(
                    f"{rows[start, label].accuracy:.1f} at {rows[start, label].cost}"
                    for start in STARTS
                ),
            ]
            for label in labels
        ),
    )
    differences = markdown_table(
        ["DiffStride minus", *STARTS],
        (
            [
                label,
                *(str(Difference.of(rows[start, LEARNT], rows[start, label])) for start in STARTS),
            ]
            for label in labels[1:]
        ),
    )
    widths = markdown_table(
        ["network", *STARTS],
        (
            [label, *(_parameters(rows, start, method) for start in STARTS)]
            for method, label in WIDER.items()
        ),
    )
    markdown = "\n".join(
        [
            "## Accuracy\n\nOf the test images, %, at multiply-adds per image, 10⁶ (initial → "
            "learnt strides):\n",
            accuracies,
            "Wider networks have as many channels as it takes to cost what the learnt network ends "
            "with. Channels after the stem (otherwise 8), and the number of parameters relative to "
            "the network that is not wider:\n",
            widths,
            "How far the learnt network is ahead, in percentage points; mean ± standard error over "
            "the seeds:\n",
            differences,
            "## What it costs\n",
            costs_and_strides(COLUMNS, ordered),
        ]
    )
    figure = plotting.make_figure(7.5, 5.5)
    axes = figure.subplots()
    draw_against_cost(
        axes, {STYLES[label]: [rows[start, label] for start in STARTS] for label in labels}
    )
    offsets = {LEARNT: (-5, -12), PAPER: (5, -12)}
    for label in STYLES:
        starts = {start: rows[start, label] for start in STARTS}
        annotate_against_cost(axes, starts, offsets.get(label, (5, 5)))
    plotting.legend_below(figure, axes)
    return Report(markdown, {"costs": png(figure, DPI)})


CONTROLS = Study(
    name="controls",
    title="Where does the gain come from? (CIFAR10 images)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    follow_up=_wider,
    report=_report,
)
