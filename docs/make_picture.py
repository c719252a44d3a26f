"""Draw the README's picture: what one DiffStride layer does to an image.

Run with the ``experiments`` extra: ``python docs/make_picture.py [FILE.png]``. The photograph ships
with scikit-learn.
"""

import sys
from pathlib import Path

import matplotlib as mpl
import numpy as np
from diffstride_numpy import diff_stride, diff_stride_with_pullback
from sklearn.datasets import load_sample_image

mpl.use("Agg")
from matplotlib import pyplot as plt

SIZE = 192
STRIDES = (1.5, 3.0, 6.0)
COLOURS = ("tab:blue", "tab:orange", "tab:red")


def window(stride: float) -> np.ndarray:
    """Return the layer's mask at the frequencies -N/2 ... N/2: what it does to an impulse."""
    impulse = np.zeros(SIZE)
    impulse[0] = 1
    options = {"axes": -1, "cropping": False, "convention": "relative"}
    mask = np.fft.rfft(diff_stride(impulse, stride, **options)).real
    return np.concatenate([mask[:0:-1], mask])


def main(path: Path) -> None:
    """Draw the picture."""
    photo = load_sample_image("flower.jpg").mean(axis=2)[
        40 : 40 + 2 * SIZE : 2, 170 : 170 + 2 * SIZE : 2
    ]
    image = photo / 255
    figure, axes = plt.subplots(
        1, 6, figsize=(13, 2.6), layout="constrained", width_ratios=[1] * 2 + [1.25] + [1] * 3
    )

    axes[0].imshow(image, cmap="gray", vmin=0, vmax=1)
    axes[0].set_title(f"input, {SIZE}x{SIZE}", fontsize=9)

    spectrum = np.fft.fftshift(np.log1p(np.abs(np.fft.fft2(image - image.mean()))))
    extent = (-SIZE / 2, SIZE / 2, SIZE / 2, -SIZE / 2)
    axes[1].imshow(spectrum, cmap="magma", extent=extent)
    frequency = np.arange(-SIZE // 2, SIZE // 2 + 1)
    for stride, colour in zip(STRIDES, COLOURS, strict=True):
        mask = np.outer(window(stride), window(stride))
        axes[1].contour(frequency, frequency, mask, levels=[0.5], colors=[colour], linewidths=1.2)
    axes[1].set_title("its spectrum, cropped", fontsize=9)

    for stride, colour in zip(STRIDES, COLOURS, strict=True):
        axes[2].plot(frequency, window(stride), color=colour, label=f"S = {stride:g}")
    axes[2].set_title("by a window as wide as 1/S", fontsize=9)
    axes[2].set_xlabel("frequency", fontsize=8)
    axes[2].legend(fontsize=7, loc="upper right", frameon=False)
    axes[2].set_xlim(0, SIZE / 2)
    axes[2].tick_params(labelsize=7)
    axes[2].spines[["top", "right"]].set_visible(False)

    for axis, stride, colour in zip(axes[3:], STRIDES, COLOURS, strict=True):
        output, pullback = diff_stride_with_pullback(image, stride, convention="relative")
        _, slope = pullback(2 * output / output.size)
        axis.imshow(output, cmap="gray", vmin=0, vmax=1)
        sizes = "x".join(map(str, output.shape))
        axis.set_title(f"S = {stride:g}: {sizes}", fontsize=9, color=colour)
        axis.set_xlabel(f"d mean(y²)/dS = {float(slope):.1e}", fontsize=8)
    for axis in (*axes[:2], *axes[3:]):
        axis.set_xticks([])
        axis.set_yticks([])
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    default = Path(__file__).parent / "figures" / "layer.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
