"""Time a convolution with the layer before it or after it, beside a strided convolution.

Usage: ``python benchmarks/fused.py``

The script times forward and backward in float32 over a grid of channels, sizes, strides and
conventions, with a few depthwise, grouped, dilated and one-dimensional convolutions, on PyTorch and
on JAX (jit). The layer comes before the convolution ("before"), or after it. After it, the
evaluation is the framework's own convolution and then the resize ("separate"), or shifted resizes
and one pointwise convolution ("fused"). The script prints a table with the choice of
``method="auto"`` between the last two, and the units that would choose best. It writes `fused.json`
and `fused.png` to `benchmarks/results`.
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
from diffstride_backends.jax_backend import EVALUATION_UNITS as JAX_UNITS
from diffstride_backends.torch_backend import EVALUATION_UNITS as TORCH_UNITS
from diffstride_jax.functional import conv_diff_stride as jax_conv_diff_stride
from diffstride_jax.functional import diff_stride as jax_diff_stride
from diffstride_torch import conv_diff_stride, diff_stride, output_sizes
from rich.console import Console
from rich.progress import track
from rich.table import Table

from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import checked_convolution
from diffstride_core.convolution.evaluation import EvaluationUnits
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import make_settings

METHODS = ("separate", "fused")
# Key of each framework's measurements, and the units with which it chooses.
FRAMEWORKS = {"PyTorch": ("seconds", TORCH_UNITS), "JAX": ("seconds on JAX", JAX_UNITS)}


@dataclass(frozen=True)
class Case:
    """One convolution with the layer after it."""

    batch: int
    inputs: int
    outputs: int
    size: int
    stride: float
    convention: str = DEFAULT_CONVENTION
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
        """Spatial axes."""
        return tuple(range(-self.rank, 0))

    @property
    def name(self) -> str:
        """Name in the table."""
        extra = f", {self.groups} groups" if self.groups > 1 else ""
        extra += f", dilation {self.dilation}" if self.dilation > 1 else ""
        extra += f", kernel {self.kernel}" if self.kernel != 3 else ""
        size = "x".join([str(self.size)] * self.rank)
        return f"{self.batch} x {self.inputs}->{self.outputs}, {size}{extra}"

    @property
    def plan(self) -> ConvPlan:
        """Plan of the convolution and the resize."""
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
            *itertools.product((1.5, 2.0, 3.0), ("nominal",)),
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
    """Return the contenders on PyTorch, each with forward and backward."""
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

    def before() -> None:
        small = diff_stride(x, strides, axes=case.axes, convention=case.convention)
        y = convolve(small, weight, padding=padding, **options)
        torch.autograd.grad(y, (x, weight, strides), g)

    def strided() -> None:
        whole = max(1, round(case.stride))
        y = convolve(x, weight, stride=whole, padding=padding, **options)
        torch.autograd.grad(y, (x, weight), torch.ones_like(y))

    runs: dict[str, Callable[[], object]] = {
        method: lambda method=method: run(method) for method in METHODS
    }
    return {**runs, "before": before, "strided": strided}


def jax_contenders(case: Case) -> measuring.Contenders:
    """Return the contenders on JAX, each compiled as a whole."""
    random, sizes = np.random.default_rng(0), case.plan.resize.output_sizes
    shapes = (case.shape, case.weight_shape, (case.batch, case.outputs, *sizes))
    x, weight, g = (
        jax.numpy.asarray(random.standard_normal(shape, dtype=np.float32)) for shape in shapes
    )
    strides = jax.numpy.full((case.rank,), case.stride)
    options = {"dilation": case.dilation, "groups": case.groups, "convention": case.convention}

    rank = "DHW"[-case.rank :]
    numbers = jax.lax.conv_dimension_numbers(
        case.shape, case.weight_shape, (f"NC{rank}", f"OI{rank}", f"NC{rank}")
    )

    def convolve(x: jax.Array, weight: jax.Array, stride: int = 1) -> jax.Array:
        return jax.lax.conv_general_dilated(
            x,
            weight,
            (stride,) * case.rank,
            [(case.dilation * (case.kernel // 2),) * 2] * case.rank,
            rhs_dilation=(case.dilation,) * case.rank,
            dimension_numbers=numbers,
            feature_group_count=case.groups,
        )

    def separate(x: jax.Array, weight: jax.Array, strides: jax.Array) -> jax.Array:
        return jax_conv_diff_stride(x, weight, strides, sizes=sizes, method="separate", **options)

    def fused(x: jax.Array, weight: jax.Array, strides: jax.Array) -> jax.Array:
        return jax_conv_diff_stride(x, weight, strides, sizes=sizes, method="fused", **options)

    def before(x: jax.Array, weight: jax.Array, strides: jax.Array) -> jax.Array:
        small = jax_diff_stride(x, strides, sizes=sizes, axes=case.axes, convention=case.convention)
        return convolve(small, weight)

    whole = max(1, round(case.stride))

    def strided(x: jax.Array, weight: jax.Array, strides: jax.Array) -> jax.Array:
        return convolve(x, weight, whole)

    def run(evaluate: Callable[..., jax.Array]) -> Callable[[], object]:
        @jax.jit
        def step(*arrays: jax.Array) -> tuple:
            y, pullback = jax.vjp(evaluate, *arrays)
            # If sizes are equal, the cotangent is g. A strided convolution may need its own.
            return y, pullback(g if g.shape == y.shape else jax.numpy.ones_like(y))

        return lambda: jax.block_until_ready(step(x, weight, strides))

    return {f.__name__: run(f) for f in (separate, fused, before, strided)}


def measure(case: Case) -> dict[str, object]:
    """Measure time and memory of the contenders of one case on PyTorch."""
    runs = contenders(case)
    seconds = measuring.medians(runs, rounds=15, seconds=6)
    return {
        "case": asdict(case),
        "name": case.name,
        "sizes": case.plan.resize.output_sizes,
        "seconds": seconds,
        "peak bytes": {name: measuring.torch_peak(run) for name, run in runs.items()},
    }


def regret(row: dict, key: str, units: EvaluationUnits) -> float:
    """Return the factor by which the choice with some units is slower than the better method."""
    seconds, expected = row[key], units.expected(Case(**row["case"]).plan)
    return seconds[min(METHODS, key=expected.__getitem__)] / min(map(seconds.get, METHODS))


def misjudgement(row: dict, key: str, units: EvaluationUnits) -> float:
    """Return the logarithm of the factor by which some units misjudge the gain."""
    seconds, expected = row[key], units.expected(Case(**row["case"]).plan)
    gain = seconds["separate"] / seconds["fused"]
    return abs(math.log(expected["separate"] / expected["fused"] / gain))


def best_units(rows: list[dict], key: str) -> tuple[float, EvaluationUnits]:
    """Return the smallest worst factor that any units of cost reach, and these units.

    Among equal units, those that misjudge the gains least are returned.
    """
    candidates = itertools.starmap(
        EvaluationUnits,
        itertools.product(
            (1.0, 2.0, 4.0, 8.0, 16.0),
            (1.0, 2.0, 3.0, 4.0),
            (1.0, 1.25, 1.5, 1.75),
            (2.0, 3.0, 4.0, 5.0),
        ),
    )

    def judged(units: EvaluationUnits) -> tuple[float, float]:
        worst = max(regret(row, key, units) for row in rows)
        return round(worst, 2), sum(misjudgement(row, key, units) for row in rows)

    units = min(candidates, key=judged)
    return judged(units)[0], units


def show(console: Console, rows: list[dict], framework: str) -> None:
    """Print the table of one framework."""
    key, units = FRAMEWORKS[framework]
    table = Table(title=f"forward + backward, float32, {framework}: milliseconds")
    for column in (
        *("convolution", "stride", "to", "strided", "before", "separate", "fused"),
        *("before / strided", "separate / fused", "auto", "of the better"),
    ):
        table.add_column(column, justify="right")
    for row in rows:
        seconds, case = row[key], row["case"]
        expected = units.expected(Case(**case).plan)
        table.add_row(
            row["name"],
            f"{case['stride']:g} {case['convention']}",
            "x".join(map(str, row["sizes"])),
            *(f"{1e3 * seconds[name]:.1f}" for name in ("strided", "before", *METHODS)),
            f"{seconds['before'] / seconds['strided']:.2f}",
            f"{seconds['separate'] / seconds['fused']:.2f}",
            min(METHODS, key=expected.__getitem__),
            f"{regret(row, key, units):.2f}",
        )
    console.print(table)


def draw(rows: list[dict]) -> None:
    """Draw the time of each evaluation relative to the strided convolution, at stride 2."""
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    chosen = [
        row
        for row in rows
        if row["case"]["convention"] == "nominal" and row["case"]["stride"] == 2.0
    ]
    for i, name in enumerate(("before", *METHODS)):
        at = [j + 0.27 * (i - 1) for j in range(len(chosen))]
        ratio = [row["seconds"][name] / row["seconds"]["strided"] for row in chosen]
        axes.barh(at, ratio, height=0.25, label=name)
    axes.set_yticks(range(len(chosen)), [row["name"] for row in chosen], fontsize=8)
    axes.invert_yaxis()
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xlabel("time, relative to the strided convolution (stride 2, PyTorch)")
    axes.legend()
    figure.savefig(measuring.RESULTS / "fused.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    console = Console(width=190)
    rows = [measure(case) for case in track(cases(), "PyTorch", console=console)]
    for row, case in zip(rows, track(cases(), "JAX", console=console), strict=True):
        row["seconds on JAX"] = measuring.medians(jax_contenders(case), rounds=9, seconds=3)
    path = measuring.save("fused", {"rows": rows})
    draw(rows)
    for framework, (key, units) in FRAMEWORKS.items():
        show(console, rows, framework)
        worst = max(rows, key=lambda row: regret(row, key, units))
        factor, units_found = best_units(rows, key)
        console.print(
            f"{framework}: auto is at worst {regret(worst, key, units):.2f} of the better, at "
            f"{worst['name']}; with {units_found} it would be {factor:.2f}"
        )
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
