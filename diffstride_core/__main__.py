"""Print versions, adapters, devices and a self-check: ``python -m diffstride_core``."""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import time

import numpy as np

from diffstride_core._namespace import namespace_of
from diffstride_core._version import __version__
from diffstride_core.operators import ramp_operators, resize_operators
from diffstride_core.ops import ArrayOps
from diffstride_core.planning import plan_diff_stride
from diffstride_core.resample import evaluate, pull_back
from diffstride_core.settings import make_settings

ADAPTERS = ("numpy", "torch", "jax", "cupy")
LIBRARIES = ("flax", "equinox", "array-api-compat", "scipy")
TOLERANCE = 1e-12


def main() -> int:
    """Print the report; return 1 if the self-check fails, else 0."""
    argparse.ArgumentParser(
        prog="python -m diffstride_core",
        description="Print versions, adapters and devices, and check the mathematics.",
    ).parse_args()
    print(f"diffstride {__version__}")
    print(f"Python {platform.python_version()}, {platform.system()} {platform.machine()}")
    for name in ADAPTERS:
        adapter = f"diffstride_{name}"
        state = _version(name) or f"not installed, which {adapter} needs"
        print(f"{name:18}{state}")
    for name in LIBRARIES:
        print(f"{name:18}{_version(name) or 'not installed'}")
    # No framework is asked for its devices: importing one takes seconds.
    print(f"{'devices':18}{os.cpu_count()} CPU cores{_gpus()}")
    start = time.perf_counter()
    error = largest_error()
    verdict = "passed" if error < TOLERANCE else "FAILED"
    seconds = time.perf_counter() - start
    print(f"{'self-check':18}{verdict}: error {error:.1g} in {seconds:.2f} s")
    return int(error >= TOLERANCE)


def largest_error() -> float:
    """Downsample waves with known results, and return the largest error.

    A cosine below the window's ramp becomes the same cosine at the lower rate. A cosine on the ramp
    is scaled by the mask. The mask is linear in the stride there, so a difference quotient is its
    derivative.
    """
    errors = []
    for method in ("matmul", "fft"):
        amplitude, slope, distortion = _resized(3, 2.0, method)
        errors += [abs(amplitude - 1), abs(slope), distortion]
        step = 2.0**-10
        low, middle, high = (_resized(14, 2.0 + d, method) for d in (-step, 0, step))
        errors += [abs((high[0] - low[0]) / (2 * step) - middle[1]), middle[2]]
    return max(errors)


def _resized(frequency: int, stride: float, method: str) -> tuple[float, float, float]:
    """Return a wave's amplitude, its derivative in the stride, and the largest residual."""
    size, output_size = 64, 32
    plan = plan_diff_stride(
        make_settings(axes=(-1,), method=method),
        (-1,),
        (size,),
        (stride,),
        shared=False,
        output_sizes=(output_size,),
    )
    x, wave = (np.cos(2 * np.pi * frequency * np.arange(n) / n) for n in (size, output_size))
    ops, strides = ArrayOps(namespace_of(x)), np.array([stride])
    factors = resize_operators(ops, plan, strides, x)
    y = evaluate(ops, plan, factors, x, strides)
    ramps = ramp_operators(ops, plan, strides, x)
    g = 2 * wave / output_size  # gradient of the amplitude, a mean of y times the wave
    _, slope = pull_back(ops, plan, factors, ramps, g, x, strides, needs=(False, True))
    assert slope is not None
    amplitude = np.sum(g * y)
    return float(amplitude), float(slope[0]), float(np.max(np.abs(y - amplitude * wave)))


def _version(name: str) -> str | None:
    if importlib.util.find_spec(name.replace("-", "_")) is None:
        return None
    # CuPy has a distribution for each version of CUDA.
    for distribution in (name, "cupy-cuda12x", "cupy-cuda13x") if name == "cupy" else (name,):
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "version unknown"


def _gpus() -> str:
    if shutil.which("nvidia-smi") is None:
        return ", no NVIDIA GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(query, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return ", nvidia-smi does not answer"
    lines = [line for line in found.stdout.splitlines() if line.strip()]
    return "".join(f", {line}" for line in lines) if not found.returncode else ", no NVIDIA GPU"


if __name__ == "__main__":
    sys.exit(main())
