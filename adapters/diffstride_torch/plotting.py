"""Plots of a model's strides. They need Matplotlib, which the extra ``plot`` installs.

Each function returns a Matplotlib figure without a window. A notebook shows it, and
``figure.savefig`` writes it to a file.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING

import diffstride_plotting as plotting
import numpy as np
import torch
from diffstride_backends.torch_backend import whole

from diffstride_core.arguments import normalized_axes
from diffstride_torch.modules import DiffStride, DiffStride2d
from diffstride_torch.network.summary import StrideSummary, last_plan, named_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def plot_windows(model: torch.nn.Module) -> Figure:
    """Plot the windows of a model's DiffStride layers: a row per layer, a column per axis.

    Parameters
    ----------
    model : torch.nn.Module
        A model or a layer. The sizes are those of the last forward pass. Layers without a forward
        pass are left out.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the model has no DiffStride layer, or none that has seen an input.
    """
    rows = [(layer, names) for layer, names in named_layers(model).items() if last_plan(layer)]
    if not rows:
        raise ValueError(
            "model must have seen an input, got one whose DiffStride layers have seen none: call "
            "it first"
        )
    columns = max(layer.rank for layer, _ in rows)
    figure = plotting.make_figure(1 + 3.6 * columns, 0.8 + 1.9 * len(rows))
    grid = figure.subplots(len(rows), columns, squeeze=False)
    for panels, (layer, names) in zip(grid, rows, strict=True):
        axes = layer.settings.axes
        for panel, axis, window in zip(panels, axes, _windows(layer), strict=False):
            plotting.draw_window(panel, window)
            sizes = f"{window.size} → {window.output_size}"
            title = f"{names[0]}, axis {axis}: S = {window.stride:.2f}, {sizes}"
            panel.set_title(title.removeprefix(", "), fontsize="medium")
            panel.label_outer()
            panel.tick_params(labelbottom=True)
        for panel in panels[len(axes) :]:
            panel.set_visible(False)
    plotting.legend_below(figure, grid[0, 0])
    return figure


def plot_stride_history(history: Sequence[StrideSummary]) -> Figure:
    """Plot a model's strides over the training.

    Parameters
    ----------
    history : sequence of StrideSummary
        Summaries of one model from `stride_summary`, for example before training and after each
        epoch.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    ValueError
        If the history is empty, its entries have different layers, or its layers have different
        numbers of axes.
    """
    if not history:
        raise ValueError("history must have at least one entry, got none")
    names = [row.names for row in history[0].rows]
    for i, entry in enumerate(history):
        if [row.names for row in entry.rows] != names:
            raise ValueError(
                f"history must have the same layers in each entry, {names}, got "
                f"{[row.names for row in entry.rows]} in entry {i}"
            )
    counts = {len(row.axes) for entry in history for row in entry.rows}
    if len(counts) > 1:
        raise ValueError(
            f"history must have the same number of axes in each layer, got {sorted(counts)}"
        )
    figure = plotting.make_figure(7.0, 3.2)
    panel = figure.subplots()
    plotting.draw_strides(
        panel,
        range(len(history)),
        [[[axis.stride for axis in row.axes] for row in entry.rows] for entry in history],
        [several[0] or "layer" for several in names],
        [f"axis {axis.axis}" for axis in history[0].rows[0].axes],
    )
    panel.set_xlabel("entry of the history")
    panel.set_ylabel("stride S")
    figure.legend(loc="outside right center", frameon=False)
    return figure


@torch.no_grad()
def plot_kept_spectrum(layer: DiffStride2d, image: torch.Tensor) -> Figure:
    """Plot what a layer keeps of an image: the image, its spectrum with the window, the output.

    Parameters
    ----------
    layer : DiffStride2d
        The layer. Its first axis is drawn downwards.
    image : torch.Tensor, shape (H, W), or with one more axis of size 1 or 3
        Grey or colour image on the layer's device. The layer resizes its own `axes` of it.

    Returns
    -------
    matplotlib.figure.Figure

    Raises
    ------
    TypeError
        If the layer is not a `DiffStride2d`.
    ValueError
        If the image has another shape.

    Notes
    -----
    The spectrum is that of the mean over the colours. The output is scaled as with the norm
    "forward", which keeps the brightness of an image.
    """
    if not isinstance(layer, DiffStride2d):
        raise TypeError(f"layer must be a DiffStride2d, got {type(layer).__name__}")
    shape = tuple(image.shape)
    if len(shape) not in (2, 3):
        raise ValueError(f"image must have 2 or 3 axes, got shape {shape}")
    axes = normalized_axes(layer.settings.axes, shape)
    # A copy, since the sizes that a layer sees bound its strides, and this image should not.
    own = copy.deepcopy(layer)
    before = np.moveaxis(image.cpu().double().numpy(), axes, (0, 1))
    after = np.moveaxis(own(image).cpu().double().numpy(), axes, (0, 1))
    if before.shape[2:] not in ((), (1,), (3,)):
        raise ValueError(
            f"image must have 1 or 3 colours besides the layer's axes {layer.settings.axes}, got "
            f"shape {shape}"
        )
    plan = last_plan(own)
    assert plan is not None
    figure = plotting.make_figure(9.6, 4.0)
    panels = figure.subplots(1, 3)
    plotting.draw_kept_spectrum(panels, before, after / plan.scale, _windows(own))
    plotting.legend_below(figure, panels[1])
    return figure


def _windows(layer: DiffStride) -> tuple[plotting.AxisWindow, ...]:
    strides, plan = whole(layer.strides.detach()).tolist(), last_plan(layer)
    assert plan is not None
    return plotting.axis_windows(layer.settings, plan, strides)
