"""The demo: what learnt strides gain where fixed ones are poor."""

from collections.abc import Sequence
from typing import Any

import diffstride_plotting as plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.plot import png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, draw_against_cost, style
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import Difference, Row, group, markdown_table
from diffstride_experiments.studies.width import cost

__all__ = ["DEMO"]

STRIDES = (12.0, 1.0, 1.0)
CHANNELS = (8, 16, 32, 32)
FIXED: tuple[MethodName, ...] = ("conv", "spectral")
LEARNT: tuple[MethodName, ...] = ("diffstride", "diffstride-budget")
METHODS_SHOWN = (*FIXED, "diffstride-held", *LEARNT)

INTRODUCTION = (
    "A small network classifies handwritten digits of 28x28 pixels, and its first stride, "
    f"{STRIDES[0]:g}, is far too large. Strided convolution and spectral pooling have to keep it. "
    "DiffStride learns its strides, once freely and once held at what strided convolution costs. "
    "For comparison, it also keeps them."
)


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    start = changed(base, {"model.strides": STRIDES, "model.channels": CHANNELS})
    strided = changed(start, {"methods": ("conv",)})
    price = float(cost(strided, INPUT_SHAPES["digits"]))
    options: dict[MethodName, dict[str, Any]] = {
        "diffstride-budget": {"training.budget": price},
    }
    return [
        Case(
            (METHODS[method].label,),
            changed(start, {"methods": (method,), "seed": seed, **options.get(method, {})}),
        )
        for seed in seeds
        for method in METHODS_SHOWN
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = group(outcomes)
    by_method = {method: rows[METHODS[method].label,] for method in METHODS_SHOWN}
    table = markdown_table(
        ["network", "accuracy, %", "multiply-adds, 10⁶", "seconds", "strides"],
        (
            [
                *row.labels,
                f"{row.accuracy:.1f}",
                row.cost,
                f"{row.mean(lambda outcome: outcome.seconds):.0f}",
                _strides(row),
            ]
            for row in by_method.values()
        ),
    )
    figure = plotting.make_figure(7.5, 4.8)
    axes = figure.subplots()
    draw_against_cost(axes, {style(method): [row] for method, row in by_method.items()})
    plotting.legend_below(figure, axes)
    sentences = (*(_sentence(by_method, method) for method in LEARNT), _learning(by_method))
    return Report(table, {"accuracy": png(figure, DPI)}, sentences)


def _strides(row: Row) -> str:
    """Return the strides before and after training, averaged over seeds and both axes."""
    before = ", ".join(f"{stride:g}" for stride in STRIDES)
    if not row.outcomes[0].learns_strides:
        return before
    after = ", ".join(f"{(height.mean + width.mean) / 2:.1f}" for height, width in row.strides)
    return f"{before} → {after}"


def _sentence(by_method: dict[MethodName, Row], method: MethodName) -> str:
    """Say how a learnt network compares with both fixed networks."""
    row = by_method[method]
    parts, ahead = [], True
    for fixed in FIXED:
        difference = Difference.of(row, by_method[fixed])
        ratio = row.multiply_adds.mean / by_method[fixed].multiply_adds.mean
        ahead &= difference.mean > 2 * difference.error
        parts.append(
            f"{difference} points against {METHODS[fixed].label} at {ratio:.2g} times its "
            "multiply-adds"
        )
    verdict = "clearly ahead of both fixed methods" if ahead else "not clearly ahead of both"
    return f"{METHODS[method].label} was {verdict}: {' and '.join(parts)}."


def _learning(by_method: dict[MethodName, Row]) -> str:
    """Say what learning adds to the same layer with its strides held."""
    learnt, held = by_method["diffstride"], by_method["diffstride-held"]
    ratio = learnt.multiply_adds.mean / held.multiply_adds.mean
    return (
        f"Learning the strides, rather than holding them, changed {METHODS['diffstride'].label} by "
        f"{Difference.of(learnt, held)} points, at {ratio:.2g} times the multiply-adds."
    )


DEMO = Study(
    name="demo",
    title="Learnt strides on handwritten digits, from poor initial ones",
    data="digits",
    columns=("network",),
    cases=_cases,
    report=_report,
    introduction=INTRODUCTION,
)
