"""The console command ``diffstride-train``."""

import sys
import warnings

from diffstride_experiments.entry import run_command

__all__ = ["main"]


def main() -> None:
    """Run the command: read the options and train."""
    run_command(_train, "Continue from the last checkpoint")


def _train() -> None:
    # Imported once it is known that there is something to train: torch takes seconds.
    from diffstride_experiments.config import parse

    config = parse(sys.argv[1:])

    from rich.console import Console

    from diffstride_core import NothingToCropWarning
    from diffstride_experiments.run import run

    # Of maps that got as small as two samples: the report has the sizes of all.
    warnings.simplefilter("ignore", NothingToCropWarning)
    run(config, Console())


if __name__ == "__main__":
    main()
