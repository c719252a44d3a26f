"""Draw the figures of docs/choosing.md and print its numbers.

Run with the ``experiments`` extra: ``python docs/make_choosing_figures.py [FOLDER]``.
"""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import diffstride_plotting as plotting
import numpy as np
import torch
from diffstride_numpy import diff_stride, output_sizes
from diffstride_torch import DiffStride1d
from matplotlib.axes import Axes

SIZE, WIDE = 32, 256
SMOOTHNESS = (0.01, 0.25, 0.5, 1.0)
RATES, STEPS = (1e-3, 1e-2, 1e-1), 200
INITIAL, SOUGHT = 1.5, 3.0
COLOURS = (plotting.BLUE, plotting.VERMILLION, plotting.GREEN, plotting.ORANGE)


def overshoot(smoothness: float) -> tuple[np.ndarray, float]:
    """Return a step filtered at stride 4, as long as it was, and by how much it overshoots."""
    step = np.repeat([0.0, 1.0], WIDE // 2)
    filtered = diff_stride(step, 4.0, axes=-1, smoothness=smoothness, cropping=False)
    return filtered, filtered.max() - 1


def strides_on_the_way(rate: float) -> Iterator[float]:
    """Learn with Adam to filter noise as a layer of another stride does; yield the strides."""
    noise = torch.randn(64, WIDE, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        target = DiffStride1d(SOUGHT, cropping=False)(noise)
    layer = DiffStride1d(INITIAL, cropping=False)
    optimizer = torch.optim.Adam(layer.parameters(), lr=rate)
    for _ in range(STEPS):
        yield layer.strides.item()
        optimizer.zero_grad()
        (layer(noise) - target).square().mean().backward()
        optimizer.step()
    yield layer.strides.item()


def draw_sizes(axes: Axes) -> None:
    """Draw output sizes over the stride, by convention."""
    strides = np.linspace(1, 4, 601)
    for colour, (label, options) in zip(
        COLOURS,
        {
            "nominal": {},
            "paper, smoothness 1": {"convention": "paper", "smoothness": 1.0},
            "paper, smoothness 4": {"convention": "paper"},
        }.items(),
        strict=False,
    ):
        outputs = [output_sizes((SIZE,), s, axes=-1, **options)[0] for s in strides]
        axes.plot(strides, outputs, color=colour, label=label)
    axes.plot(strides, SIZE / strides, "k:", label="input size / stride")
    axes.set(xlabel="stride", ylabel=f"output size of {SIZE} samples")


def draw_step(axes: Axes) -> None:
    """Draw a step at a stride of 4, by smoothness."""
    for smoothness, colour in zip(SMOOTHNESS, COLOURS, strict=True):
        filtered, over = overshoot(smoothness)
        print(f"smoothness {smoothness:g}: a step overshoots by {100 * over:.1f} %")
        axes.plot(filtered, color=colour, label=f"smoothness {smoothness:g}")
    axes.set(xlabel="sample", ylabel="step, filtered at stride 4", xlim=(WIDE // 2 - 20, 190))


def draw_rates(axes: Axes) -> None:
    """Draw a stride over the steps of its training, by learning rate."""
    for rate, colour in zip(RATES, COLOURS, strict=False):
        strides = list(strides_on_the_way(rate))
        print(f"rate {rate:g}: stride {strides[-1]:.3f} after {STEPS} steps")
        axes.plot(strides, color=colour, label=f"learning rate {rate:g}")
    axes.axhline(SOUGHT, color="k", linestyle=":", label="best stride")
    axes.set(xlabel="training step", ylabel="stride")


FIGURES: dict[str, tuple[Callable[[Axes], None], tuple[float, float] | str]] = {
    "sizes": (draw_sizes, "upper right"),
    "step": (draw_step, "lower right"),
    "rates": (draw_rates, (0.62, 0.3)),
}
"""What draws each figure, and where its legend is."""


def main(folder: Path) -> None:
    """Draw the figures."""
    for name, (draw, place) in FIGURES.items():
        figure = plotting.make_figure(6, 3.6)
        axes = figure.subplots()
        draw(axes)
        axes.legend(frameon=False, loc=place)
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(folder / f"choosing_{name}.png", dpi=130)


if __name__ == "__main__":
    default = Path(__file__).parent / "figures"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
