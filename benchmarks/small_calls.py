"""Time a call so small that Python takes nearly all of it.

Usage: ``python benchmarks/small_calls.py``

An image of 16x16 pixels is downsampled by 2 on one thread, by the function and by the layer.
Without gradients, they are timed beside the two matrix products that the resize needs. Forward and
backward, they are timed beside the same layer written with FFTs and automatic differentiation. The
script prints a table, and writes `small_calls.json` to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import fft_autodiff
import measuring
import torch
from diffstride_torch import DiffStride2d, diff_stride, output_sizes
from rich.console import Console
from rich.table import Table

SHAPE, STRIDE, CALLS = (1, 1, 16, 16), 2.0, 200
REFERENCES = ("two products", "fft autodiff")


def many(call: Callable[[], object]) -> Callable[[], None]:
    """Return a function that makes the call many times, so that a clock can measure it."""

    def run() -> None:
        for _ in range(CALLS):
            call()

    return run


def measure(*, backward: bool) -> dict[str, float]:
    """Return the median time of each contender in seconds a call."""
    torch.manual_seed(0)
    x = torch.randn(SHAPE, requires_grad=backward)
    strides = torch.full((2,), STRIDE, requires_grad=backward)
    layer = DiffStride2d(STRIDE)
    rows, columns = (
        torch.randn(m, n) for m, n in zip(output_sizes(SHAPE, STRIDE), SHAPE[-2:], strict=True)
    )
    if backward:
        calls = {
            "function": measuring.with_backward(lambda: diff_stride(x, strides), x, strides),
            "layer": measuring.with_backward(lambda: layer(x), x, layer.strides),
            "fft autodiff": measuring.with_backward(
                lambda: fft_autodiff.diff_stride(x, strides, "nominal"), x, strides
            ),
        }
    else:
        calls = {
            "function": lambda: diff_stride(x, strides),
            "layer": lambda: layer(x),
            "two products": lambda: rows @ (x @ columns.mT),
        }
    with torch.set_grad_enabled(backward):
        taken = measuring.medians({name: many(call) for name, call in calls.items()}, rounds=25)
    return {name: seconds / CALLS for name, seconds in taken.items()}


def main() -> None:
    """Run the benchmark."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    torch.set_num_threads(1)
    rows = {
        "forward, without gradients": measure(backward=False),
        "forward and backward": measure(backward=True),
    }
    path = measuring.save("small_calls", {"shape": SHAPE, "stride": STRIDE, "seconds": rows})
    table = Table("", "contender", "microseconds", "over the reference")
    for passes, taken in rows.items():
        reference = next(taken[name] for name in REFERENCES if name in taken)
        for name, seconds in taken.items():
            table.add_row(passes, name, f"{1e6 * seconds:.1f}", f"{seconds / reference:.2f}")
    console = Console()
    console.print(table)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
