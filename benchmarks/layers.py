"""Time the layer beside alternatives to it.

Usage: ``python benchmarks/layers.py [--quick]``

All contenders are timed in one process, in alternation within each library: our layer on PyTorch,
JAX (jit) and NumPy with each engine; the same layer written with FFTs and automatic
differentiation; average pooling; antialiased interpolation to the same size; a strided convolution;
and a copy. The paper's convention and bfloat16 are timed only forward and backward at stride 2. The
script prints tables, and writes `layers.json` and `layers.png` to `benchmarks/results`. ``--quick``
times fewer shapes, forward and backward in float32 at stride 2, and writes `layers-quick.json` and
`layers-quick.png`.
"""

from __future__ import annotations

import argparse
import itertools
import math
import tracemalloc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial

import fft_autodiff
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import measuring
import numpy as np
import torch
from diffstride_jax.functional import diff_stride as jax_diff_stride
from diffstride_numpy.functional import diff_stride as numpy_diff_stride
from diffstride_numpy.functional import diff_stride_with_pullback as numpy_with_pullback
from diffstride_torch.functional import diff_stride, output_sizes
from rich.console import Console
from rich.progress import track
from rich.table import Table

SHAPES = [
    (32, 64, 32, 32),
    (8, 64, 56, 56),
    (4, 64, 112, 112),
    (32, 128, 16, 16),
    (16, 64, 64, 101),
    (1, 3, 224, 224),
    (1, 3, 512, 512),
    (1, 3, 1024, 1024),
    (16, 64, 16000),
]
WITH_TARGETS = [shape for shape in SHAPES if shape[-1] in (32, 56, 112, 1024)]
LONGEST_MATRIX = 2048
OURS, COMPARED = "ours, auto", ("fft autodiff", "interpolate", "avg_pool", "conv", "copy")


@dataclass(frozen=True)
class Case:
    """One row: the input, how it is downsampled, and whether the backward pass is included."""

    shape: tuple[int, ...]
    stride: float
    convention: str
    dtype: str
    backward: bool

    @property
    def axes(self) -> tuple[int, ...]:
        """Resized axes: one for sound, two for images."""
        return (-2, -1) if len(self.shape) == 4 else (-1,)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Output sizes of our layer."""
        return output_sizes(self.shape, self.stride, axes=self.axes, convention=self.convention)

    @property
    def output_shape(self) -> tuple[int, ...]:
        """Shape of our layer's output. The resized axes are the last ones."""
        return (*self.shape[: -len(self.axes)], *self.sizes)

    @property
    def methods(self) -> list[str]:
        """Engines that can be timed. A matrix for a long axis would not fit into memory."""
        return ["auto", "fft"] + ["matmul"] * (max(self.shape) <= LONGEST_MATRIX)


def torch_runs(case: Case) -> measuring.Contenders:
    """Return the contenders on PyTorch."""
    torch.manual_seed(0)
    functional = torch.nn.functional
    x = torch.randn(case.shape).to(getattr(torch, case.dtype)).requires_grad_(case.backward)
    strides = torch.full((len(case.axes),), case.stride, requires_grad=case.backward)
    channels, two = case.shape[1], len(case.axes) == 2
    weight = torch.randn(channels, channels, *(3,) * len(case.axes)).to(x.dtype)
    weight.requires_grad_(case.backward)
    target = torch.empty_like(x, requires_grad=False)
    options = {"axes": case.axes, "convention": case.convention}

    def run_of(forward: Callable[[], torch.Tensor], *leaves: torch.Tensor) -> Callable[[], object]:
        if not case.backward:
            return torch.no_grad()(forward)
        return measuring.with_backward(forward, *leaves)

    runs: measuring.Contenders = {}
    for method in case.methods:
        call = partial(diff_stride, x, strides, method=method, **options)
        runs[f"ours, {method}"] = run_of(call, x, strides)
    if x.dtype == torch.float32:
        call = partial(fft_autodiff.diff_stride, x, strides, case.convention)
        runs["fft autodiff"] = run_of(call, x, strides)
    pool = functional.avg_pool2d if two else functional.avg_pool1d
    conv = functional.conv2d if two else functional.conv1d
    whole = round(case.stride)
    runs["avg_pool"] = run_of(lambda: pool(x, whole), x)
    if two:
        resize = partial(functional.interpolate, size=case.sizes, mode="bilinear", antialias=True)
        if x.dtype == torch.float32:
            runs["interpolate"] = run_of(lambda: resize(x), x)
    runs["conv"] = run_of(lambda: conv(x, weight, stride=whole, padding=1), x, weight)
    runs["copy"] = lambda: target.copy_(x.detach())
    return runs


def jax_runs(case: Case) -> measuring.Contenders:
    """Return our layer on JAX, compiled."""
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], case.shape, dtype=case.dtype)
    strides = jnp.full((len(case.axes),), case.stride)
    g = jax.random.normal(keys[1], case.output_shape, dtype=case.dtype)
    runs: measuring.Contenders = {}
    for method in case.methods:
        layer = partial(
            jax_diff_stride,
            sizes=case.sizes,
            axes=case.axes,
            convention=case.convention,
            method=method,
        )

        def forward(x: jax.Array, strides: jax.Array, g: jax.Array, layer=layer) -> object:
            if not case.backward:
                return layer(x, strides)
            y, pullback = jax.vjp(layer, x, strides)
            return y, pullback(g)

        compiled = jax.jit(forward)
        runs[f"jax, {method}"] = lambda run=compiled: jax.block_until_ready(run(x, strides, g))
    return runs


def numpy_runs(case: Case) -> measuring.Contenders:
    """Return our layer on NumPy."""
    if case.dtype != "float32":
        return {}
    generator = np.random.default_rng(0)
    x = generator.standard_normal(case.shape, dtype=np.float32)
    strides = (case.stride,) * len(case.axes)
    runs: measuring.Contenders = {}
    for method in case.methods:
        options = {"axes": case.axes, "convention": case.convention, "method": method}
        if not case.backward:
            runs[f"numpy, {method}"] = partial(numpy_diff_stride, x, strides, **options)
            continue
        g = np.ones_like(numpy_diff_stride(x, strides, **options))

        def run(options=options, g=g) -> None:
            _, pullback = numpy_with_pullback(x, strides, **options)
            pullback(g)

        runs[f"numpy, {method}"] = run
    return runs


def necessary_multiply_adds(case: Case) -> int:
    """Count the multiply-adds that the matrix engine needs at least.

    These are the products with the axis matrices in each direction. Backward also needs the
    products of x and of the cotangent with the two factors of each slope, over all bins of the
    ramp.
    """
    sizes = [case.shape[axis] for axis in case.axes]
    batch = math.prod(case.shape) // math.prod(sizes)
    if len(sizes) == 1:
        (n,), (m,) = sizes, case.sizes
        ramp = 2 * ramp_bins(case, n)
        return batch * (2 * n * m + ramp * (n + m) if case.backward else n * m)
    (h, w), (mh, mw) = sizes, case.sizes
    forward = h * w * mw + h * mh * mw
    if not case.backward:
        return batch * forward
    rh, rw = 2 * ramp_bins(case, h), 2 * ramp_bins(case, w)
    of_height = rh * (h * w + mh * mw + w * mw)
    of_width = rw * (h * w + h * mw)
    return batch * (2 * forward + of_height + of_width)


def ramp_bins(case: Case, size: int) -> int:
    """Return the number of frequencies in the ramp."""
    if case.convention == "paper":
        return 4
    return math.ceil(max(0.25 * size / (2 * case.stride), 1.0))


def measure(case: Case, limits: dict[str, float], *, quick: bool) -> dict[str, object]:
    """Measure time and memory of the contenders of one case."""
    runs: measuring.Contenders = {}
    seconds: dict[str, float] = {}
    for contenders in (torch_runs, jax_runs, numpy_runs):
        group = contenders(case)
        runs |= group
        seconds |= measuring.medians(group, rounds=21 if quick else 7, seconds=10 if quick else 1.5)
    peak = {
        name: measuring.torch_peak(run)
        for name, run in runs.items()
        if not name.startswith(("jax", "numpy", "copy"))
    }
    for name in (name for name in runs if name.startswith("numpy")):
        tracemalloc.start()
        runs[name]()
        peak[name] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    shares = {}
    if "ours, matmul" in seconds and case.dtype == "float32":
        rate = necessary_multiply_adds(case) / seconds["ours, matmul"]
        shares["of the GEMM rate"] = rate / limits["gemm"]
    count = math.prod(case.shape) + math.prod(case.output_shape)
    moved = count * torch.finfo(getattr(torch, case.dtype)).bits / 8 * (1 + case.backward)
    shares["of the copy bandwidth"] = moved / seconds[OURS] / limits["copy"]
    return {"case": asdict(case), "seconds": seconds, "peak bytes": peak, "share": shares}


def show(console: Console, rows: list[dict]) -> None:
    """Print a table of milliseconds per dtype, direction and convention."""
    keys = ("dtype", "backward", "convention")
    for key, group in itertools.groupby(rows, lambda row: [row["case"][name] for name in keys]):
        dtype, backward, convention = key
        group = list(group)
        names = list(dict.fromkeys(name for row in group for name in row["seconds"]))
        direction = "forward + backward" if backward else "forward"
        table = Table(title=f"{direction}, {dtype}, {convention}: milliseconds")
        table.add_column("shape, stride")
        for name in [*names, "GEMM rate", "peak MB"]:
            table.add_column(name, justify="right")
        for row in group:
            case, seconds = row["case"], row["seconds"]
            gemm = row["share"].get("of the GEMM rate")
            table.add_row(
                f"{'x'.join(map(str, case['shape']))}, {case['stride']:g}",
                *(f"{1e3 * seconds[name]:.2f}" if name in seconds else "" for name in names),
                "" if gemm is None else f"{gemm:.0%}",
                f"{row['peak bytes'][OURS] / 1e6:.1f}",
            )
        console.print(table)


def show_ratios(console: Console, rows: list[dict]) -> None:
    """Print the ratios between the time of the layer and the time of each alternative."""
    table = Table(title="nominal, stride 2, float32, forward + backward: ratios of medians")
    for name in (
        "shape",
        "fft autodiff / ours",
        "ours / interpolate",
        "ours / avg_pool",
        "ours / conv",
        "jax / ours",
        "numpy / ours",
        "GEMM rate",
    ):
        table.add_column(name, justify="right")
    for row in _in_training(rows):
        case, seconds = row["case"], row["seconds"]
        ours = seconds[OURS]
        ratios = [
            seconds["fft autodiff"] / ours,
            ours / seconds["interpolate"] if "interpolate" in seconds else math.nan,
            ours / seconds["avg_pool"],
            ours / seconds["conv"],
            seconds["jax, auto"] / ours,
            seconds["numpy, auto"] / ours,
        ]
        gemm = row["share"].get("of the GEMM rate", math.nan)
        shape = "x".join(map(str, case["shape"]))
        cells = [f"{ratio:.2f}" for ratio in ratios] + [f"{gemm:.0%}"]
        table.add_row(shape, *("" if "nan" in cell else cell for cell in cells))
    console.print(table)


def _in_training(rows: list[dict]) -> list[dict]:
    """Return the rows for training steps: forward and backward, stride 2, nominal, float32."""
    wanted = {"stride": 2.0, "convention": "nominal", "dtype": "float32", "backward": True}
    return [row for row in rows if wanted.items() <= row["case"].items()]


def draw(rows: list[dict], name: str) -> None:
    """Draw the layer and its alternatives, forward and backward at stride 2 in float32."""
    chosen = _in_training(rows)
    names = [OURS, "jax, auto", "numpy, auto", *COMPARED]
    figure, axes = plt.subplots(figsize=(10, 4.5), layout="constrained")
    for i, contender in enumerate(names):
        at = [j + (i - len(names) / 2) * 0.1 for j in range(len(chosen))]
        ratio = [row["seconds"].get(contender, math.nan) / row["seconds"][OURS] for row in chosen]
        axes.bar(at, ratio, width=0.1, label=contender)
    axes.axhline(1, color="black", linewidth=0.8)
    axes.set_yscale("log")
    axes.set_ylabel("time, relative to our layer on PyTorch")
    labels = ["x".join(map(str, row["case"]["shape"])) for row in chosen]
    axes.set_xticks(range(len(chosen)), labels, fontsize=8)
    axes.set_title("Forward + backward, stride 2, nominal convention, float32 (log scale)")
    figure.legend(loc="outside lower center", ncols=8, fontsize=8)
    figure.savefig(measuring.RESULTS / f"{name}.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="only the shapes with targets")
    quick = parser.parse_args().quick
    console = Console(width=230)
    limits = measuring.machine_limits()
    shapes = WITH_TARGETS if quick else SHAPES
    cases = [Case(shape, 2.0, "nominal", "float32", True) for shape in shapes]
    if not quick:
        cases += [Case(shape, 2.7, "nominal", "float32", True) for shape in shapes]
        cases += [
            Case(shape, stride, "nominal", "float32", False)
            for shape in shapes
            for stride in (2.0, 2.7)
        ]
        cases += [Case(shape, 2.0, "nominal", "bfloat16", True) for shape in shapes]
        cases += [Case(shape, 2.0, "paper", "float32", True) for shape in shapes]
    rows = [measure(case, limits, quick=quick) for case in track(cases, console=console)]
    name = "layers-quick" if quick else "layers"
    path = measuring.save(name, {"limits": limits, "rows": rows})
    show(console, rows)
    show_ratios(console, rows)
    draw(rows, name)
    console.print(
        f"GEMM {2 * limits['gemm'] / 1e9:.0f} GFLOP/s, copy {limits['copy'] / 1e9:.1f} GB/s; "
        f"written: {path}"
    )


if __name__ == "__main__":
    main()
