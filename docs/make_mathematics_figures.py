"""Draw docs/figures/mathematics/*.png, one picture for each step of docs/mathematics.md.

Run with the ``experiments`` extra: ``python docs/make_mathematics_figures.py [NAME ...]``. Without
names all are drawn. Windows, sizes, outputs and gradients are the library's own. The photograph
ships with scikit-learn.
"""

import io
import sys
from collections.abc import Callable
from pathlib import Path

import diffstride_plotting as plotting
import numpy as np
import torch
from diffstride_numpy import (
    diff_stride,
    diff_stride_with_pullback,
    explain,
    output_sizes,
    spectral_pool,
    spectral_resize_with_pullback,
)
from diffstride_plotting import BLUE, GREEN, GREY, ORANGE, PURPLE, VERMILLION
from diffstride_torch import diff_stride as torch_diff_stride
from matplotlib import rc_context
from PIL import Image
from scipy.ndimage import convolve1d
from sklearn.datasets import load_sample_image

FOLDER = Path(__file__).parent / "figures" / "mathematics"
# Narrow, so that a phone does not have to shrink the letters much.
WIDTH, ROW = 5.4, 2.7
STYLE = {"font.size": 10, "axes.titlesize": 10, "legend.fontsize": 8.5, "legend.frameon": False}

N = 64
FREQUENCY = "frequency, waves per axis"
STRIDE = "stride S"


def two_panels():
    """Return a figure and its two panels, side by side."""
    figure = plotting.make_figure(WIDTH, ROW)
    figure.set_layout_engine("constrained")
    panels = figure.subplots(1, 2)
    for panel in panels:
        plotting.open_frame(panel)
    return figure, panels


def two_waves():
    """Return a slow wave, which half as many samples can hold, and one that is too fast."""
    turns = 2 * np.pi * np.arange(N) / N
    return np.cos(3 * turns) + 0.6 * np.cos(26 * turns)


def broadband():
    """Return a signal with every frequency, of mean 0 and power 1: that of the second notebook."""
    rng = np.random.default_rng(1)
    k = np.arange(1, N // 2)
    phases = rng.uniform(0, 2 * np.pi, len(k))
    x = (k**-0.5) @ np.cos(2 * np.pi * np.outer(k, np.arange(N)) / N + phases[:, None])
    return x / np.sqrt(np.mean(x**2))


def amplitudes(x):
    """Return the amplitude of the wave of each frequency 0, 1, ... in a signal."""
    explained = explain(x, 1.0, axes=-1)
    half = explained.axes[0].k >= 0
    return 2 * np.abs(explained.spectrum[half])


def photograph(height=128, width=128):
    """Return a part of a photograph in grey, around 0."""
    photo = load_sample_image("flower.jpg").mean(axis=2)[40::3, 170::3][:height, :width] / 255
    return photo - photo.mean()


def overview():
    """Draw a photograph, its spectrum and what is kept, the output, and a gradient's parts."""
    explained = explain(photograph(), (2.0, 3.0))
    figure = plotting.make_figure(WIDTH, 5.2)
    figure.set_layout_engine("constrained")
    (image, spectrum), (output, bars) = figure.subplots(2, 2)
    limits = float(explained.x.min()), float(explained.x.max())
    plotting.draw_image(image, explained.x, limits)
    plotting.draw_image(output, explained.y, limits, view=explained.x.shape)
    plotting.draw_spectrum(spectrum, explained.x)
    view = spectrum.get_xlim(), spectrum.get_ylim()
    windows = [plotting.AxisWindow(a.N, a.M, a.S, a.k, a.mask) for a in explained.axes]
    plotting.draw_crop(spectrum, windows, VERMILLION)
    spectrum.set(xlim=view[0], ylim=view[1], xlabel=FREQUENCY)
    height, width = explained.axes
    plotting.draw_contributions(bars, width.ramp, width.contributions)
    bars.set(xlabel=FREQUENCY, ylabel="contribution")
    image.set_title(f"input, {height.N} x {width.N}")
    spectrum.set_title("spectrum, and what is kept")
    output.set_title(f"output, {height.M} x {width.M}")
    bars.set_title("gradient of the width's stride")
    return figure


def sampling():
    """Draw every second sample of two waves, and the spectra before and after."""
    x = two_waves()
    taken = x[::2]
    figure, (signal, spectra) = two_panels()
    signal.plot(x, color=BLUE, lw=1, label="input")
    signal.plot(np.arange(0, N, 2), taken, "o-", color=VERMILLION, ms=3, lw=1, label="samples kept")
    signal.set(xlabel="position", ylabel="value", ylim=(-1.8, 2.6), title="every second sample")
    signal.legend(loc="upper center", ncols=2)
    spectra.bar(np.arange(N // 2), amplitudes(x)[: N // 2], 1.2, color=BLUE, label="input")
    after = amplitudes(taken)
    spectra.plot(np.arange(len(after)), after, "o", color=VERMILLION, ms=4, label="samples kept")
    spectra.axvspan(N / 4, N / 2, color=GREY, alpha=0.25, lw=0)
    spectra.annotate(
        "",
        (6.5, 0.66),
        (25.5, 0.66),
        arrowprops={"arrowstyle": "->", "connectionstyle": "arc3,rad=0.35", "color": VERMILLION},
    )
    spectra.text(16, 0.98, "alias", color=VERMILLION, ha="center")
    spectra.set(xlabel=FREQUENCY, ylabel="amplitude", xlim=(-0.9, 32), ylim=(0, 1.45))
    spectra.set_title("26 shows up as 6")
    spectra.legend(loc="upper right", ncols=2, columnspacing=1)
    return figure


def cropping():
    """Draw the same two waves with the spectrum cropped."""
    x = two_waves()
    pooled = spectral_pool(x, 2.0, axes=-1)
    figure, (spectra, signal) = two_panels()
    spectra.bar(np.arange(N // 2), amplitudes(x)[: N // 2], 1.2, color=BLUE, label="input")
    after = amplitudes(pooled)
    spectra.plot(np.arange(len(after)), after, "o", color=VERMILLION, ms=4, label="output")
    spectra.axvspan(N / 4, N / 2, color=GREY, alpha=0.25, lw=0)
    spectra.text(24, 0.75, "cropped", ha="center")
    spectra.set(xlabel=FREQUENCY, ylabel="amplitude", xlim=(-0.9, 32), ylim=(0, 1.45))
    spectra.set_title("the spectrum is cropped")
    spectra.legend(loc="upper right", ncols=2, columnspacing=1)
    signal.plot(x, color=BLUE, lw=1, label="input")
    signal.plot(np.arange(0, N, 2), pooled, "o-", color=VERMILLION, ms=3, lw=1, label="output")
    signal.set(xlabel="position", ylabel="value", ylim=(-1.8, 2.6), title="the slow wave is left")
    signal.legend(loc="upper center", ncols=2)
    return figure


def window():
    """Draw windows of three strides, and the power that crop and window let through."""
    x = broadband()
    figure, (masks, power) = two_panels()
    for stride, colour in ((1.5, GREEN), (2.0, BLUE), (3.0, PURPLE)):
        axis = explain(x, stride, axes=-1).axes[0]
        half = axis.k >= 0
        label = f"S = {stride:g}"
        masks.plot(axis.k[half], axis.mask[half], "o-", ms=2.5, lw=1.2, color=colour, label=label)
    masks.set(xlabel=FREQUENCY, ylabel="weight of the window", title="windows of three strides")
    masks.set_ylim(-0.04, 1.5)
    masks.legend(loc="upper right")
    strides = np.linspace(1.5, 4, 501)
    staircase = [np.mean(spectral_pool(x, s, axes=-1) ** 2) for s in strides]
    smooth = [np.mean(diff_stride(x, s, axes=-1, cropping=False) ** 2) for s in strides]
    power.plot(strides, staircase, color=GREY, lw=1.2, label="cropped only")
    power.plot(strides, smooth, color=BLUE, lw=1.2, label="window")
    power.set(xlabel=STRIDE, ylabel="power that passes", title="stairs become a slope")
    power.legend(loc="upper right")
    return figure


def edges():
    """Draw where the ramp of the nominal window lies, at every stride."""
    figure = plotting.make_figure(WIDTH, 3.4)
    panel = figure.subplots()
    plotting.open_frame(panel)
    strides = np.linspace(1, 8, 281)
    axes = [explain(broadband(), s, axes=-1).axes[0] for s in strides]
    outer = np.array([axis.q for axis in axes])
    panel.fill_between(strides, outer, 33, color=GREY, alpha=0.25, lw=0, label="weight 0")
    for stride, axis in zip(strides, axes, strict=True):
        on_ramp = axis.k[(axis.k > 0) & (axis.mask > 0) & (axis.mask < 1)]
        label = "on the ramp" if stride == 1 else None
        panel.plot(np.full(len(on_ramp), stride), on_ramp, ".", color=ORANGE, ms=2.5, label=label)
    panel.plot(strides, outer, color=BLUE, lw=1.2, label="the window reaches 0")
    nyquist = [axis.M / 2 for axis in axes]
    panel.step(strides, nyquist, color=VERMILLION, lw=1.2, label="output's Nyquist frequency")
    panel.text(1.6, 5, "weight 1", ha="center")
    panel.set(xlabel=STRIDE, ylabel=FREQUENCY, xlim=(1, 8), ylim=(0, 33))
    panel.legend(loc="upper right", markerscale=3)
    return figure


def sizes():
    """Draw output sizes over the stride."""
    strides = np.linspace(1, 4.5, 1401)
    integers = np.arange(1, 5)

    def outputs(**options):
        return [output_sizes((32,), s, axes=-1, **options)[0] for s in strides]

    figure, (plain, raised) = two_panels()
    plain.plot(strides, outputs(), color=BLUE, lw=1.4, label="nominal")
    plain.plot(strides, 32 / strides, "k:", lw=1, label="N/S")
    plain.plot(
        integers, np.ceil(32 / integers), "o", ms=4, color=VERMILLION, label="strided convolution"
    )
    plain.set(title="nominal, for N = 32", ylabel="output size M")
    raised.plot(strides, outputs(convention="paper"), color=GREEN, lw=1.4, label="paper")
    raised.plot(strides, outputs(multiple_of=8), color=PURPLE, lw=1.4, label="multiple_of=8")
    raised.plot(strides, 32 / strides, "k:", lw=1, label="N/S")
    raised.set(title="other rules")
    for panel in (plain, raised):
        panel.set(xlabel=STRIDE, ylim=(0, 36))
        panel.legend(loc="upper right")
    return figure


def operator():
    """Draw the matrix of an axis, and one of its rows beside spectral pooling's."""
    explained = explain(broadband(), 2.0, axes=-1)
    matrix = explained.axes[0].A
    pooled = spectral_pool(np.eye(N), 2.0, axes=-1).T
    figure, (image, rows) = two_panels()
    plotting.draw_signed_image(image, matrix)
    image.set(xlabel=f"input sample, 0 to {N - 1}", ylabel=f"output sample, 0 to {len(matrix) - 1}")
    image.set_aspect("auto")
    image.set_title("the matrix A")
    image.grid(False)
    rows.plot(pooled[16], color=GREY, lw=1.2, label="cropped only")
    rows.plot(matrix[16], "o-", color=BLUE, ms=2.5, lw=1.2, label="window")
    rows.axhline(0, color="black", lw=0.6)
    rows.set(xlabel="input sample", ylabel="weight", title="one row of it", ylim=(-0.15, 0.66))
    rows.legend(loc="upper right")
    return figure


def gradient():
    """Draw the example of the page: the ramp, and what each of its frequencies adds."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal(N)
    output = diff_stride(x, 2.3, axes=-1)
    explained = explain(x, 2.3, axes=-1, dy=rng.standard_normal(output.size))
    axis = explained.axes[0]
    print(f"gradient: dS = {axis.dS:.4f} from k = {axis.ramp.tolist()}")
    figure, (mask, bars) = two_panels()
    half = axis.k >= 0
    mask.plot(axis.k[half], axis.mask[half], "o-", color=BLUE, ms=2.5, lw=1.2)
    mask.plot(axis.ramp, axis.ramp_mask, "o", color=ORANGE, ms=6, mec="black", mew=0.5)
    mask.axvspan(axis.M / 2, N / 2, color=GREY, alpha=0.25, lw=0)
    mask.text((axis.M / 2 + N / 2) / 2, 0.6, "cropped", ha="center")
    mask.set(xlabel=FREQUENCY, ylabel="weight of the window", xlim=(0, 32))
    mask.set_title("ramp of four frequencies")
    plotting.draw_contributions(bars, axis.ramp, axis.contributions)
    bars.set(xlabel=FREQUENCY, ylabel="contribution")
    bars.set_title(f"they add up to {axis.dS:.4f}")
    return figure


def ties():
    """Draw the weight of a frequency that a corner of the paper's window passes."""
    x, k = np.ones(32), 9
    strides = np.sort(np.append(np.linspace(1.8, 2.2, 201), 2.0))
    axes = [explain(x, s, axes=-1, convention="paper").axes[0] for s in strides]
    weight = np.array([axis.mask[axis.k == k][0] for axis in axes])
    slope = np.array([axis.dmask[axis.k == k][0] for axis in axes])
    figure, (value, derivative) = two_panels()
    value.plot(strides, weight, color=BLUE)
    value.set(ylabel=f"weight of frequency {k}", title="a corner at S = 2")
    left = strides < 2
    for part in (left, ~left):
        derivative.plot(strides[part], slope[part], color=BLUE)
    at_two = slope[strides == 2][0]
    derivative.plot(2, 0, "o", mfc="white", color=BLUE, ms=6)
    derivative.plot(2, at_two, "o", color=VERMILLION, ms=6, label="used at S = 2")
    derivative.set(ylabel="its derivative in S", title="right-hand slope counts")
    derivative.legend(loc="center left")
    for panel in (value, derivative):
        panel.set_xlabel(STRIDE)
    return figure


def bounds():
    """Draw the stride that is used and the gradient of the parameter, over the parameter."""
    x = np.random.default_rng(0).standard_normal((32, 32))
    parameters = np.linspace(0.5, 4.5, 321)
    figure, (used, slopes) = two_panels()
    for convention, style, colour in (
        ("nominal", "-", BLUE),
        ("paper", "-", GREEN),
        ("tensorflow", "--", VERMILLION),
    ):
        options = {"convention": convention, "limits": (None, 3.0), "norm": "ortho"}
        calls = [explain(x, (p, 2.0), **options).axes[0] for p in parameters]
        used.plot(parameters, [axis.S for axis in calls], style, color=colour, label=convention)
        slopes.plot(parameters, [axis.dS for axis in calls], style, color=colour, lw=1)
    used.axhline(3, color=GREY, ls=":", lw=1)
    used.set(ylabel="stride that is used", title="kept within bounds", ylim=(0.8, 3.8))
    used.legend(loc="lower right")
    slopes.set(ylabel="gradient", title="its gradient there")
    for panel in (used, slopes):
        panel.set_xlabel("parameter")
    return figure


def second_derivative():
    """Draw the first and second derivative of a loss in the stride, without a crop."""
    x = torch.from_numpy(broadband())
    strides = np.linspace(2, 4, 401)
    first, second = [], []
    for value in strides:
        stride = torch.tensor([value], dtype=torch.float64, requires_grad=True)
        loss = torch_diff_stride(x, stride, axes=-1, cropping=False).square().sum() / 2
        (slope,) = torch.autograd.grad(loss, stride, create_graph=True)
        (curvature,) = torch.autograd.grad(slope, stride)
        first.append(slope.item())
        second.append(curvature.item())
    figure, (slopes, curvatures) = two_panels()
    slopes.plot(strides, first, ".", ms=2, color=BLUE)
    slopes.set(ylabel="first derivative")
    slopes.set_title("it jumps at corners")
    curvatures.plot(strides, second, ".", ms=2, color=BLUE)
    curvatures.set(ylabel="second derivative")
    curvatures.set_title("constant between corners")
    for panel in (slopes, curvatures):
        panel.set_xlabel(STRIDE)
    return figure


def hidden():
    """Draw a loss over the stride, and what its slopes add up to, with and without a crop."""
    x = broadband()
    strides = np.linspace(1.1, 6, 400)
    figure, panels = two_panels()
    for panel, cropped in zip(panels, (True, False), strict=True):
        losses, slopes = [], []
        for stride in strides:
            y, pullback = diff_stride_with_pullback(x, stride, axes=-1, cropping=cropped)
            back, up_pullback = spectral_resize_with_pullback(y, N, axes=-1)
            losses.append(np.mean((back - x) ** 2))
            (dy,) = up_pullback(2 * (back - x) / N)
            slopes.append(float(pullback(dy)[1]))
        rise = np.cumsum(np.diff(strides) * (np.array(slopes[1:]) + slopes[:-1]) / 2)
        seen = losses[0] + np.append(0, rise)
        share = rise[-1] / (losses[-1] - losses[0])
        print(f"hidden: with crop {cropped}, the slopes add up to {share:.0%} of the rise")
        panel.plot(strides, losses, color=BLUE, lw=1.2, label="loss")
        panel.plot(strides, seen, "--", color=VERMILLION, lw=1.2, label="slopes added up")
        panel.set(xlabel=STRIDE, ylim=(0, 0.62))
        panel.set_title("with the crop" if cropped else "with cropping=False")
        panel.legend(loc="upper left")
    panels[0].set_ylabel("loss of the signal")
    return figure


def placement():
    """Draw what a kernel of three taps can do after the layer and before it."""
    stride, k = 2.0, np.arange(N // 2 + 1)
    waves = np.cos(2 * np.pi * np.outer(k, np.arange(N)) / N)

    def filtered(x):
        return convolve1d(x, np.array([-1.0, 2.0, -1.0]) / 4, axis=-1, mode="wrap")

    def gain(y):
        return np.sqrt(2 * np.mean(y**2, axis=-1))

    figure, (gains, costs) = two_panels()
    before = gain(filtered(diff_stride(waves, stride, axes=-1)))
    after = gain(diff_stride(filtered(waves), stride, axes=-1))
    # The last frequencies of either grid are alone, without a mirror image.
    shown = k < N // 4
    gains.plot(k[shown], before[shown], "o-", ms=2.5, color=BLUE, label="layer before")
    gains.plot(k[shown], after[shown], "o-", ms=2.5, color=GREEN, label="layer after")
    gains.set(xlabel=FREQUENCY, ylabel="output amplitude", ylim=(-0.04, 1.2))
    gains.set_title("kernel (-1, 2, -1)")
    gains.legend(loc="upper left")

    strides = np.linspace(1, 4, 301)
    shares = [np.prod(np.divide(output_sizes((N, N), s), N)) for s in strides]
    costs.plot(strides, shares, color=BLUE, label="layer before")
    costs.plot(strides, np.ones(len(strides)), color=GREEN, label="layer after")
    costs.set(xlabel=STRIDE, ylabel="share of the full cost", ylim=(0, 1.35))
    costs.set_title("cost of the convolution")
    costs.legend(loc="upper right")
    return figure


def conventions():
    """Draw the windows of the three conventions on the two axes of an image."""
    x = np.random.default_rng(0).standard_normal((32, 32))
    figure, panels = two_panels()
    for convention, colour, style in (
        ("nominal", BLUE, "o-"),
        ("paper", GREEN, "s-"),
        ("tensorflow", VERMILLION, "^:"),
    ):
        for panel, axis in zip(panels, explain(x, 2.0, convention=convention).axes, strict=True):
            k, mask = axis.k, axis.mask
            if k[0] == 0:  # a half spectrum
                k, mask = np.append(-k[:0:-1], k), np.append(mask[:0:-1], mask)
            label = f"{convention}, M = {axis.M}"
            panel.plot(k, mask, style, ms=3, lw=1.2, color=colour, label=label)
    for panel, title in zip(panels, ("first axis: height", "last axis: width"), strict=True):
        panel.set(xlabel=FREQUENCY, ylim=(-0.04, 1.6), xlim=(-16.5, 16.5), title=title)
        panel.legend(loc="upper center")
    panels[0].set_ylabel("weight of the window")
    return figure


def differences():
    """Draw how far the authors' operator is from the clean one, on a photograph."""
    figure, panels = two_panels()
    for panel, height in zip(panels, (128, 127), strict=True):
        x = photograph(height)
        theirs = explain(x, 2.0, convention="tensorflow", norm="forward")
        clean = diff_stride(x, 2.0, convention="paper", norm="forward", sizes=theirs.y.shape)
        difference = theirs.y - clean
        drawn = plotting.draw_signed_image(panel, difference)
        share = np.sqrt(np.mean(difference**2) / np.mean(clean**2))
        print(f"differences: height {height}, {share:.1%} of the output, {theirs.y.shape}")
        panel.set_title(f"height {height}")
        panel.grid(False)
        figure.colorbar(drawn, ax=panel, shrink=0.8)
    return figure


FIGURES: tuple[Callable[[], object], ...] = (
    overview,
    sampling,
    cropping,
    window,
    edges,
    sizes,
    operator,
    gradient,
    ties,
    bounds,
    second_derivative,
    hidden,
    placement,
    conventions,
    differences,
)


def main(names: list[str]) -> None:
    """Draw the figures that are named, or all."""
    FOLDER.mkdir(exist_ok=True)
    for draw in FIGURES:
        if names and draw.__name__ not in names:
            continue
        with rc_context(STYLE):
            file = io.BytesIO()
            draw().savefig(file, dpi=150)
        # A palette: a third of the size.
        picture = Image.open(file).convert("RGB").quantize(128, dither=Image.Dither.NONE)
        picture.save(FOLDER / f"{draw.__name__}.png", optimize=True)


if __name__ == "__main__":
    main(sys.argv[1:])
