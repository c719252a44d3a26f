"""The console command ``diffstride-study``."""

import sys
from collections.abc import Sequence

from diffstride_experiments.entry import run_command

__all__ = ["main"]


def main() -> None:
    """Run the command: read the options and run the study."""
    run_command(lambda: _study(sys.argv[1:]), "Continue where it stopped")


def _study(arguments: Sequence[str]) -> None:
    # Imports are as late as possible: torch takes seconds, and help and errors do not need it.
    from diffstride_experiments.studies.options import parse

    options = parse(arguments)

    from rich.console import Console

    from diffstride_experiments.studies.execution import run_study

    run_study(options, Console())


if __name__ == "__main__":
    main()
