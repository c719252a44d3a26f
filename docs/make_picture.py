"""Draw the README's picture: what one DiffStride layer does to an image.

Run with the ``experiments`` extra: ``python docs/make_picture.py [FILE.png]``. The photograph ships
with scikit-learn.
"""

import sys
from pathlib import Path

import diffstride_plotting as plotting
from diffstride_numpy import diff_stride_with_pullback
from sklearn.datasets import load_sample_image

from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import make_settings

SIZE = 192
AXES = (-2, -1)
STRIDES = (1.5, 3.0, 6.0)
COLOURS = (plotting.BLUE, plotting.VERMILLION, plotting.GREEN)


def main(path: Path) -> None:
    """Draw the picture."""
    photo = load_sample_image("flower.jpg").mean(axis=2)[
        40 : 40 + 2 * SIZE : 2, 170 : 170 + 2 * SIZE : 2
    ]
    image = photo / 255
    settings = make_settings(axes=AXES)
    figure = plotting.make_figure(7.5, 5.4)
    axes = figure.subplots(2, 3).flat

    plotting.draw_image(axes[0], image)
    axes[0].set_title(f"input, {SIZE}x{SIZE}", fontsize=9)
    plotting.draw_spectrum(axes[1], image)
    axes[1].set_title("its spectrum, cropped", fontsize=9)
    axes[1].set_xticks([])
    axes[1].set_yticks([])
    for axis, stride, colour in zip(axes[3:], STRIDES, COLOURS, strict=True):
        plan = plan_diff_stride(settings, AXES, image.shape, (stride,), shared=True)
        windows = plotting.axis_windows(settings, plan, (stride,))
        plotting.draw_crop(axes[1], windows, colour)
        axes[2].plot(windows[1].frequency, windows[1].mask, color=colour, label=f"S = {stride:g}")

        output, pullback = diff_stride_with_pullback(image, stride)
        _, slope = pullback(2 * output / output.size)
        plotting.draw_image(axis, output)
        sizes = "x".join(map(str, output.shape))
        axis.set_title(f"S = {stride:g}: {sizes}", fontsize=9, color=colour)
        axis.set_xlabel(f"d mean(y²)/dS = {float(slope):.1e}", fontsize=8)

    axes[2].set_title("by a window of width 1/S", fontsize=9)
    axes[2].set_xlabel("frequency, cycles per image", fontsize=8)
    axes[2].legend(fontsize=7, loc="upper right", frameon=False)
    axes[2].set_xlim(0, SIZE / 2)
    axes[2].tick_params(labelsize=7)
    axes[2].spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    default = Path(__file__).parent / "figures" / "layer.png"
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else default)
