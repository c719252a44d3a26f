"""Timing side by side, memory, and the machine's own limits."""

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
    """Time functions in alternation, so that what disturbs the machine disturbs all of them.

    Those of one library at a time: the threads of another would still wait for work on the same
    cores.

    Parameters
    ----------
    contenders : dict of str to callable
    rounds : int
        How often each is timed, after three warm-up rounds.
    seconds : float
        About how long all of it may take; at least five rounds are timed.

    Returns
    -------
    dict of str to float
        Median time of each in seconds.
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
    """Return by how many bytes a torch CPU computation exceeds what was allocated before it."""
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
    """Return by how many bytes of memory the process exceeds what it had before; on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")

    def kibibytes(key: str) -> int:
        (line,) = (line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1])

    reset.write_text("5")  # The peak so far is forgotten.
    before = kibibytes("VmRSS:")
    run()
    return 1024 * (kibibytes("VmHWM:") - before)


def machine_limits() -> dict[str, float]:
    """Measure the rate of a large matrix product and of a large copy, in float32.

    Returns
    -------
    dict
        ``gemm``, multiply-adds per second of a product of two 1024x1024 matrices; ``copy``, bytes
        read and written per second copying 64 MiB.
    """
    a, b, c = (torch.randn(1024, 1024) for _ in range(3))
    source, target = torch.randn(2**24), torch.empty(2**24)
    taken = medians(
        {"gemm": lambda: torch.mm(a, b, out=c), "copy": lambda: target.copy_(source)}, rounds=25
    )
    return {"gemm": 1024**3 / taken["gemm"], "copy": 2 * 4 * 2**24 / taken["copy"]}


def facts() -> dict[str, str]:
    """Return machine and versions."""
    loaded = [frameworks.get(name) for name in ("numpy", "torch", "jax")]
    return environment.facts(loaded) | {"torch threads": str(torch.get_num_threads())}


def save(name: str, content: dict[str, Any]) -> Path:
    """Write results to `results/` beside the scripts and return the file's path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"environment": facts(), **content}, indent=1) + "\n", "utf-8")
    return path
