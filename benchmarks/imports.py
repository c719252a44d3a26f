"""Time what importing an adapter takes beyond its framework, and a command that only prints help.

Usage: ``python benchmarks/imports.py``

Each import is made in new processes, in alternation with the import of the framework alone. The
script prints a table, and writes `imports.json` to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from functools import partial
from pathlib import Path

import measuring
from rich.console import Console
from rich.table import Table

ADAPTERS = {
    "diffstride_torch": "torch",
    "diffstride_jax": "jax, jax.numpy",
    "diffstride_numpy": "numpy",
}
COMMAND = str(Path(sys.executable).with_name("diffstride-train"))


def run(*command: str) -> None:
    """Run a command in a new process."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def main() -> None:
    """Run the benchmark."""
    argparse.ArgumentParser(description=__doc__.partition("\n")[0]).parse_args()
    seconds: dict[str, float] = {}
    for adapter, framework in ADAPTERS.items():
        taken = measuring.medians(
            {
                "alone": partial(run, sys.executable, "-c", f"import {framework}"),
                "both": partial(run, sys.executable, "-c", f"import {framework}, {adapter}"),
            },
            rounds=11,
            seconds=120,
        )
        seconds[adapter] = taken["both"] - taken["alone"]
    command = {"help": partial(run, COMMAND, "--help")}
    seconds["diffstride-train --help"] = measuring.medians(command, rounds=11)["help"]
    path = measuring.save("imports", {"seconds": seconds})
    table = Table("", "seconds")
    for name, taken_by in seconds.items():
        table.add_row(name, f"{taken_by:.2f}")
    console = Console()
    console.print(table)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
