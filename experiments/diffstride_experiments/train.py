"""The console command ``diffstride-train``."""

import sys
import warnings

from diffstride_experiments.entry import run_command

__all__ = ["main"]


def main() -> None:
    """Run the command: read the options and train."""
    run_command(_train, "Continue from the last checkpoint")


def _train() -> None:
    # Imports are as late as possible: torch takes seconds, and help and errors do not need it.
    from diffstride_experiments.config import parse

    config = parse(sys.argv[1:])

    from rich.console import Console

    from diffstride_core import NothingToCropWarning
    from diffstride_experiments.run import run

    # The warning is about feature maps as small as two samples. The report has all their sizes.
    warnings.simplefilter("ignore", NothingToCropWarning)
    run(config, Console())


if __name__ == "__main__":
    main()
