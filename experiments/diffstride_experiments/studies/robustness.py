"""Do learnt strides make up for poor initial ones? Accuracy by initial strides and method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import diffstride_plotting as plotting
import numpy as np

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.options import Stride
from diffstride_experiments.plot import COLOURS, png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, draw_by_category, style
from diffstride_experiments.studies.seeds import of_seeds, with_more
from diffstride_experiments.studies.study import Case, DataKind, Outcome, Report, Study
from diffstride_experiments.studies.summary import (
    Difference,
    Row,
    Spread,
    costs_table,
    group,
    markdown_table,
    strides_table,
)
from diffstride_experiments.studies.width import cost, least_cost

__all__ = ["MEAN", "Robustness", "random_strides"]

FIXED: tuple[MethodName, ...] = ("conv", "spectral")
REFERENCE: MethodName = "diffstride"
BUDGET: MethodName = "diffstride-budget"
COMPARED = (*FIXED, REFERENCE, BUDGET)
BUDGET_MARGIN = 1.05
"""Smallest budget, as a multiple of the fewest multiply-adds that strides can reach."""

Start = tuple[Stride, ...]
MEAN = "mean ± sd over starts"


def random_strides(count: int) -> tuple[Start, ...]:
    """Draw initial strides of three places, uniformly from 1 to 4 and always the same."""
    draws = np.random.default_rng(0).uniform(1, 4, (count, 3)).round(2)
    return tuple(map(tuple, draws.tolist()))


@dataclass(frozen=True)
class Robustness:
    """Study of the initial strides.

    Attributes
    ----------
    name, title, data
        See `Study`.
    starts : mapping of str to sequence of stride
        Initial strides by name.
    more_seeds : set of str
        Starts with two more seeds.
    splits : sequence of mapping of str to Any
        Options that split the data into training and test samples. Each run is repeated with each
        split, and rows are means over the splits. By default there is one split.
    axes : pair of str
        What height and width stand for.
    published : mapping of str to str
        The paper's accuracies in percent for a start, or for all starts under `MEAN`: strided
        convolution, spectral pooling and DiffStride.
    published_caption : str
        Heading of the column with these accuracies.
    """

    name: str
    title: str
    data: DataKind
    starts: Mapping[str, Start]
    more_seeds: frozenset[str] = frozenset()
    splits: Sequence[Mapping[str, Any]] = ({},)
    axes: tuple[str, str] = ("height", "width")
    published: Mapping[str, str] = field(default_factory=dict)
    published_caption: str = ""

    def study(self) -> Study:
        """Return the study."""
        return Study(
            name=self.name,
            title=self.title,
            data=self.data,
            columns=("initial strides", "network"),
            cases=self._cases,
            report=self._report,
        )

    def _cases(self, base: Config, seeds: Sequence[int]) -> list[Case]:
        cases = []
        for start, strides in self.starts.items():
            at_start = changed(base, {"model.strides": strides})
            strided = changed(at_start, {"methods": ("conv",)})
            shape = INPUT_SHAPES[self.data]
            price: float | str = float(cost(strided, shape))
            # A strided convolution may cost less than the smallest feature maps and their resizing.
            if price < BUDGET_MARGIN * least_cost(strided.model, shape):
                price = "initial"
            rows: dict[str, Mapping[str, Any]] = {
                METHODS[method].label: {"methods": (method,)} for method in COMPARED
            }
            rows[METHODS[BUDGET].label] = {"methods": (BUDGET,), "training.budget": price}
            own = with_more(seeds) if start in self.more_seeds else seeds
            for label, options in rows.items():
                for split in self.splits:
                    cases += of_seeds((start, label), changed(at_start, {**options, **split}), own)
        return cases

    def _report(self, outcomes: Sequence[Outcome]) -> Report:
        rows = group(outcomes)
        parts = [
            "## Accuracy\n\nOf the test samples, %; mean ± standard deviation over the seeds:\n",
            self._accuracies(rows),
            f"Strided convolution rounds its strides. {METHODS[BUDGET].label}: the loss holds the "
            "network at the multiply-adds of strided convolution at the same strides, or, where no "
            "strides reach that, at its own at the initial ones.\n",
            "How far the learnt networks are ahead of the fixed ones, in percentage points, from "
            "the same initial weights and samples; mean ± standard error over the seeds:\n",
            self._differences(rows),
            "## What it costs\n\nMultiply-adds of the forward pass, at the initial → at the learnt "
            "strides, and summed over the training; seconds on one thread:\n",
            costs_table(("initial strides", "network"), rows.values()),
            "## Learnt strides\n",
            strides_table(("initial strides", "network"), rows.values(), self.axes),
        ]
        markdown = "\n".join(parts)
        return Report(
            markdown,
            {"accuracy": self._accuracy_figure(rows), "strides": self._strides_figure(rows)},
        )

    def _compared(self, rows: Mapping[tuple[str, ...], Row], method: MethodName) -> list[Row]:
        return [rows[start, METHODS[method].label] for start in self.starts]

    def _accuracies(self, rows: Mapping[tuple[str, ...], Row]) -> str:
        header = ["initial strides", *(METHODS[method].label for method in COMPARED)]
        columns = [self._compared(rows, method) for method in COMPARED]
        lines = [
            [start, *(f"{column[index].accuracy:.1f}" for column in columns)]
            for index, start in enumerate(self.starts)
        ]
        means = [[row.accuracy.mean for row in column] for column in columns]
        lines.append([MEAN, *(f"{Spread.of(values):.1f}" for values in means)])
        lines.append(
            ["best - worst start", *(f"{max(values) - min(values):.1f}" for values in means)]
        )
        if self.published:
            header.append(self.published_caption)
            for line in lines:
                line.append(self.published.get(line[0], ""))
        return markdown_table(header, lines)

    def _differences(self, rows: Mapping[tuple[str, ...], Row]) -> str:
        pairs = [(method, fixed) for method in (REFERENCE, BUDGET) for fixed in FIXED]
        return markdown_table(
            [
                "initial strides",
                *(f"{METHODS[a].label} - {METHODS[b].label}" for a, b in pairs),
            ],
            (
                [
                    start,
                    *(
                        str(
                            Difference.of(
                                rows[start, METHODS[a].label], rows[start, METHODS[b].label]
                            )
                        )
                        for a, b in pairs
                    ),
                ]
                for start in self.starts
            ),
        )

    def _accuracy_figure(self, rows: Mapping[tuple[str, ...], Row]) -> bytes:
        figure = plotting.make_figure(7.5, 6.5)
        top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        series = {style(method): self._compared(rows, method) for method in COMPARED}
        draw_by_category(top, list(self.starts), series, lambda row: row.accuracy)
        draw_by_category(bottom, list(self.starts), series, lambda row: row.multiply_adds)
        top.set_ylabel("test accuracy, %")
        bottom.set_ylabel("multiply-adds per sample\nat the end, millions")
        bottom.set_yscale("log")
        bottom.yaxis.set_major_formatter("{x:g}")
        bottom.set_xlabel("initial strides of the three layers")
        plotting.legend_below(figure, top)
        return png(figure, DPI)

    def _strides_figure(self, rows: Mapping[tuple[str, ...], Row]) -> bytes:
        count = len(self._compared(rows, REFERENCE)[0].strides)
        figure = plotting.make_figure(3 * count, 3.4)
        panels = figure.subplots(1, count, sharex=True, sharey=True)
        for place, panel in enumerate(panels):
            for method in (REFERENCE, BUDGET):
                outcomes = [o for row in self._compared(rows, method) for o in row.outcomes]
                for axis, (name, marker) in enumerate(zip(self.axes, "ox", strict=True)):
                    panel.plot(
                        [outcome.first_strides[place][axis] for outcome in outcomes],
                        [outcome.strides[place][axis] for outcome in outcomes],
                        marker,
                        markersize=5,
                        fillstyle="none",
                        color=COLOURS[method],
                        label=f"{METHODS[method].label}, {name}",
                    )
            panel.axline((1, 1), slope=1, color=plotting.GREY, linewidth=1)
            panel.set_title(f"layer {place + 1}", fontsize="medium")
            panel.set_xlabel("initial stride")
        panels[0].set_ylabel("learnt stride")
        plotting.legend_below(figure, panels[0])
        return png(figure, DPI)
