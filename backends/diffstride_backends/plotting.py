"""Pictures of windows, strides and spectra, for every framework: NumPy and Matplotlib alone.

Every function draws into Axes that it is given; `make_figure` makes some to draw into without
pyplot, that is without global state and without a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffstride_backends.eager import EagerBackend
from diffstride_core.plan import Plan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import Settings
from diffstride_core.window import spread_strides

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "plots need Matplotlib, which comes with the extra 'plot': pip install 'diffstride[plot]'",
        name=error.name,
    ) from error

Floats = NDArray[np.floating]

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, VERMILLION = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, GREY = "#CC79A7", "#7F7F7F"

_OPS = EagerBackend(np.empty(0))


@dataclass(frozen=True)
class AxisWindow:
    """The window of one axis over all its frequencies, also those that are cropped.

    Attributes
    ----------
    size, output_size : int
        N and M.
    stride : float
        S, within its bounds.
    frequency : ndarray, shape (N or N + 1,)
        -(N//2), ..., N//2, in cycles per N samples.
    mask : ndarray, of the same shape
        mu.
    """

    size: int
    output_size: int
    stride: float
    frequency: NDArray[np.int64]
    mask: Floats


def axis_windows(
    settings: Settings, plan: Plan, strides: Sequence[float]
) -> tuple[AxisWindow, ...]:
    """Return the windows of a layer.

    Parameters
    ----------
    settings : Settings
    plan : Plan
        Of the size to show; both belong to the layer.
    strides : sequence of float
        The parameters: one per axis or one for all.

    Returns
    -------
    tuple of AxisWindow
    """
    sizes = tuple(axis.size for axis in plan.axes)
    whole = plan_diff_stride(
        replace(settings, cropping=False),
        tuple(axis.axis for axis in plan.axes),
        sizes,
        tuple(strides),
        shared=len(strides) == 1,
    )
    values = spread_strides(_OPS, np.asarray(strides, dtype=np.float64), len(sizes))
    return tuple(
        AxisWindow(
            axis.size,
            axis.output_size,
            axis.bounds.apply(float(stride)),
            np.arange(-(axis.size // 2), axis.size // 2 + 1),
            _mask(whole, i, stride),
        )
        for i, (axis, stride) in enumerate(zip(plan.axes, values, strict=True))
    )


def _mask(plan: Plan, index: int, stride: Any) -> Floats:
    """Return the core's mask of an axis at the frequencies -(N//2), ..., N//2."""
    axis = plan.axes[index]
    value = plan.window.mask(_OPS, axis, plan.smoothness, stride, stride).value
    basis = plan.window.terms(plan.axes)[0][index]
    bins, _, _ = basis.bins(basis.size, basis.output_size)
    half = axis.size // 2
    frequency = (bins + half) % axis.size - half
    mask = np.empty(2 * half + 1)
    # A bin stands for its mirror image too, unless that has a bin of its own.
    mask[half - frequency] = value
    mask[half + frequency] = value
    return mask


def make_figure(width: float, height: float) -> Figure:
    """Return an empty figure of a size in inches, laid out so that nothing overlaps."""
    # Compressed: images, of a fixed shape, would else be laid out as if they filled their panels.
    figure = Figure(figsize=(width, height), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def open_frame(axes: Axes) -> None:
    """Give axes a light grid and no frame above and to the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def legend_below(figure: Figure | SubFigure, axes: Axes) -> None:
    """Put one legend for all panels below them, with the labels of one of them."""
    lines, labels = axes.get_legend_handles_labels()
    columns = len(lines) if len(lines) < 5 else math.ceil(len(lines) / 2)
    figure.legend(lines, labels, loc="outside lower center", ncols=columns, frameon=False)


def draw_window(axes: Axes, window: AxisWindow) -> None:
    """Draw the window of one axis over frequency.

    The ramp, the edge N/(2S) of the pass band and what is cropped, beyond the output's Nyquist
    frequency M/2, are marked; the labels are there for a legend.
    """
    half = window.size / 2
    edge, nyquist = half / window.stride, window.output_size / 2
    # Where the window has its bins: between them there is nothing to see.
    marker = "o" if window.size <= 96 else None
    axes.plot(
        window.frequency, window.mask, color=BLUE, marker=marker, markersize=2.5, label="window μ"
    )
    slopes = np.diff(window.mask) != 0
    ramp = np.append(slopes, False) | np.append(False, slopes)
    axes.fill_between(
        window.frequency, window.mask, where=ramp, color=ORANGE, alpha=0.6, lw=0, label="ramp"
    )
    for sign in (-1, 1):
        axes.axvline(
            sign * edge,
            color=VERMILLION,
            linestyle="--",
            linewidth=1,
            label="N/2S" if sign > 0 else None,
        )
        axes.axvspan(
            sign * nyquist,
            sign * half,
            color=GREY,
            alpha=0.25,
            linewidth=0,
            label="cropped: |k| > M/2" if sign > 0 else None,
        )
    axes.set_xlim(-half, half)
    axes.set_ylim(-0.04, 1.1)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("frequency k, cycles per N samples")
    axes.set_ylabel("window μ")
    open_frame(axes)


def draw_strides(
    axes: Axes,
    steps: Sequence[float],
    strides: ArrayLike,
    layer_names: Sequence[str],
    axis_names: Sequence[str],
) -> None:
    """Draw the way of strides: a colour per layer, a line style per axis, labels for a legend.

    Parameters
    ----------
    axes : Axes
    steps : sequence of float, length T
        What the strides are drawn over, for example epochs.
    strides : array_like, shape (T, layers, axes)
    layer_names, axis_names : sequence of str
    """
    values = np.asarray(strides)
    colours = colormaps["viridis"](np.linspace(0.1, 0.8, len(layer_names)))
    marker = "o" if len(steps) <= 50 else None
    for i, (layer, colour) in enumerate(zip(layer_names, colours, strict=True)):
        for j, axis in enumerate(axis_names):
            axes.plot(
                steps,
                values[:, i, j],
                ("-", "--", ":")[j % 3],
                marker=marker,
                markersize=2.5,
                color=colour,
                label=f"{layer}, {axis}",
            )
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    open_frame(axes)


def draw_image(
    axes: Axes,
    image: Floats,
    limits: tuple[float, float] = (0.0, 1.0),
    view: tuple[int, int] | None = None,
) -> None:
    """Draw an image.

    Parameters
    ----------
    axes : Axes
    image : ndarray, shape (H, W) or (H, W, 1), in grey, or (H, W, 3)
    limits : (float, float)
        The values of black and white; what lies beyond is clipped.
    view : (int, int), optional
        Height and width to draw it in, by default its own: an output drawn in its input's view
        shows the same scene in larger pixels.
    """
    low, high = limits
    shown = np.clip((image - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    height, width = image.shape[:2] if view is None else view
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def draw_spectrum(axes: Axes, image: Floats) -> None:
    """Draw the logarithm of the amplitudes of an image of shape (height, width).

    Without the constant, which would outshine all else.
    """
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(image - image.mean())))
    height, width = image.shape
    top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    axes.imshow(np.log1p(amplitude), cmap="Greys", extent=(left, left + width, top + height, top))


def draw_crop(axes: Axes, windows: Sequence[AxisWindow], colour: str) -> None:
    """Outline in a spectrum what is kept of it.

    Solid where the windows of height and width together are 1/2, dashed at the output's Nyquist
    frequencies.
    """
    rows, columns = windows
    axes.contour(
        columns.frequency,
        rows.frequency,
        np.outer(rows.mask, columns.mask),
        levels=[0.5],
        colors=[colour],
        linewidths=1.5,
    )
    axes.add_patch(
        Rectangle(
            (-columns.output_size / 2, -rows.output_size / 2),
            columns.output_size,
            rows.output_size,
            fill=False,
            edgecolor=colour,
            linestyle="--",
            linewidth=1.5,
        )
    )


def draw_kept_spectrum(
    panels: Sequence[Axes], image: Floats, output: Floats, windows: Sequence[AxisWindow]
) -> None:
    """Draw an image, its spectrum with what is kept of it, and the output.

    Parameters
    ----------
    panels : sequence of Axes, length 3
    image : ndarray, shape (H, W), (H, W, 1) or (H, W, 3)
    output : ndarray
        Of as many dimensions, as bright as the image; drawn in the image's view.
    windows : sequence of AxisWindow, length 2
        Of height and width.
    """
    limits = float(image.min()), float(image.max())
    draw_image(panels[0], image, limits)
    draw_image(panels[2], output, limits, view=(image.shape[0], image.shape[1]))
    draw_spectrum(panels[1], image.reshape(*image.shape[:2], -1).mean(axis=2))
    draw_crop(panels[1], windows, VERMILLION)
    panels[1].set_xlabel("frequency, cycles per image")
    strides = ", ".join(f"{window.stride:.2f}" for window in windows)
    panels[0].set_title(f"input, {image.shape[0]}x{image.shape[1]}", fontsize="medium")
    panels[1].set_title(f"spectrum, S = {strides}", fontsize="medium")
    panels[2].set_title(f"output, {output.shape[0]}x{output.shape[1]}", fontsize="medium")
    for style, label in (("-", "window = 1/2"), ("--", "crop at M/2")):
        panels[1].plot([], [], style, color=VERMILLION, label=label)
