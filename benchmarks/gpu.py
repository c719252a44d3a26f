"""Run all measurements on a GPU, in at most eight minutes.

Usage: ``python benchmarks/gpu.py [--sections NAME ...] [--cpu]``

Each section runs in its own process, with its own time limit. A section that fails, or whose
framework is missing, does not affect the others. The script prints a table per section and writes
`gpu.json` to `benchmarks/results` after every section. ``--cpu`` is a rehearsal: it runs the same
code with small shapes on the CPU and writes nothing.

- ``kit-torch``, ``kit-torch-tf32``, ``kit-jax``, ``kit-cupy``: representative cases of the
  conformance kit on the GPU; the number of compared cases, and the worst error in units of its
  tolerance.
- ``layers``: the layer beside its alternatives, forward and backward, and the share of the copy
  bandwidth that it reaches.
- ``jax``: the compiled layer in JAX.
- ``steps``: training steps of ResNet-18 with each way of downsampling.
- ``synchronisation``: how often a steady training step waits for the GPU, from the profiler.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

RESULT = Path(__file__).parent / "results" / "gpu.json"

Row = dict[str, Any]


# --- Timing -----------------------------------------------------------------------------------


def median_seconds(run: Callable[[], object], wait: Callable[[], object], seconds: float) -> float:
    """Return the median time of a function, including the wait, after three warm-up calls."""
    for _ in range(3):
        run()
    wait()
    taken, began = [], time.perf_counter()
    while len(taken) < 5 or (len(taken) < 100 and time.perf_counter() - began < seconds):
        start = time.perf_counter()
        run()
        wait()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def torch_device(*, cpu: bool) -> tuple[str, Callable[[], object]]:
    """Return the device to measure and the function that waits for it."""
    import torch

    if cpu:
        return "cpu", lambda: None
    if not torch.cuda.is_available():
        raise RuntimeError("PyTorch finds no GPU")
    return "cuda", torch.cuda.synchronize


# --- Sections ---------------------------------------------------------------------------------


def kit(name: str, seconds: float, *, cpu: bool, tf32: bool = False) -> list[Row]:
    """Compare representative cases of the conformance kit with the oracle."""
    from diffstride_conformance import frameworks
    from diffstride_conformance.comparison import Mismatch
    from diffstride_conformance.frameworks import as_implementation
    from diffstride_conformance.implementation import offers
    from diffstride_conformance.problems import is_posed
    from diffstride_conformance.run import run_case
    from diffstride_conformance.selection import representative_cases

    implementation = as_implementation(frameworks.get(name))
    found = [device for device in implementation.devices() if "cpu" not in str(device).lower()]
    if not found and not cpu:
        raise RuntimeError(f"{name} finds no GPU")
    device = None if cpu else found[0]
    if name == "torch":
        import torch

        torch.backends.cuda.matmul.allow_tf32 = tf32
        torch.backends.cudnn.allow_tf32 = tf32
    cases = [
        case
        for case in representative_cases()
        if offers(implementation, case.operation, case.method)
    ]
    rows, end = [], time.perf_counter() + seconds
    for dtype in ("float32",) if tf32 else ("float32", "float64", "bfloat16"):
        if dtype not in implementation.dtypes(device):
            continue
        limit = time.perf_counter() + (end - time.perf_counter()) / 2
        compared, worst, failures = 0, 0.0, []
        for case in (case for case in cases if is_posed(case, dtype)):
            if compared >= 3 and (cpu or time.perf_counter() > limit):
                break
            try:
                worst = max(worst, *run_case(implementation, case, dtype, device=device).values())
            except Mismatch as error:
                failures.append(f"{case.name}: {error}")
            compared += 1
        rows.append(
            {
                "dtype": dtype,
                "cases": compared,
                "of": sum(is_posed(case, dtype) for case in cases),
                "worst error, tolerances": worst,
                "failures": failures,
            }
        )
    return rows


def layers(seconds: float, *, cpu: bool) -> list[Row]:
    """Time the layer beside its alternatives on PyTorch."""
    import fft_autodiff
    import measuring
    import torch
    from diffstride_torch import diff_stride, output_sizes

    device, wait = torch_device(cpu=cpu)
    functional = torch.nn.functional
    shapes = [(32, 64, 32, 32), (64, 64, 56, 56), (32, 64, 112, 112), (16, 64, 64, 101)]
    if cpu:
        shapes = [(2, 4, 16, 16)]
    each = seconds / (len(shapes) * 2 * 6 + 1)
    size = 2**16 if cpu else 2**28
    source, target = (torch.empty(size, device=device) for _ in "ab")
    bandwidth = 8 * size / median_seconds(partial(target.copy_, source), wait, each)
    del source, target
    rows = []
    for shape in shapes:
        for dtype in (torch.float32, torch.bfloat16):
            x = torch.randn(shape, device=device, dtype=dtype, requires_grad=True)
            strides = torch.full((2,), 2.0, device=device, requires_grad=True)
            sizes = output_sizes(shape, 2.0)
            channels = shape[1]
            weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
            weight.requires_grad_()
            # With given sizes, strides stay on the device, as in a steady step of a module.
            contenders: dict[str, Callable[[], torch.Tensor]] = {
                "ours": partial(diff_stride, x, strides, sizes=sizes),
                "avg_pool2d": partial(functional.avg_pool2d, x, 2),
                "strided convolution": partial(functional.conv2d, x, weight, stride=2, padding=1),
            }
            if dtype == torch.float32:
                contenders["FFT autodiff"] = partial(
                    fft_autodiff.diff_stride, x, strides, "nominal"
                )
                contenders["interpolate"] = partial(
                    functional.interpolate, x, size=sizes, mode="bilinear", antialias=True
                )
            row: Row = {"shape": "x".join(map(str, shape)), "dtype": str(dtype)[6:]}
            for name, forward in contenders.items():
                run = measuring.with_backward(forward, x, strides, weight)
                row[f"{name}, ms"] = 1e3 * median_seconds(run, wait, each)
            moved = (
                2
                * x.element_size()
                * (x.numel() + x.numel() * math.prod(sizes) / (shape[2] * shape[3]))
            )
            row["share of copy bandwidth"] = moved / (row["ours, ms"] / 1e3) / bandwidth
            rows.append(row)
    return rows


def jax_layers(seconds: float, *, cpu: bool) -> list[Row]:
    """Time the compiled layer in JAX."""
    import jax
    import jax.numpy as jnp
    from diffstride_jax import diff_stride, output_sizes

    if jax.default_backend() == "cpu" and not cpu:
        raise RuntimeError("JAX finds no GPU")
    shapes = [(2, 4, 16, 16)] if cpu else [(32, 64, 32, 32), (64, 64, 56, 56), (32, 64, 112, 112)]
    rows = []
    for shape in shapes:
        for dtype in ("float32", "bfloat16"):
            x = jax.random.normal(jax.random.key(0), shape, dtype=dtype)
            sizes = output_sizes(shape, 2.0)
            strides = jnp.full((2,), 2.0)

            def step(x: jax.Array, strides: jax.Array, sizes=sizes) -> object:
                y, pullback = jax.vjp(partial(diff_stride, sizes=sizes), x, strides)
                return y, pullback(y)

            start = time.perf_counter()
            compiled = jax.jit(step).lower(x, strides).compile()
            first = time.perf_counter() - start
            run = partial(compiled, x, strides)
            taken = median_seconds(
                lambda run=run: jax.block_until_ready(run()), lambda: None, seconds / 8
            )
            rows.append(
                {
                    "shape": "x".join(map(str, shape)),
                    "dtype": dtype,
                    "ours, ms": 1e3 * taken,
                    "compilation, s": first,
                }
            )
    return rows


KINDS: dict[str, Row] = {
    "strided convolution": {"pooling": "conv"},
    "spectral pooling": {"pooling": "spectral"},
    "DiffStride": {},
    "DiffStride, the paper's": {"placement": "after", "convention": "paper"},
}


def training_step(kind: str, device: str, dtype: str, *, cpu: bool) -> Callable[[], None]:
    """Return a whole step of ResNet-18, except the projection, which reads the strides."""
    import torch
    from diffstride_torch import param_groups
    from diffstride_torch.models import preact_resnet18, small_resnet

    torch.manual_seed(0)
    make = small_resnet if cpu else preact_resnet18
    model = make(strides=(2.0, 2.0, 2.0), in_channels=3, num_classes=10, **KINDS[kind])
    model.to(device, memory_format=torch.channels_last)
    batch = 4 if cpu else 128
    images = torch.randn(batch, 3, 32, 32, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (batch,), device=device)
    # At this rate, no size changes during the timing.
    optimizer = torch.optim.SGD(param_groups(model, lr=1e-6, stride_lr=1e-6), momentum=0.9)
    precision = (
        partial(torch.autocast, device, torch.bfloat16) if dtype == "bfloat16" else nullcontext
    )

    def step() -> None:
        optimizer.zero_grad()
        with precision():
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()

    step.model = model  # type: ignore[attr-defined]
    return step


def steps(seconds: float, *, cpu: bool) -> list[Row]:
    """Time training steps of each kind, relative to the strided network."""
    device, wait = torch_device(cpu=cpu)
    rows = []
    for dtype in ("float32", "bfloat16"):
        strided = None
        for kind in KINDS:
            step = training_step(kind, device, dtype, cpu=cpu)
            taken = median_seconds(step, wait, seconds / (2 * len(KINDS)))
            strided = strided or taken
            rows.append(
                {"dtype": dtype, "network": kind, "ms": 1e3 * taken, "ratio": taken / strided}
            )
    return rows


SYNCHRONISATIONS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize")


def synchronisation(seconds: float, *, cpu: bool) -> list[Row]:
    """Count the waits for the GPU in a steady training step, and in the projection after it."""
    import torch
    from diffstride_torch import project_strides
    from torch.profiler import ProfilerActivity, profile

    device, wait = torch_device(cpu=cpu)
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device == "cuda")
    rows = []
    for kind in KINDS:
        step = training_step(kind, device, "float32", cpu=cpu)
        model: torch.nn.Module = step.model  # type: ignore[attr-defined]
        project = partial(project_strides, model) if "DiffStride" in kind else None
        for _ in range(3):
            step()
            if project is not None:
                project()
        wait()
        for part, run in (("step", step), ("projection", project)):
            if run is None:
                continue
            with profile(activities=activities) as recorded:
                run()
            names = [event.name for event in recorded.events()]
            rows.append(
                {
                    "network": kind,
                    "part": part,
                    "synchronisations": sum(name in SYNCHRONISATIONS for name in names),
                    "copies to the host": sum("DtoH" in name for name in names),
                    "kernel launches": sum("LaunchKernel" in name for name in names),
                }
            )
    return rows


SECTIONS: dict[str, tuple[Callable[..., list[Row]], float]] = {
    "kit-torch": (partial(kit, "torch"), 60),
    "kit-torch-tf32": (partial(kit, "torch", tf32=True), 30),
    "kit-jax": (partial(kit, "jax"), 90),
    "kit-cupy": (partial(kit, "cupy"), 45),
    "layers": (layers, 45),
    "jax": (jax_layers, 30),
    "steps": (steps, 60),
    "synchronisation": (synchronisation, 20),
}
"""Function of each section, and about how many seconds it may measure, not counting start-up."""
START_UP = 12.0
LIMIT = 470.0
"""Time limit of the whole run, in seconds."""


# --- The run ----------------------------------------------------------------------------------


def run_section(name: str, left: float, *, cpu: bool) -> Row:
    """Run a section in its own process, and return its rows or the error."""
    limit = min(left, SECTIONS[name][1] + 3 * START_UP)
    if limit <= 0:
        return {"error": f"not run: {LIMIT:.0f} s are over"}
    command = [sys.executable, __file__, "--section", name, *["--cpu"] * cpu]
    start = time.perf_counter()
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {limit:.0f} s"}
    result: Row = {"seconds": time.perf_counter() - start}
    try:
        return result | json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        lines = done.stderr.strip().splitlines() or ["no output"]
        return result | {"error": lines[-1], "status": done.returncode}


def facts(*, cpu: bool) -> Row:
    """Return versions and devices, as far as they can be determined."""
    found: Row = {"command": " ".join(["benchmarks/gpu.py", *sys.argv[1:]])}
    try:
        import torch

        found["torch"] = torch.__version__
        found["CUDA"] = torch.version.cuda
        if torch.cuda.is_available() and not cpu:
            found["GPU"] = torch.cuda.get_device_name()
    except Exception as error:  # a broken installation may raise anything
        found["torch"] = repr(error)
    return found


def show(console: Console, name: str, result: Row) -> None:
    """Print the table of a section."""
    if "rows" not in result:
        console.print(f"{name}: {result['error']}", markup=False)
        return
    columns = list(dict.fromkeys(key for row in result["rows"] for key in row))
    table = Table(*columns, title=name)
    for row in result["rows"]:
        table.add_row(*(_cell(row.get(column, "")) for column in columns))
    console.print(table)


def _cell(value: Any) -> str:
    if isinstance(value, list):
        return str(len(value))
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def main() -> int:
    """Run the requested sections."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--cpu", action="store_true", help="rehearse with small shapes on the CPU")
    parser.add_argument("--section", choices=SECTIONS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.section is not None:
        warnings.simplefilter("ignore")
        function, seconds = SECTIONS[options.section]
        rows = function(seconds=1.0 if options.cpu else seconds, cpu=options.cpu)
        print(json.dumps({"rows": rows}))
        return 0
    console = Console(width=160)
    results: Row = {"facts": facts(cpu=options.cpu), "sections": {}}
    end = time.perf_counter() + LIMIT
    for name in options.sections:
        left = end - time.perf_counter()
        results["sections"][name] = run_section(name, left, cpu=options.cpu)
        show(console, name, results["sections"][name])
        if not options.cpu:
            RESULT.parent.mkdir(exist_ok=True)
            RESULT.write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    return int(all("rows" not in result for result in results["sections"].values()))


if __name__ == "__main__":
    sys.exit(main())
