"""Time a convolution and the layer behind it, fused and one after the other.

Usage: ``python benchmarks/fused.py``

Forward and backward in float32 over a grid of channels, sizes, strides and conventions, with a few
depthwise, grouped, dilated and one-dimensional convolutions: by the framework's own convolution and
the layer after it, by shifted resizes and one pointwise convolution, and beside them the strided
convolution that both stand in for; on PyTorch and, but for the latter, on JAX (jit). Prints a table
with what ``method="auto"`` chooses, the multiply-adds of both and the peak memory, tries what the
choice is made by, and writes `fused.json` and `fused.png` to `benchmarks/results`.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import jax
import matplotlib.pyplot as plt
import measuring
import numpy as np
import torch
from diffstride_jax.functional import conv_diff_stride as jax_conv_diff_stride
from diffstride_torch import conv_diff_stride, output_sizes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffstride_core.convolution import (
    UNITS,
    ConvPlan,
    checked_convolution,
    costs,
    is_fused_cheaper,
)
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import make_settings

METHODS = ("separate", "fused")


@dataclass(frozen=True)
class Case:
    """One convolution with the layer behind it."""

    batch: int
    inputs: int
    outputs: int
    size: int
    stride: float
    convention: str = "relative"
    kernel: int = 3
    groups: int = 1
    dilation: int = 1
    rank: int = 2

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the input."""
        return (self.batch, self.inputs, *(self.size,) * self.rank)

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """Shape of the weight."""
        return (self.outputs, self.inputs // self.groups, *(self.kernel,) * self.rank)

    @property
    def axes(self) -> tuple[int, ...]:
        """The spatial axes."""
        return tuple(range(-self.rank, 0))

    @property
    def name(self) -> str:
        """What the table calls it."""
        extra = f", {self.groups} groups" if self.groups > 1 else ""
        extra += f", dilation {self.dilation}" if self.dilation > 1 else ""
        extra += f", kernel {self.kernel}" if self.kernel != 3 else ""
        size = "x".join([str(self.size)] * self.rank)
        return f"{self.batch} x {self.inputs}->{self.outputs}, {size}{extra}"

    @property
    def plan(self) -> ConvPlan:
        """Its plan."""
        settings = make_settings(axes=self.axes, convention=self.convention)
        strides, sizes = (self.stride,) * self.rank, self.shape[2:]
        resize = plan_diff_stride(settings, self.axes, sizes, strides, shared=False)
        conv = checked_convolution(
            self.shape, self.weight_shape, dilation=self.dilation, groups=self.groups
        )
        return ConvPlan(conv, resize)


def cases() -> list[Case]:
    """Return the grid."""
    found = [
        Case(batch, inputs, 2 * inputs, size, stride, convention)
        for (batch, inputs, size) in (
            (32, 16, 32),
            (64, 32, 16),
            (8, 64, 56),
            (16, 64, 32),
            (8, 128, 28),
            (16, 128, 16),
            (16, 256, 14),
        )
        for stride, convention in (
            *itertools.product((1.5, 2.0, 3.0), ("relative",)),
            (2.0, "paper"),
            (4.0, "paper"),
        )
    ]
    return [
        *found,
        Case(8, 64, 64, 32, 2.0),
        Case(8, 256, 64, 28, 2.0),
        Case(16, 64, 128, 32, 2.0, kernel=5),
        Case(16, 64, 128, 32, 3.0, kernel=1),
        Case(8, 128, 256, 28, 2.0, dilation=2),
        Case(8, 128, 256, 28, 2.0, groups=4),
        Case(8, 128, 128, 28, 2.0, groups=128),
        Case(8, 128, 128, 28, 4.0, groups=128),
        Case(8, 64, 128, 500, 2.0, kernel=9, rank=1),
        Case(8, 64, 128, 250, 2.0, kernel=9, rank=1),
        Case(8, 128, 256, 1000, 3.0, rank=1),
    ]


def contenders(case: Case) -> measuring.Contenders:
    """Return what is timed: forward and backward."""
    torch.manual_seed(0)
    x = torch.randn(case.shape, requires_grad=True)
    weight = torch.randn(case.weight_shape, requires_grad=True)
    strides = torch.full((case.rank,), case.stride, requires_grad=True)
    sizes = output_sizes(case.shape, strides, axes=case.axes, convention=case.convention)
    g = torch.randn(case.batch, case.outputs, *sizes)
    convolve = (torch.nn.functional.conv1d, torch.nn.functional.conv2d)[case.rank - 1]
    options = {"dilation": case.dilation, "groups": case.groups}
    padding = case.dilation * (case.kernel // 2)

    def run(method: str) -> None:
        y = conv_diff_stride(
            x, weight, strides, convention=case.convention, method=method, **options
        )
        torch.autograd.grad(y, (x, weight, strides), g)

    def strided() -> None:
        whole = max(1, round(case.stride))
        y = convolve(x, weight, stride=whole, padding=padding, **options)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    runs: dict[str, Callable[[], object]] = {
        method: lambda method=method: run(method) for method in METHODS
    }
    return {**runs, "strided": strided}


def jax_contenders(case: Case) -> measuring.Contenders:
    """Return what is timed on JAX, each compiled as a whole."""
    random, sizes = np.random.default_rng(0), case.plan.resize.output_sizes
    shapes = (case.shape, case.weight_shape, (case.batch, case.outputs, *sizes))
    x, weight, g = (
        jax.numpy.asarray(random.standard_normal(shape, dtype=np.float32)) for shape in shapes
    )
    strides = jax.numpy.full((case.rank,), case.stride)
    options = {"dilation": case.dilation, "groups": case.groups, "convention": case.convention}

    def run(method: str) -> Callable[[], object]:
        def evaluate(*arrays: jax.Array) -> jax.Array:
            return jax_conv_diff_stride(*arrays, sizes=sizes, method=method, **options)

        @jax.jit
        def step(g: jax.Array, *arrays: jax.Array) -> tuple:
            y, pullback = jax.vjp(evaluate, *arrays)
            return y, pullback(g)

        return lambda: jax.block_until_ready(step(g, x, weight, strides))

    return {method: run(method) for method in METHODS}


def measure(case: Case) -> dict[str, object]:
    """Time and weigh the contenders of one case."""
    runs = contenders(case)
    seconds = measuring.medians(runs, rounds=15, seconds=6)
    plan = case.plan
    return {
        "case": asdict(case),
        "name": case.name,
        "sizes": plan.resize.output_sizes,
        "seconds": seconds,
        "peak bytes": {name: measuring.torch_peak(runs[name]) for name in METHODS},
        "costs": {name: [case.batch * part for part in costs(plan)[name]] for name in METHODS},
        "auto": "fused" if is_fused_cheaper(plan) else "separate",
    }


def regret(row: dict, units: dict[str, tuple[float, ...]]) -> float:
    """Return by which factor the choice by some units is slower than the better of the two."""
    seconds = row["seconds"]
    expected = {name: np.dot(row["costs"][name], units[name]) for name in METHODS}
    return seconds[min(METHODS, key=expected.__getitem__)] / min(map(seconds.get, METHODS))


def misjudgement(row: dict, units: dict[str, tuple[float, ...]]) -> float:
    """Return the logarithm of the factor by which some units misjudge the gain."""
    seconds = row["seconds"]
    expected = {name: np.dot(row["costs"][name], units[name]) for name in METHODS}
    gain = seconds["separate"] / seconds["fused"]
    return abs(math.log(expected["separate"] / expected["fused"] / gain))


def best_units(rows: list[dict]) -> tuple[float, dict[str, tuple[float, ...]]]:
    """Return the units of costs whose worst choice is the least bad, and that choice's factor.

    Among equals those that misjudge the gains least.
    """
    candidates = (
        {"separate": (1.0, resize), "fused": (pointwise, shifted)}
        for resize, pointwise, shifted in itertools.product(
            (1.0, 2.0, 3.0, 4.0), (1.0, 1.25, 1.5, 1.75), (2.0, 3.0, 4.0, 5.0)
        )
    )

    def judged(units: dict[str, tuple[float, ...]]) -> tuple[float, float]:
        worst = max(regret(row, units) for row in rows)
        return round(worst, 2), sum(misjudgement(row, units) for row in rows)

    units = min(candidates, key=judged)
    return judged(units)[0], units


def show(console: Console, rows: list[dict]) -> None:
    """Print the table."""
    table = Table(title="forward + backward, float32: milliseconds")
    for column in (
        *("convolution", "stride", "to", "strided", "separate", "fused", "separate / fused"),
        *("multiply-adds", "on JAX", "memory, fused / separate", "auto", "of the better"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        seconds, case = row["seconds"], row["case"]
        products = {name: sum(row["costs"][name]) for name in METHODS}
        peak = row["peak bytes"]
        table.add_row(
            row["name"],
            f"{case['stride']:g} {case['convention']}",
            "x".join(map(str, row["sizes"])),
            *(f"{1e3 * seconds[name]:.1f}" for name in ("strided", *METHODS)),
            f"{seconds['separate'] / seconds['fused']:.2f}",
            f"{products['separate'] / products['fused']:.2f}",
            f"{row['seconds on JAX']['separate'] / row['seconds on JAX']['fused']:.2f}",
            f"{peak['fused'] / peak['separate']:.2f}",
            row["auto"],
            f"{regret(row, UNITS):.2f}",
        )
    console.print(table)


def draw(rows: list[dict]) -> None:
    """Draw the gain over how much smaller the map gets."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for convention, marker in (("relative", "o"), ("paper", "s")):
        chosen = [
            row
            for row in rows
            if row["case"]["convention"] == convention
            and row["case"]["rank"] == 2
            and row["case"]["groups"] == 1
        ]
        at = [math.prod(row["sizes"]) ** 0.5 / row["case"]["size"] for row in chosen]
        gain = [row["seconds"]["separate"] / row["seconds"]["fused"] for row in chosen]
        points = axes.scatter(
            at,
            gain,
            c=[math.log2(row["case"]["inputs"]) for row in chosen],
            marker=marker,
            label=convention,
            vmin=4,
            vmax=8,
        )
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_yticks([0.25, 0.5, 1, 2, 4], ["0.25", "0.5", "1", "2", "4"])
    axes.minorticks_off()
    axes.set_xlabel("output size / input size, M/N")
    axes.set_ylabel("time separate / time fused")
    axes.set_title("Forward + backward, one convolution with the layer behind it")
    bar = figure.colorbar(points, label="input channels")
    bar.set_ticks(range(4, 9), labels=[str(2**k) for k in range(4, 9)])
    axes.legend(title="convention")
    figure.savefig(measuring.RESULTS / "fused.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    console = Console(width=190)
    rows = [measure(case) for case in track(cases(), "PyTorch", console=console)]
    for row, case in zip(rows, track(cases(), "JAX", console=console), strict=True):
        row["seconds on JAX"] = measuring.medians(jax_contenders(case), rounds=9, seconds=3)
    path = measuring.save("fused", {"rows": rows})
    show(console, rows)
    draw(rows)
    worst = max(rows, key=lambda row: regret(row, UNITS))
    factor, units = best_units(rows)
    console.print(
        f"auto is at worst {regret(worst, UNITS):.2f} of the better, at {worst['name']}; "
        f"with {units} it would be {factor:.2f}"
    )
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
