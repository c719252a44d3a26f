"""Time the first call of the layer in JAX at a new size, outside a user's jit.

Usage: ``python benchmarks/first_call.py [--rounds 5]``

Each call is made in its own process, which has compiled only an addition before. The script prints
a table and writes `first_call.json` to `benchmarks/results`. They contain medians and the number of
programs that XLA compiled, which does not depend on other load on the machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

SHAPES = [(1, 3, 64, 64), (8, 64, 56, 56)]
PASSES = ("forward", "forward and backward")

_COMPILATION = "/jax/core/compile/backend_compile_duration"


def first_call(shape: tuple[int, ...], passes: str) -> dict[str, float]:
    """Measure the cost of the first call in this process, at strides of 2.

    Parameters
    ----------
    shape : tuple of int
    passes : {"forward", "forward and backward"}

    Returns
    -------
    dict
        ``seconds``, the time of the call; ``programs``, the number of programs that XLA compiled
        for it; and ``compiling``, the time of these compilations in seconds.
    """
    import jax
    import jax.numpy as jnp
    from diffstride_jax import diff_stride, output_sizes

    x, strides = jnp.ones(shape), jnp.asarray([2.0, 2.0])
    sizes = output_sizes(shape, strides)
    g = jnp.ones((*shape[:-2], *sizes))
    jax.block_until_ready((x + 1, g))
    compilations: list[float] = []

    def note(event: str, seconds: float, **_: Any) -> None:
        if event == _COMPILATION:
            compilations.append(seconds)

    jax.monitoring.register_event_duration_secs_listener(note)
    start = time.perf_counter()
    if passes == "forward":
        made: Any = diff_stride(x, strides)
    else:
        y, pullback = jax.vjp(lambda x, strides: diff_stride(x, strides, sizes=sizes), x, strides)
        made = y, pullback(g)
    jax.block_until_ready(made)
    seconds = time.perf_counter() - start
    return {
        "seconds": seconds,
        "programs": len(compilations),
        "compiling": sum(compilations),
    }


def in_new_process(shape: tuple[int, ...], passes: str) -> dict[str, float]:
    """Return the result of `first_call` in a new process."""
    command = [sys.executable, __file__, "--call", json.dumps([shape, passes])]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(printed)
    return found


def run(rounds: int) -> None:
    """Run the benchmark."""
    import measuring
    from rich.console import Console
    from rich.table import Table

    measured: dict[str, dict[str, float]] = {}
    table = Table(title="first call in JAX, CPU, float32, strides of 2")
    for column in ("input", "passes", "seconds", "of them compiling", "programs"):
        table.add_column(column, justify="left" if column in ("input", "passes") else "right")
    for shape in SHAPES:
        for passes in PASSES:
            taken = [in_new_process(shape, passes) for _ in range(rounds)]
            row = {key: statistics.median(call[key] for call in taken) for key in taken[0]}
            measured[f"{shape}, {passes}"] = row
            figures = (f"{row['seconds']:.2f}", f"{row['compiling']:.2f}", f"{row['programs']:.0f}")
            table.add_row(str(shape), passes, *figures)
    console = Console(width=120)
    console.print(table)
    console.print(f"written: {measuring.save('first_call', {'first call': measured})}")


def main() -> None:
    """Run the benchmark, or a single call of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--call", type=json.loads, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.call is None:
        run(arguments.rounds)
    else:
        shape, passes = arguments.call
        print(json.dumps(first_call(tuple(shape), passes)))


if __name__ == "__main__":
    main()
