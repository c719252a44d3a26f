"""Timing side by side, memory, and the limits of the machine."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler's own messages

import torch
from diffstride_conformance import environment, frameworks
from torch.profiler import ProfilerActivity, profile

Contenders = dict[str, Callable[[], object]]

RESULTS = Path(__file__).parent / "results"


def medians(contenders: Contenders, *, rounds: int = 15, seconds: float = 20.0) -> dict[str, float]:
    """Time functions in alternation, so that other load on the machine affects all of them.

    All functions should be of one library: the threads of another library would still wait for work
    on the same cores.

    Parameters
    ----------
    contenders : dict of str to callable
    rounds : int
        How often each function is timed, after three warm-up rounds.
    seconds : float
        Approximate limit of the total time. At least five rounds are timed.

    Returns
    -------
    dict of str to float
        Median time of each function in seconds.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    began = time.perf_counter()
    for done in range(-3, rounds):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
        if done >= 4 and time.perf_counter() - began > seconds:
            break
    return {name: statistics.median(taken[3:]) for name, taken in times.items()}


def with_backward(
    forward: Callable[[], torch.Tensor], *leaves: torch.Tensor
) -> Callable[[], object]:
    """Return a function that runs forward and backward, with new gradients of the leaves."""
    g = torch.randn_like(forward().detach())

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        forward().backward(g)

    return run


def torch_peak(run: Callable[[], object]) -> int:
    """Return the peak memory of a torch CPU computation in bytes, above the memory before it."""
    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    current = peak = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def resident_peak(run: Callable[[], object]) -> int:
    """Return the peak memory of the process in bytes, above its memory before; only on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kibibytes(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1])

    reset.write_text("5")  # Reset the peak.
    before = kibibytes("VmRSS:")
    run()
    return 1024 * (kibibytes("VmHWM:") - before)


def machine_limits() -> dict[str, float]:
    """Measure the rate of a large matrix product and of a large copy, in float32.

    Returns
    -------
    dict
        ``gemm``, multiply-adds per second in a product of two 1024x1024 matrices; ``copy``, bytes
        read and written per second when 64 MiB are copied.
    """
    a, b, c = (torch.randn(1024, 1024) for _ in range(3))
    source, target = torch.randn(2**24), torch.empty(2**24)
    taken = medians(
        {"gemm": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}, rounds=25
    )
    return {"gemm": 1024**3 / taken["gemm"], "copy": 2 * 4 * 2**24 / taken["copy"]}


def facts() -> dict[str, str]:
    """Return facts about the machine and the versions."""
    loaded = [frameworks.get(name) for name in ("numpy", "torch", "jax")]
    return environment.facts(loaded) | {"torch threads": str(torch.get_num_threads())}


def save(name: str, content: dict[str, Any]) -> Path:
    """Write results to `results/` beside the scripts, and return the path of the file."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": facts(), **content}, indent=1) + "\n", "utf-8")
    return path
