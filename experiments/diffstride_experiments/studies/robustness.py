"""Do learnt strides make up for poor initial ones? Accuracy over initial strides, per method."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from diffstride_backends import plotting

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.options import Stride
from diffstride_experiments.plot import COLOURS, png
from diffstride_experiments.studies.bases import INPUT_SHAPES
from diffstride_experiments.studies.budget import with_budget
from diffstride_experiments.studies.changes import changed
from diffstride_experiments.studies.figures import DPI, Style, draw_against_cost, draw_by_category
from diffstride_experiments.studies.study import Case, DataKind, Outcome, Report, Study
from diffstride_experiments.studies.summary import (
    Row,
    Spread,
    group,
    markdown_table,
    strides_table,
)

__all__ = ["MEAN", "Robustness", "random_strides"]

COMPARED: tuple[MethodName, ...] = ("conv", "spectral", "diffstride-paper", "diffstride")
REFERENCE: MethodName = "diffstride"
WIDENED: tuple[MethodName, ...] = ("conv", "spectral")

Start = tuple[Stride, ...]
MEAN = "mean ± sd over starts"
EQUAL_STRIDE, EQUAL_COST = "equal initial strides", "equal multiply-adds"


def random_strides(count: int) -> tuple[Start, ...]:
    """Draw initial strides of three places, evenly between 1.5 and 3.5; always the same ones."""
    draws = np.random.default_rng(0).uniform(1.5, 3.5, (count, 3)).round(2)
    return tuple(map(tuple, draws.tolist()))


@dataclass(frozen=True)
class Robustness:
    """Study of the initial strides.

    Attributes
    ----------
    name, title, data
        See `Study`.
    starts : mapping of str to sequence of stride
        Initial strides by their names.
    axes : pair of str
        What height and width are.
    published : mapping of str to str
        What the paper states for a start, or for all of them under `MEAN`: accuracies in percent of
        strided convolution, spectral pooling and DiffStride.
    published_caption : str
        Heading of that column.
    """

    name: str
    title: str
    data: DataKind
    starts: Mapping[str, Start]
    axes: tuple[str, str] = ("height", "width")
    published: Mapping[str, str] = field(default_factory=dict)
    published_caption: str = ""

    def study(self) -> Study:
        """Return the study."""
        return Study(
            name=self.name,
            title=self.title,
            data=self.data,
            columns=("comparison", "initial strides", "method"),
            cases=self._cases,
            follow_up=self._at_equal_cost,
            report=self._report,
        )

    def _cases(self, base: Config, seeds: Sequence[int]) -> list[Case]:
        return [
            Case(
                (EQUAL_STRIDE, start, METHODS[method].label),
                changed(base, {"methods": (method,), "model.strides": strides, "seed": seed}),
            )
            for start, strides in self.starts.items()
            for method in COMPARED
            for seed in seeds
        ]

    def _at_equal_cost(
        self, base: Config, seeds: Sequence[int], outcomes: Sequence[Outcome]
    ) -> list[Case]:
        """Return runs of wider networks, which cost what the reference ends with."""
        rows = group(outcomes)
        cases = []
        for start, strides in self.starts.items():
            reference = rows[EQUAL_STRIDE, start, METHODS[REFERENCE].label]
            budget = 1e6 * reference.multiply_adds.mean
            for method in WIDENED:
                config = changed(base, {"methods": (method,), "model.strides": strides})
                wide = with_budget(config, budget, INPUT_SHAPES[self.data])
                cases += [
                    Case((EQUAL_COST, start, METHODS[method].label), changed(wide, {"seed": seed}))
                    for seed in seeds
                ]
        return cases

    def _report(self, outcomes: Sequence[Outcome]) -> Report:
        rows = group(outcomes)
        equal_stride = {
            method: [rows[EQUAL_STRIDE, start, METHODS[method].label] for start in self.starts]
            for method in COMPARED
        }
        equal_cost = {
            method: [rows[EQUAL_COST, start, METHODS[method].label] for start in self.starts]
            for method in WIDENED
        } | {REFERENCE: equal_stride[REFERENCE]}
        parts = [
            "## At equal initial strides\n\nAccuracy, %:\n",
            self._accuracies(equal_stride, self.published),
            "Strided convolution rounds its strides.\n",
            "Multiply-adds per sample, 10⁶, at the initial and at the learnt strides:\n",
            self._costs(equal_stride),
            "## At equal multiply-adds\n\nStrided convolution and spectral pooling, as wide as it "
            f"takes to cost what {METHODS[REFERENCE].label} ends with. Accuracy, %:\n",
            self._accuracies(equal_cost),
            "Multiply-adds per sample, 10⁶:\n",
            self._costs(equal_cost),
            "## Learnt strides\n",
            strides_table(
                ("initial strides", "method"),
                [Row(row.labels[1:], row.outcomes) for row in rows.values()],
                self.axes,
            ),
        ]
        return Report(
            "\n".join(parts),
            {
                "accuracy": self._accuracy_figure(equal_stride, equal_cost),
                "strides": self._strides_figure(equal_stride),
            },
        )

    def _accuracies(
        self,
        by_method: Mapping[MethodName, Sequence[Row]],
        published: Mapping[str, str] | None = None,
    ) -> str:
        header = ["initial strides", *(METHODS[method].label for method in by_method)]
        lines = [
            [start, *(f"{rows[index].accuracy:.1f}" for rows in by_method.values())]
            for index, start in enumerate(self.starts)
        ]
        means = {method: [row.accuracy.mean for row in rows] for method, rows in by_method.items()}
        lines.append([MEAN, *(f"{Spread.of(m):.1f}" for m in means.values())])
        lines.append(["best - worst start", *(f"{max(m) - min(m):.1f}" for m in means.values())])
        if published:
            header.append(self.published_caption)
            for line in lines:
                line.append(published.get(line[0], ""))
        return markdown_table(header, lines)

    def _costs(self, by_method: Mapping[MethodName, Sequence[Row]]) -> str:
        header = ["initial strides", *(METHODS[method].label for method in by_method)]
        return markdown_table(
            header,
            (
                [start, *(rows[index].cost for rows in by_method.values())]
                for index, start in enumerate(self.starts)
            ),
        )

    def _accuracy_figure(
        self,
        equal_stride: Mapping[MethodName, Sequence[Row]],
        equal_cost: Mapping[MethodName, Sequence[Row]],
    ) -> bytes:
        figure = plotting.make_figure(11, 7)
        top, bottom = figure.subplots(2, 2, width_ratios=(3, 2))
        for (left, right), by_method, title in (
            (top, equal_stride, "equal initial strides"),
            (bottom, equal_cost, "equal multiply-adds: others widened"),
        ):
            series = {_style(method): rows for method, rows in by_method.items()}
            draw_by_category(left, list(self.starts), series)
            draw_against_cost(right, series)
            left.set_title(title, fontsize="medium")
            left.set_ylabel("accuracy ± sd, %")
            right.sharey(left)
            left.tick_params("x", labelsize="small")
        bottom[0].set_xlabel("initial strides")
        plotting.legend_below(figure, top[0])
        return png(figure, DPI)

    def _strides_figure(self, by_method: Mapping[MethodName, Sequence[Row]]) -> bytes:
        learnt = [method for method in by_method if METHODS[method].pooling == "diffstride"]
        count = len(by_method[learnt[0]][0].strides)
        figure = plotting.make_figure(3.6 * count, 3.4)
        panels = figure.subplots(1, count, sharex=True, sharey=True)
        for place, panel in enumerate(panels):
            for method in learnt:
                for axis, (name, marker) in enumerate(zip(self.axes, "ox", strict=True)):
                    outcomes = [o for row in by_method[method] for o in row.outcomes]
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
            panel.set_title(f"place {place + 1}", fontsize="medium")
            panel.set_xlabel("initial stride")
        panels[0].set_ylabel("learnt stride")
        plotting.legend_below(figure, panels[0])
        return png(figure, DPI)


def _style(method: MethodName) -> Style:
    markers = {"conv": "s", "spectral": "o", "diffstride-paper": "v", "diffstride": "D"}
    return METHODS[method].label, COLOURS[method], markers[method]
