"""Give the cost, start anywhere: where learnt strides end under a budget."""

import itertools
from collections.abc import Mapping, Sequence

import diffstride_plotting as plotting
import torch

from diffstride_experiments.config import Config
from diffstride_experiments.plot import png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI
from diffstride_experiments.studies.seeds import of_seeds
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import (
    Row,
    costs_table,
    group,
    markdown_table,
    strides_table,
)
from diffstride_experiments.studies.width import cost_of_strides

__all__ = ["BUDGET", "fixed_grid"]

COLUMNS = ("target, 10⁶", "strides")
STARTS = {
    "1, 3, 1": (1.0, 3.0, 1.0),
    "2, 2, 2": (2.0, 2.0, 2.0),
    "3, 1, 3": (3.0, 1.0, 3.0),
    "4, 4, 4": (4.0, 4.0, 4.0),
    "1, 1, 4": (1.0, 1.0, 4.0),
}
SEARCHED = 3e6
"""The target that all starts share, and at which fixed strides are searched."""
TARGETS = {1.5e6: ("1, 3, 1", "4, 4, 4"), SEARCHED: tuple(STARTS), 6e6: ("1, 3, 1", "4, 4, 4")}
CHOICES = (1.0, 1.5, 2.0, 3.0, 4.0)
TOLERANCE = 0.1
FIXED, ENDS = "fixed at ", "fixed at the end of "


def fixed_grid(config: Config) -> list[tuple[float, ...]]:
    """Return the fixed strides of a grid whose cost is about `SEARCHED`.

    Parameters
    ----------
    config : Config
        Options of the network.

    Returns
    -------
    list of tuple of float
        All combinations of `CHOICES` within `TOLERANCE` of `SEARCHED` multiply-adds.
    """
    penalty = cost_of_strides(config.model, INPUT_SHAPES["images"])
    found = []
    for strides in itertools.product(CHOICES, repeat=len(penalty.layers)):
        with torch.no_grad():
            for layer, stride in zip(penalty.layers, strides, strict=True):
                layer.strides.fill_(stride)
        if abs(penalty.multiply_adds() / SEARCHED - 1) <= TOLERANCE:
            found.append(strides)
    return found


def _cases(base: Config, seeds: Sequence[int]) -> list[Case]:
    cases = []
    for target, starts in TARGETS.items():
        for start in starts:
            options = {"training.budget": target, "model.strides": STARTS[start]}
            config = changed(base, {"methods": ("diffstride-budget",), **options})
            cases += of_seeds((f"{target / 1e6:g}", f"from {start}"), config, seeds)
    for strides in fixed_grid(base):
        cases += _held(base, seeds, f"{FIXED}{_listed(strides)}", strides)
    return cases


def _held(
    base: Config, seeds: Sequence[int], label: str, strides: Sequence[float | tuple[float, float]]
) -> list[Case]:
    config = changed(base, {"methods": ("diffstride-held",), "model.strides": tuple(strides)})
    return of_seeds((f"{SEARCHED / 1e6:g}", label), config, seeds)


def _ends(base: Config, seeds: Sequence[int], outcomes: Sequence[Outcome]) -> list[Case]:
    """Return runs whose strides are held at the final strides of the first seed."""
    cases = []
    for labels, row in group(outcomes).items():
        if labels[0] == f"{SEARCHED / 1e6:g}" and labels[1].startswith("from "):
            strides = [
                (round(height, 2), round(width, 2)) for height, width in row.outcomes[0].strides
            ]
            cases += _held(base, seeds, f"{ENDS}{labels[1].removeprefix('from ')}", strides)
    return cases


def _report(outcomes: Sequence[Outcome]) -> Report:
    rows = group(outcomes)
    searched = [row for row in rows.values() if row.labels[1].startswith(FIXED)]
    grid = [row for row in searched if not row.labels[1].startswith(ENDS)]
    learnt = [row for row in rows.values() if row.labels[1].startswith("from ")]
    at_target = [row for row in learnt if row.labels[0] == f"{SEARCHED / 1e6:g}"]
    markdown = "\n".join(
        [
            "## Learnt under a budget\n\nMultiply-adds at the initial → at the learnt strides:\n",
            costs_table(COLUMNS, learnt),
            "## Where the strides end\n",
            strides_table(COLUMNS, learnt, ("height", "width")),
            f"## A search of fixed strides instead\n\nAll combinations of {_listed(CHOICES)} "
            f"within {TOLERANCE:.0%} of {SEARCHED / 1e6:g} million multiply-adds, and the ends of "
            "the first seed's learnt strides, held from the start:\n",
            costs_table(COLUMNS, searched),
            _search(grid, at_target),
        ]
    )
    return Report(
        markdown,
        {
            "trajectories": _trajectories({row.labels: row for row in at_target}),
            "targets": _targets(rows),
        },
    )


def _listed(numbers: Sequence[float]) -> str:
    return ", ".join(f"{number:g}" for number in numbers)


def _search(grid: Sequence[Row], learnt: Sequence[Row]) -> str:
    """Return a table of what a search costs, beside one training under a budget."""

    def total(rows: Sequence[Row]) -> float:
        return sum(row.mean(lambda outcome: outcome.seconds) for row in rows)

    accuracies = sorted(row.accuracy.mean for row in grid)
    best = max(grid, key=lambda row: row.accuracy.mean)
    return markdown_table(
        ["", "training runs", "seconds", "accuracy, %"],
        [
            [
                "search of fixed strides",
                str(len(grid)),
                f"{total(grid):.0f}",
                f"{accuracies[0]:.1f} to {accuracies[-1]:.1f}, best {best.labels[1]}",
            ],
            [
                "one training under the budget, from any of the starts",
                "1",
                f"{total(learnt) / len(learnt):.0f}",
                f"{min(row.accuracy.mean for row in learnt):.1f} to "
                f"{max(row.accuracy.mean for row in learnt):.1f}",
            ],
        ],
    )


def _trajectories(rows: Mapping[tuple[str, ...], Row]) -> bytes:
    """Draw cost and strides over the training, with one line for each run."""
    count = len(next(iter(rows.values())).strides)
    figure = plotting.make_figure(7.5, 2.3 * (count + 1))
    panels = figure.subplots(count + 1, 1, sharex=True)
    for index, row in enumerate(rows.values()):
        for outcome in row.outcomes:
            steps = [point.step for point in outcome.trajectory]
            style = {"color": f"C{index}", "linewidth": 1}
            label = row.labels[1] if outcome is row.outcomes[0] else None
            costs = [point.multiply_adds / 1e6 for point in outcome.trajectory]
            panels[0].plot(steps, costs, label=label, **style)
            for place, panel in enumerate(panels[1:]):
                for axis, line in enumerate("-:"):
                    values = [point.strides[place][axis] for point in outcome.trajectory]
                    panel.plot(steps, values, line, **style)
    panels[0].axhline(SEARCHED / 1e6, color=plotting.GREY, linewidth=1)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].set_ylabel("multiply-adds per\nsample, millions")
    for place, panel in enumerate(panels[1:], start=1):
        panel.set_ylabel(f"stride {place}")
    panels[1].set_title("height solid, width dotted", fontsize="small")
    panels[-1].set_xlabel("training step")
    plotting.legend_below(figure, panels[0])
    return png(figure, DPI)


def _targets(rows: Mapping[tuple[str, ...], Row]) -> bytes:
    """Draw accuracy against final multiply-adds, for every start and for fixed strides."""
    figure = plotting.make_figure(7.5, 4.8)
    axes = figure.subplots()
    for index, start in enumerate(STARTS):
        chosen = [
            rows[f"{target / 1e6:g}", f"from {start}"]
            for target, starts in TARGETS.items()
            if start in starts
        ]
        axes.errorbar(
            [row.multiply_adds.mean for row in chosen],
            [row.accuracy.mean for row in chosen],
            yerr=[row.accuracy.deviation for row in chosen],
            fmt="o-",
            markersize=4,
            linewidth=1,
            color=f"C{index}",
            label=f"learnt, from {start}",
        )
    fixed = [row for row in rows.values() if row.labels[1].startswith(FIXED)]
    for label, marker, at_ends in (
        ("fixed strides of the grid", "x", False),
        ("fixed where learnt strides ended", "+", True),
    ):
        chosen = [row for row in fixed if row.labels[1].startswith(ENDS) == at_ends]
        axes.plot(
            [row.multiply_adds.mean for row in chosen],
            [row.accuracy.mean for row in chosen],
            marker,
            markersize=8,
            color=plotting.BLACK if at_ends else plotting.GREY,
            label=label,
        )
    axes.set_xlabel("multiply-adds per sample at the end, millions")
    axes.set_ylabel("test accuracy, %")
    plotting.legend_below(figure, axes)
    return png(figure, DPI)


BUDGET = Study(
    name="budget",
    title="Give the cost, start anywhere (CIFAR10 images)",
    data="images",
    columns=COLUMNS,
    cases=_cases,
    follow_up=_ends,
    report=_report,
)
