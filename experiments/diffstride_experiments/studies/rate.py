"""Which stride rate, schedule and smoothness suit every start? On held-out training images."""

from collections.abc import Sequence
from typing import Any

import diffstride_plotting as plotting

from diffstride_experiments.config import Config
from diffstride_experiments.plot import png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI
from diffstride_experiments.studies.seeds import of_seeds
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import costs_and_strides, group
from diffstride_experiments.studies.width import cost

__all__ = ["RATE"]

COLUMNS = ("training", "stride rate", "initial strides")
STARTS = {"1, 3, 1": (1.0, 3.0, 1.0), "4, 4, 4": (4.0, 4.0, 4.0)}
BUDGETED = (2.0, 2.0, 2.0)
"""The budget is the cost of strided convolutions with these strides."""
ADAMW = {
    "optimizer.name": "adamw",
    "optimizer.learning_rate": 0.005,
    "optimizer.weight_decay": 0.01,
}
TRAININGS: dict[str, tuple[dict[str, Any], tuple[float, ...]]] = {
    "SGD, one-cycle": ({}, (0.1, 0.3, 1.0)),
    "SGD, cosine": ({"optimizer.schedule": "cosine"}, (0.3,)),
    "SGD, one-cycle, smoothness 0.25": ({"model.smoothness": 0.25}, (0.3,)),
    "SGD, one-cycle, smoothness 1": ({"model.smoothness": 1.0}, (0.3,)),
    "AdamW, one-cycle": (ADAMW, (0.03, 0.1)),
}
WEIGHTS = (0.1, 1.0)
"""Weights of the loss term for the budget, each with the first of the trainings."""


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    base = changed(base, {"methods": ("diffstride",), "evaluate_on": "validation"})
    rows: list[tuple[str, float, dict[str, Any]]] = [
        (training, rate, {**options, "optimizer.stride_learning_rate": rate})
        for training, (options, rates) in TRAININGS.items()
        for rate in rates
    ]
    strided = changed(base, {"methods": ("conv",), "model.strides": BUDGETED})
    budget = float(cost(strided, INPUT_SHAPES["images"]))
    rows += [
        (
            f"SGD, one-cycle, budget x {weight:g}",
            base.optimizer.stride_learning_rate,
            {
                "methods": ("diffstride-budget",),
                "training.budget": budget,
                "training.budget_weight": weight,
            },
        )
        for weight in WEIGHTS
    ]
    return [
        case
        for training, rate, options in rows
        for start, strides in STARTS.items()
        for case in of_seeds(
            (training, f"{rate:g}", start),
            changed(base, {"model.strides": strides, **options}),
            seeds,
        )
    ]


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = group(outcomes)
    figure = plotting.make_figure(7.5, 6.5)
    panels = figure.subplots(1, 2, sharey=True)
    kinds = list(dict.fromkeys(labels[:2] for labels in rows))
    for start in STARTS:
        chosen = [rows[*kind, start] for kind in kinds]
        for panel, values in (
            (panels[0], [row.accuracy for row in chosen]),
            (panels[1], [row.multiply_adds for row in chosen]),
        ):
            panel.errorbar(
                [value.mean for value in values],
                range(len(kinds)),
                xerr=[value.deviation for value in values],
                fmt="o",
                capsize=2,
                label=f"from {start}",
            )
    panels[0].set_yticks(
        range(len(kinds)), [f"{training}\nstride rate {rate}" for training, rate in kinds]
    )
    panels[0].invert_yaxis()
    panels[0].set_xlabel("validation accuracy, %")
    panels[1].set_xlabel("multiply-adds per sample\nat the end, millions")
    plotting.legend_below(figure, panels[0])
    markdown = costs_and_strides(COLUMNS, list(rows.values()))
    return Report(markdown, {"rates": png(figure, DPI)})


RATE = Study(
    name="rate",
    title="The learning rate of the strides (CIFAR10 images held out from training)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    report=_report,
)
