"""The figure of a run: accuracy, cost and strides over the training."""

from collections.abc import Sequence
from io import BytesIO
from typing import Any

import diffstride_plotting as plotting
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS
from diffstride_experiments.report import Result

__all__ = ["COLOURS", "figure_png", "png", "scale_costs"]

COLOURS = {
    "conv": plotting.GREY,
    "spectral": plotting.BLUE,
    "diffstride": plotting.VERMILLION,
    "diffstride-held": plotting.BLACK,
    "diffstride-penalised": plotting.GREEN,
    "diffstride-budget": plotting.ORANGE,
    "diffstride-paper": plotting.PURPLE,
    "diffstride-tensorflow": plotting.SKY,
}


def figure_png(
    results: Sequence[Result], histories: Sequence[Sequence[dict[str, Any]]], config: Config
) -> bytes:
    """Draw accuracy curves, accuracy against cost, and the strides of each learnt method.

    Parameters
    ----------
    results : sequence of Result
        Outcomes.
    histories : sequence of sequences of dict
        Each method's metrics by epoch, in the same order.
    config : Config
        Options of the run.

    Returns
    -------
    bytes
        The figure as PNG.
    """
    learnt = [
        (result, history)
        for result, history in zip(results, histories, strict=True)
        if METHODS[result.method].learns_strides
    ]
    figure = plotting.make_figure(10, 6.4 if learnt else 3.4)
    parts = figure.subfigures(2 if learnt else 1, 1, squeeze=False)[:, 0]
    curves, trade_off = parts[0].subplots(1, 2)
    _draw_curves(curves, results, histories, config)
    _draw_trade_off(trade_off, results, config)
    if learnt:
        panels = parts[1].subplots(1, len(learnt), sharey=True, squeeze=False)[0]
        for panel, (result, history) in zip(panels, learnt, strict=True):
            _draw_strides(panel, result, history)
        panels[0].set_ylabel("stride")
        plotting.legend_below(parts[1], panels[0])
    return png(figure, dpi=160)


def png(figure: Figure, dpi: int) -> bytes:
    """Return a finished figure as PNG, with open frames."""
    for axes in figure.axes:
        plotting.open_frame(axes)
    buffer = BytesIO()
    figure.savefig(buffer, dpi=dpi, format="png")
    return buffer.getvalue()


def scale_costs(axes: Axes) -> None:
    """Make the horizontal axis logarithmic, with plain numbers at 1, 2 and 5."""
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())


def _draw_curves(
    axes: Axes,
    results: Sequence[Result],
    histories: Sequence[Sequence[dict[str, Any]]],
    config: Config,
) -> None:
    for result, history in zip(results, histories, strict=True):
        axes.plot(
            [metrics["epoch"] for metrics in history],
            [100 * metrics["accuracy"] for metrics in history],
            marker="o",
            markersize=3,
            color=COLOURS[result.method],
            label=result.label,
        )
    # The accuracies of the first epochs are far below the rest and would flatten the curves.
    final = [100 * result.accuracy for result in results]
    axes.set_ylim(max(0, min(final) - 12), min(100.5, max(final) + 1.5))
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_ylabel(f"{config.evaluate_on} accuracy, %")
    axes.legend(frameon=False, fontsize="small", loc="lower right")


def _draw_trade_off(axes: Axes, results: Sequence[Result], config: Config) -> None:
    for result in results:
        axes.errorbar(
            result.after.multiply_adds / 1e6,
            100 * result.accuracy,
            yerr=100 * result.standard_error,
            fmt="o",
            capsize=3,
            color=COLOURS[result.method],
        )
    scale_costs(axes)
    axes.set_xlabel("multiply-adds per sample after training, 10⁶")
    axes.set_ylabel(f"{config.evaluate_on} accuracy ± standard error, %")


def _draw_strides(axes: Axes, result: Result, history: Sequence[dict[str, Any]]) -> None:
    strides = [result.before.strides] + [metrics["strides"] for metrics in history]
    plotting.draw_strides(
        axes,
        [0] + [metrics["epoch"] for metrics in history],
        strides,
        [f"layer {place + 1}" for place in range(len(strides[0]))],
        ("height", "width"),
    )
    axes.set_title(result.label, fontsize="medium")
    axes.set_xlabel("epoch")
