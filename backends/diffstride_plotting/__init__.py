"""Plots of windows, strides and spectra for every framework, with NumPy and Matplotlib only.

The functions draw into given Axes. `make_figure` makes a figure for these without pyplot, that is,
without global state and without a display.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from diffstride_core._namespace import namespace_of
from diffstride_core.ops import ArrayOps
from diffstride_core.plan import Plan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import Settings
from diffstride_core.window import spread_strides

try:
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.image import AxesImage
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
PURPLE, SKY, GREY, BLACK = "#CC79A7", "#56B4E9", "#7F7F7F", "#000000"

_OPS = ArrayOps(namespace_of(np.empty(0)))


@dataclass(frozen=True)
class AxisWindow:
    """The window of one axis at all its frequencies, including those that are cropped.

    Attributes
    ----------
    size, output_size : int
        Input size N and output size M.
    stride : float
        Stride S, within its bounds.
    frequency : ndarray, shape (N or N + 1,)
        Frequencies -(N//2), ..., N//2, in cycles per N samples.
    mask : ndarray, shape (N or N + 1,)
        Window mu at these frequencies.
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
        Settings of the layer.
    plan : Plan
        Plan of the layer for the size to show.
    strides : sequence of float
        The stride parameters: one per axis, or one for all axes.

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
    """Return an empty figure of the given size in inches, laid out so that nothing overlaps."""
    # Other layouts treat images, whose shape is fixed, as if they filled their panels.
    figure = Figure(figsize=(width, height), layout="compressed")
    FigureCanvasAgg(figure)
    return figure


def open_frame(axes: Axes) -> None:
    """Draw a light grid, and remove the frame at the top and on the right."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)


def legend_below(figure: Figure | SubFigure, axes: Axes) -> None:
    """Draw one legend below all panels, with the labels of one of them."""
    lines, labels = axes.get_legend_handles_labels()
    # As few rows as the width allows, filled evenly.
    for rows in range(1, len(lines) + 1):
        columns = math.ceil(len(lines) / rows)
        legend = figure.legend(
            lines, labels, loc="outside lower center", ncols=columns, frameon=False
        )
        if columns == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


def draw_window(axes: Axes, window: AxisWindow) -> None:
    """Draw the window of one axis over frequency.

    The plot marks the ramp, the frequency N/(2S), and what is cropped beyond the output's Nyquist
    frequency M/2. In the nominal convention the ramp ends half a frequency beyond N/(2S); in the
    paper's it begins at N/(2S). All of these have labels for a legend.
    """
    half = window.size / 2
    edge, nyquist = half / window.stride, window.output_size / 2
    # Mark the bins: between them the window has no values.
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
    """Draw strides over training, with a colour per layer, a line style per axis, and labels.

    Parameters
    ----------
    axes : Axes
    steps : sequence of float, length T
        Values on the horizontal axis, for example epochs.
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
    image : ndarray, shape (H, W), (H, W, 1) or (H, W, 3)
        Grey or colour image.
    limits : (float, float)
        Values of black and white. Values beyond them are clipped.
    view : (int, int), optional
        Height and width to draw the image in; by default its own. An output drawn with the view of
        its input shows the same scene in larger pixels.
    """
    low, high = limits
    shown = np.clip((image - low) / (high - low if high > low else 1.0), 0.0, 1.0)
    height, width = image.shape[:2] if view is None else view
    axes.imshow(shown, cmap="gray", vmin=0, vmax=1, extent=(0, width, height, 0))
    axes.set_xticks([])
    axes.set_yticks([])


def draw_spectrum(axes: Axes, image: Floats) -> None:
    """Draw the logarithm of the amplitude spectrum of an image of shape (height, width).

    The mean is left out, since its amplitude would outshine all others.
    """
    amplitude = np.abs(np.fft.fftshift(np.fft.fft2(image - image.mean())))
    height, width = image.shape
    top, left = -(height // 2) - 0.5, -(width // 2) - 0.5
    axes.imshow(np.log1p(amplitude), cmap="Greys", extent=(left, left + width, top + height, top))


def draw_crop(axes: Axes, windows: Sequence[AxisWindow], colour: str) -> None:
    """Outline the part of a spectrum that is kept.

    The solid line is where the product of the windows of height and width is 1/2. The dashed line
    is at the output's Nyquist frequencies.
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
    """Draw an image, its spectrum with the part that is kept, and the output.

    Parameters
    ----------
    panels : sequence of Axes, length 3
    image : ndarray, shape (H, W), (H, W, 1) or (H, W, 3)
    output : ndarray
        Output with as many dimensions and the same brightness as the image. It is drawn in the
        image's view.
    windows : sequence of AxisWindow, length 2
        Windows of height and width.
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


_FAINTEST = -80.0
"""Lowest level in dB that is drawn. Smaller amplitudes are drawn at it; masked ones are 0."""


def decibels(amplitude: Floats, loudest: float) -> Floats:
    """Return amplitudes in dB relative to the loudest, at least -80."""
    ratio = amplitude / (loudest if loudest > 0 else 1.0)
    return np.asarray(20 * np.log10(np.maximum(ratio, 10 ** (_FAINTEST / 20))))


def draw_levels(
    axes: Axes, levels: Floats, rows: NDArray[np.int64], columns: NDArray[np.int64]
) -> AxesImage:
    """Draw a spectrum, given in dB, as an image over its frequencies.

    Parameters
    ----------
    axes : Axes
    levels : ndarray, shape (H, W)
        Levels from `decibels`.
    rows, columns : ndarray of int, shapes (H,) and (W,)
        Frequencies of the rows and columns, ascending.

    Returns
    -------
    AxesImage
        The image, for a colour bar.
    """
    extent = (columns[0] - 0.5, columns[-1] + 0.5, rows[-1] + 0.5, rows[0] - 0.5)
    image = axes.imshow(levels, cmap="Greys", vmin=_FAINTEST, vmax=0, extent=extent)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(MaxNLocator(5, integer=True))
    return image


def draw_signed_image(axes: Axes, image: Floats) -> AxesImage:
    """Draw an image with values of both signs: white at 0, orange below and purple above.

    Returns
    -------
    AxesImage
        The image, for a colour bar.
    """
    largest = float(np.abs(image).max()) or 1.0
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.imshow(image, cmap="PuOr", vmin=-largest, vmax=largest)


def draw_contributions(axes: Axes, frequency: NDArray[np.int64], contributions: Floats) -> None:
    """Draw each ramp bin's share of a stride's gradient as a bar at its frequency."""
    axes.bar(frequency, contributions, color=ORANGE, edgecolor="black", linewidth=0.5)
    axes.axhline(0, color="black", linewidth=0.8)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
    axes.set_xlabel("frequency k, cycles per N samples")
    axes.set_ylabel("contribution to dS")
    open_frame(axes)


def plot_explanation(explained: Any) -> Figure:
    """Draw the result of `diffstride_numpy.explain`.

    The upper row shows the forward pass: the input, its spectrum, the spectrum after mask and crop,
    and the output. The lower row shows the mask of each axis, each ramp bin's share of dS, and the
    gradient of the input.

    Parameters
    ----------
    explained : diffstride_numpy.Explanation
        Explanation with one or two resized axes. Along other axes, the first entry is drawn.

    Returns
    -------
    Figure
    """
    if len(explained.axes) == 2:
        figure = make_figure(18, 7.4)
        # The compressed layout would make the curves as narrow as the images.
        figure.set_layout_engine("constrained")
        panels = figure.subplot_mosaic(
            [
                ["x", "spectrum", "masked", "cropped", "y"],
                ["mask 0", "dS 0", "mask 1", "dS 1", "dx"],
            ]
        )
        _draw_explained_image(figure, panels, explained)
    else:
        figure = make_figure(13, 6.4)
        panels = figure.subplot_mosaic([["x", "spectrum", "y"], ["mask 0", "dS 0", "dx"]])
        _draw_explained_signal(panels, explained)

    loss = "the loss sum(y²)/2" if explained.dy is explained.y else "the given dy"
    for i, axis in enumerate(explained.axes):
        draw_window(panels[f"mask {i}"], _window_of(axis))
        panels[f"mask {i}"].xaxis.set_major_locator(MaxNLocator(6, integer=True))
        bins = f"{len(axis.ramp)} bin" + ("" if len(axis.ramp) == 1 else "s")
        draw_contributions(panels[f"dS {i}"], axis.ramp, axis.contributions)
        is_last = i == len(explained.axes) - 1
        equation = f" (Eq. {3 + is_last})" if explained.convention == "paper" else ""
        panels[f"mask {i}"].set_title(
            f"mask{equation}, axis {axis.axis}\nS = {axis.S:.4g}: N = {axis.N} → M = {axis.M}"
        )
        panels[f"dS {i}"].set_title(
            f"dS = {axis.dS:.4g}, axis {axis.axis}\nfrom {bins} of the ramp"
        )
    panels["dx"].set_title(f"gradient dx\nof {loss}")
    legend_below(figure, panels["mask 0"])
    figure.suptitle(
        f"diff_stride, convention {explained.convention}, smoothness {explained.smoothness:g}, "
        f"norm {explained.norm}"
    )
    return figure


def _window_of(axis: Any) -> AxisWindow:
    """Return the window of an explained axis at all frequencies -(N//2), ..., N//2.

    The axis's spectrum may have fewer frequencies. A half spectrum is completed with its mirror
    image. For an even size, N/2 and -N/2 are the same bin.
    """
    frequency = np.arange(-(axis.N // 2), axis.N // 2 + 1)
    index = np.abs(frequency) if axis.k[0] == 0 else (frequency - axis.k[0]) % axis.N
    return AxisWindow(axis.N, axis.M, axis.S, frequency, axis.mask[index])


def _first_entry(explained: Any, array: NDArray[Any]) -> NDArray[Any]:
    """Return an array over the resized axes, in their order, at the first entry of all others."""
    axes = [axis.axis for axis in explained.axes]
    last = np.moveaxis(array, axes, range(-len(axes), 0))
    return np.asarray(last[(0,) * (last.ndim - len(axes))])


def _spectra_in_decibels(explained: Any) -> list[Floats]:
    spectra = (explained.spectrum, explained.masked_spectrum, explained.cropped_spectrum)
    amplitudes = [np.abs(_first_entry(explained, spectrum)) for spectrum in spectra]
    return [decibels(amplitude, float(amplitudes[0].max())) for amplitude in amplitudes]


def _draw_explained_image(figure: Figure, panels: dict[str, Axes], explained: Any) -> None:
    for name, title in (("x", "input x"), ("y", "output y")):
        image = _first_entry(explained, getattr(explained, name))
        limits = float(image.min()), float(image.max())
        draw_image(panels[name], image, limits, view=(explained.axes[0].N, explained.axes[1].N))
        panels[name].set_title(f"{title}\n{image.shape[0]} x {image.shape[1]}")
    drawn = draw_signed_image(panels["dx"], _first_entry(explained, explained.dx))
    figure.colorbar(drawn, ax=panels["dx"], shrink=0.6)

    rows, columns = explained.axes
    full, masked, cropped = _spectra_in_decibels(explained)
    for name, title, levels, frequencies in (
        ("spectrum", "spectrum X", full, (rows.k, columns.k)),
        ("masked", "masked spectrum", masked, (rows.k, columns.k)),
        ("cropped", "cropped spectrum", cropped, (rows.k_cropped, columns.k_cropped)),
    ):
        drawn = draw_levels(panels[name], levels, *frequencies)
        panels[name].set_title(f"{title}\n{levels.shape[0]} x {levels.shape[1]}")
        panels[name].set_xlabel(f"frequency, axis {columns.axis}")
        panels[name].set_ylabel(f"frequency, axis {rows.axis}")
    spectra = [panels[name] for name in ("spectrum", "masked", "cropped")]
    figure.colorbar(drawn, ax=spectra, shrink=0.6, label="dB of the largest")

    panel, windows = panels["spectrum"], [_window_of(axis) for axis in explained.axes]
    view = panel.get_xlim(), panel.get_ylim()
    # A mask that never falls below 1/2 has no contour to draw.
    if min(axis.N for axis in explained.axes) > 1 and min(w.mask.min() for w in windows) < 0.5:
        draw_crop(panel, windows, GREEN)
        for style, label in (("-", "mask = 1/2 in X"), ("--", "crop at M/2 in X")):
            panels["mask 0"].plot([], [], style, color=GREEN, label=label)
    panel.set(xlim=view[0], ylim=view[1])


def _draw_explained_signal(panels: dict[str, Axes], explained: Any) -> None:
    (axis,) = explained.axes
    inputs, outputs = np.arange(axis.N), np.arange(axis.M) * axis.N / axis.M
    for name, title, positions, colour in (
        ("x", f"input x\n{axis.N} samples", inputs, BLUE),
        ("y", f"output y\n{axis.M} samples", outputs, VERMILLION),
        ("dx", "", inputs, BLUE),
    ):
        curve = _first_entry(explained, getattr(explained, name))
        marker = "o" if len(curve) <= 96 else None
        panels[name].plot(positions, curve, color=colour, marker=marker, markersize=2.5)
        panels[name].set_title(title)
        panels[name].set_xlabel("sample n of the input")
        open_frame(panels[name])

    full, masked, cropped = _spectra_in_decibels(explained)
    panel = panels["spectrum"]
    for frequency, levels, style, label in (
        (axis.k, full, {"color": GREY, "linewidth": 3, "alpha": 0.6}, "spectrum X"),
        (axis.k, masked, {"color": BLUE, "linewidth": 1.5}, "masked"),
        (axis.k_cropped, cropped, {"color": VERMILLION, "linestyle": ":"}, "cropped"),
    ):
        panel.plot(frequency, levels, label=label, **style)
    panel.set_title(f"spectra\n{len(full)} bins → {len(cropped)}")
    panel.set_xlabel("frequency k, cycles per N samples")
    panel.set_ylabel("dB of the largest")
    panel.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    panel.legend(loc="lower center", fontsize="small")
    open_frame(panel)
