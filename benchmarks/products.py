"""Time the two matrix products of a resize on their own, in each library.

Usage: ``python benchmarks/products.py``

The product along the last axis is one large product; the product along the axis before it is a
batch of small ones. The speed of these products in a library limits the speed of the layer in it.
The script prints a table and writes `products.json` to `benchmarks/results`.
"""

from __future__ import annotations

import jax
import measuring
import numpy as np
import torch
from rich.console import Console
from rich.table import Table

SHAPES = [(2048, 32, 24), (512, 56, 36), (256, 112, 64)]
"""Batch, N and M of the shapes that the layer has targets for."""


def rates(batch: int, n: int, m: int) -> dict[str, float]:
    """Return multiply-adds per second of both products in each library, in float32."""
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, n, n), dtype=np.float32)
    a = generator.standard_normal((m, n), dtype=np.float32)
    on_torch, on_jax = (torch.from_numpy(x), torch.from_numpy(a)), (jax.device_put((x, a)))
    along_last = jax.jit(lambda x, a: x.reshape(-1, n) @ a.T)
    before_last = jax.jit(lambda x, a: a[None] @ x)
    groups = {
        "torch": {
            "last axis": lambda: on_torch[0].view(-1, n) @ on_torch[1].T,
            "before the last": lambda: on_torch[1][None] @ on_torch[0],
        },
        "jax": {
            "last axis": lambda: jax.block_until_ready(along_last(*on_jax)),
            "before the last": lambda: jax.block_until_ready(before_last(*on_jax)),
        },
        "numpy": {
            "last axis": lambda: x.reshape(-1, n) @ a.T,
            "before the last": lambda: a[None] @ x,
        },
    }
    count = batch * n * n * m
    return {
        f"{library}, {kind}": count / seconds
        for library, contenders in groups.items()
        for kind, seconds in measuring.medians(contenders, rounds=41, seconds=5).items()
    }


def main() -> None:
    """Run the benchmark."""
    measured = {f"{batch} x {n} x {n}, M = {m}": rates(batch, n, m) for batch, n, m in SHAPES}
    table = Table(title="products of float32, GFLOP/s")
    table.add_column("input")
    for kind in next(iter(measured.values())):
        table.add_column(kind, justify="right")
    for shape, row in measured.items():
        table.add_row(shape, *(f"{2 * rate / 1e9:.0f}" for rate in row.values()))
    console = Console(width=140)
    console.print(table)
    console.print(f"written: {measuring.save('products', {'multiply-adds per second': measured})}")


if __name__ == "__main__":
    main()
