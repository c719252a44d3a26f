"""Measure time and memory on large inputs, and the cost per sample over the size of an axis.

Usage: ``python benchmarks/scale.py``

The layer runs forward and backward on PyTorch in the nominal convention at stride 2, beside the
same layer written with FFTs and automatic differentiation, and average pooling. The first part
takes three large inputs. The second part takes axes of 8 to 8192 samples, resized alone and in
pairs, with primes among them and the sizes around the engines' border. The script prints tables,
and writes `scale.json` and `scale.png` to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import math

import fft_autodiff
import matplotlib.pyplot as plt
import measuring
import torch
from diffstride_torch.functional import diff_stride
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffstride_core.planning import fft_from_size, is_smooth

LARGE = {(1, 3, 4096, 4096): 2, (1, 1, 128, 128, 128): 3, (16, 64, 2**17): 1}
"""The shapes, and how many of the last axes are resized."""

POWERS = [2**k for k in range(3, 14)]
PRIMES = [7, 13, 31, 61, 127, 251, 509, 1021, 2039, 4093, 8191]
BORDER = [fft_from_size(axis) + step for axis in (-1, -2) for step in (-1, 0)]
SIZES = sorted({*POWERS, *PRIMES, *BORDER})
SAMPLES = 2**20
STRIDE = 2.0
LABELS = {
    "ours": "the layer",
    "fft autodiff": "FFTs and autodiff",
    "avg_pool": "average pooling",
}
POOLS = {
    1: torch.nn.functional.avg_pool1d,
    2: torch.nn.functional.avg_pool2d,
    3: torch.nn.functional.avg_pool3d,
}


def contenders(shape: tuple[int, ...], rank: int) -> measuring.Contenders:
    """Return functions that run forward and backward along the last `rank` axes."""
    torch.manual_seed(0)
    x = torch.randn(shape, requires_grad=True)
    strides = torch.full((rank,), STRIDE, requires_grad=True)
    axes = tuple(range(-rank, 0))
    return {
        "ours": measuring.with_backward(lambda: diff_stride(x, strides, axes=axes), x, strides),
        "fft autodiff": measuring.with_backward(
            lambda: fft_autodiff.diff_stride(x, strides, "nominal"), x, strides
        ),
        "avg_pool": measuring.with_backward(lambda: POOLS[rank](x, round(STRIDE)), x),
    }


def large(shape: tuple[int, ...], rank: int) -> dict:
    """Measure time and peak memory on one large input."""
    runs = contenders(shape, rank)
    return {
        "shape": shape,
        "axes": rank,
        "input bytes": 4 * math.prod(shape),
        "seconds": measuring.medians(runs, rounds=5, seconds=60),
        "peak bytes": {name: measuring.torch_peak(run) for name, run in runs.items()},
    }


def over_size(size: int, rank: int) -> dict:
    """Measure the time per sample of an input whose resized axes have `size` samples."""
    channels = max(1, SAMPLES // size**rank)
    shape = (1, channels, *(size,) * rank)
    taken = measuring.medians(contenders(shape, rank), rounds=15, seconds=2)
    count = math.prod(shape)
    return {
        "size": size,
        "axes": rank,
        "nanoseconds per sample": {name: 1e9 * t / count for name, t in taken.items()},
    }


def draw(rows: list[dict]) -> None:
    """Draw the cost per sample over the size of the axes."""
    figure, panels = plt.subplots(2, 1, figsize=(7, 7), sharex=True, layout="constrained")
    for panel, rank in zip(panels, (1, 2), strict=True):
        chosen = [row for row in rows if row["axes"] == rank]
        for color, (name, label) in enumerate(LABELS.items()):
            costs = {row["size"]: row["nanoseconds per sample"][name] for row in chosen}
            smooth = [size for size in costs if is_smooth(size)]
            rough = [size for size in costs if not is_smooth(size)]
            panel.loglog(smooth, [costs[n] for n in smooth], f"C{color}o-", ms=4, label=label)
            panel.loglog(rough, [costs[n] for n in rough], f"C{color}x", ms=7)
        panel.axvline(fft_from_size(-1), color="black", linewidth=0.8)
        panel.set_title("one resized axis" if rank == 1 else "two resized axes")
        panel.set_xticks([10, 100, 1000], ["10", "100", "1000"])
        panel.set_yticks([2, 5, 10, 20], ["2", "5", "10", "20"])
        panel.minorticks_off()
        panel.set_ylabel("nanoseconds per sample")
    panels[-1].set_xlabel("samples per axis")
    panels[0].legend(loc="upper left")
    figure.savefig(measuring.RESULTS / "scale.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    console = Console(width=120)
    big = [large(shape, rank) for shape, rank in track(LARGE.items(), console=console)]
    cases = [(size, rank) for rank in (1, 2) for size in SIZES]
    rows = [over_size(size, rank) for size, rank in track(cases, console=console)]
    path = measuring.save("scale", {"large": big, "over size": rows})
    table = Table("input", "contender", "seconds", "peak MB", "peak / input")
    for row in big:
        for name, seconds in row["seconds"].items():
            peak = row["peak bytes"][name]
            shape = "x".join(map(str, row["shape"]))
            share = f"{peak / row['input bytes']:.2f}"
            table.add_row(shape, name, f"{seconds:.3f}", f"{peak / 1e6:.0f}", share)
    console.print(table)
    table = Table("axes", "size", *rows[0]["nanoseconds per sample"])
    for row in rows:
        costs = row["nanoseconds per sample"].values()
        table.add_row(str(row["axes"]), str(row["size"]), *(f"{cost:.1f}" for cost in costs))
    console.print(table)
    draw(rows)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
