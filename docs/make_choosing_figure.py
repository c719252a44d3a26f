"""Draw docs/figures/choosing.png and print the numbers of docs/choosing.md.

Run with the ``experiments`` extra: ``python docs/make_choosing_figure.py [FILE.png]``.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

import diffstride_plotting as plotting
import numpy as np
import torch
from diffstride_numpy import diff_stride, output_sizes
from diffstride_torch import DiffStride1d

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


def main(path: Path) -> None:
    """Draw the figure."""
    figure = plotting.make_figure(13, 3.4)
    sizes, step, way = figure.subplots(1, 3)

    strides = np.linspace(1, 4, 601)
    for colour, (label, options) in zip(
        COLOURS,
        {
            "nominal": {},
            "paper, R = 1": {"convention": "paper", "smoothness": 1.0},
            "paper, R = 4": {"convention": "paper"},
        }.items(),
        strict=False,
    ):
        outputs = [output_sizes((SIZE,), s, axes=-1, **options)[0] for s in strides]
        sizes.plot(strides, outputs, color=colour, label=label)
    sizes.plot(strides, SIZE / strides, "k:", label="N/S")
    sizes.set(title=f"output size M, N = {SIZE}", xlabel="stride S", ylabel="M")

    for smoothness, colour in zip(SMOOTHNESS, COLOURS, strict=True):
        filtered, over = overshoot(smoothness)
        print(f"smoothness {smoothness:g}: a step overshoots by {100 * over:.1f} %")
        step.plot(filtered, color=colour, label=f"smoothness {smoothness:g}")
    step.set(title="a step at S = 4", xlabel="sample", xlim=(WIDE // 2 - 20, 190))

    for rate, colour in zip(RATES, COLOURS, strict=False):
        path_of_stride = list(strides_on_the_way(rate))
        print(f"rate {rate:g}: stride {path_of_stride[-1]:.3f} after {STEPS} steps")
        way.plot(path_of_stride, color=colour, label=f"rate {rate:g}")
    way.axhline(SOUGHT, color="k", linestyle=":", label="sought")
    way.set(title="learning a stride with Adam", xlabel="step", ylabel="stride S")

    for axes, place in ((sizes, "upper right"), (step, "lower right"), (way, (0.6, 0.2))):
        axes.title.set_fontsize(10)
        axes.legend(fontsize=8, frameon=False, loc=place)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    default = Path(__file__).parent / "figures" / "choosing.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
