"""Find the size from which FFTs beat a matrix product along an axis.

Usage: ``python benchmarks/engine_threshold.py``

The script times forward and backward with both engines on PyTorch, one axis at a time, for sizes 8
to 4096, in both conventions, along the last axis and along the axis before it. For each of these
two axes, it prints the threshold with the smallest worst-case loss against the better engine, and
the loss of the threshold in `diffstride_core.planning`. It writes `engine_threshold.json` and
`engine_threshold.png` to `benchmarks/results`.
"""

from __future__ import annotations

from functools import partial

import matplotlib.pyplot as plt
import measuring
import torch
from diffstride_torch.functional import diff_stride
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffstride_core.planning import fft_from_size

SIZES = sorted([2**k for k in range(3, 13)] + [3 * 2**k for k in range(2, 11)])
ELEMENTS = 2**20
COLUMNS = 32
LAYOUTS = {"last axis": -1, "axis before the last": -2}


def runs(size: int, layout: str, convention: str) -> measuring.Contenders:
    """Return functions that run forward and backward with each engine."""
    axis = LAYOUTS[layout]
    rows = ELEMENTS // size
    shape = (rows, size) if axis == -1 else (rows // COLUMNS, size, COLUMNS)
    x = torch.randn(shape, requires_grad=True)
    strides = torch.tensor(2.0, requires_grad=True)
    options = {"axes": (axis,), "convention": convention}
    g = torch.randn_like(diff_stride(x, strides, **options).detach())

    def run(method: str) -> None:
        x.grad = strides.grad = None
        diff_stride(x, strides, method=method, **options).backward(g)

    return {method: partial(run, method) for method in ("matmul", "fft")}


def loss(row: dict, threshold: int) -> float:
    """Return the time with a threshold, relative to the time of the better engine."""
    chosen = "fft" if row["size"] >= threshold else "matmul"
    return row["seconds"][chosen] / min(row["seconds"].values())


def judged(rows: list[dict], layout: str) -> dict[str, float]:
    """Return the threshold with the smallest worst loss, and the one in use, with their losses."""
    own = [row for row in rows if row["layout"] == layout]
    worst = {size: max(loss(row, size) - 1 for row in own) for size in SIZES}
    best, used = min(worst, key=worst.__getitem__), fft_from_size(LAYOUTS[layout])
    return {"best": best, "loss of best": worst[best], "used": used, "loss of used": worst[used]}


def main() -> None:
    """Run the benchmark."""
    console = Console(width=120)
    keys = [
        (layout, convention, size)
        for layout in LAYOUTS
        for convention in ("nominal", "paper")
        for size in SIZES
    ]
    rows = [
        {
            "layout": layout,
            "convention": convention,
            "size": size,
            "seconds": measuring.medians(runs(size, layout, convention), rounds=21, seconds=2),
        }
        for layout, convention, size in track(keys, console=console)
    ]
    table = Table(title="forward + backward, 2^20 samples, float32: milliseconds")
    for name in ("layout", "convention", "size", "matmul", "fft", "loss of auto"):
        table.add_column(name, justify="right")
    for row in rows:
        seconds = row["seconds"]
        table.add_row(
            row["layout"],
            row["convention"],
            str(row["size"]),
            *(f"{1e3 * seconds[method]:.2f}" for method in ("matmul", "fft")),
            f"{loss(row, fft_from_size(LAYOUTS[row['layout']])) - 1:.0%}",
        )
    console.print(table)
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    for panel, layout in zip(axes, LAYOUTS, strict=True):
        for convention, style in (("nominal", "-"), ("paper", "--")):
            chosen = [r for r in rows if (r["layout"], r["convention"]) == (layout, convention)]
            for method, color in (("matmul", "C0"), ("fft", "C1")):
                panel.loglog(
                    SIZES,
                    [1e3 * row["seconds"][method] for row in chosen],
                    style,
                    color=color,
                    label=f"{method}, {convention}",
                )
        panel.axvline(fft_from_size(LAYOUTS[layout]), color="black", linewidth=0.8)
        panel.set_title(f"{layout}; the line is auto's threshold", fontsize=10)
        panel.set_xlabel("size N of the axis")
    axes[0].set_ylabel("forward + backward, 2^20 samples, ms")
    axes[0].legend(fontsize=8)
    measuring.RESULTS.mkdir(exist_ok=True)
    figure.savefig(measuring.RESULTS / "engine_threshold.png", dpi=150)
    thresholds = {layout: judged(rows, layout) for layout in LAYOUTS}
    path = measuring.save("engine_threshold", {"thresholds": thresholds, "rows": rows})
    for layout, found in thresholds.items():
        console.print(
            f"{layout}: least worst loss from size {found['best']}, {found['loss of best']:.0%}; "
            f"auto, from size {found['used']}, {found['loss of used']:.0%}"
        )
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
