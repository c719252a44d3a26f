"""The console command ``diffstride-train``."""

import json
import shlex
import sys
from itertools import chain
from pathlib import Path

import torch
import tyro
from rich.console import Console

from diffstride_experiments.atomic import replacing
from diffstride_experiments.checkpoint import load_checkpoint, save_checkpoint
from diffstride_experiments.config import Config
from diffstride_experiments.data import load_split
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import METHODS
from diffstride_experiments.plot import figure_png
from diffstride_experiments.report import (
    Result,
    comparisons,
    markdown,
    results_record,
    summarise,
    terminal_table,
)
from diffstride_experiments.run_folder import RunFolder
from diffstride_experiments.trainer import Trainer

__all__ = ["main", "run"]


def run(config: Config, console: Console) -> list[Result]:
    """Train every method and write all files of the run folder.

    Parameters
    ----------
    config : Config
        Options.
    console : Console
        Where the table is printed.

    Returns
    -------
    list of Result
        Outcomes in the order of the methods.

    Raises
    ------
    ExperimentError
        If the folder holds a run with other options or a damaged file, or a loss is not finite.
    """
    folder = RunFolder(config)
    torch.set_num_threads(config.threads)
    data = load_split(config.images, config.test_fraction, config.evaluate_on)

    results, histories = [], []
    for name in config.methods:
        trainer = Trainer(METHODS[name], config, data)
        checkpoint = folder.checkpoint(name)
        if checkpoint.exists():
            trainer.load_state_dict(load_checkpoint(checkpoint))
        histories.append(trainer.history)
        for _ in trainer.epochs():
            save_checkpoint(checkpoint, trainer.state_dict())
            folder.write_metrics(chain.from_iterable(histories))
        results.append(summarise(trainer))

    # Again, for a run that was stopped between its last checkpoint and its metrics.
    folder.write_metrics(chain.from_iterable(histories))
    record = results_record(results, config, data)
    folder.write_text("results.json", json.dumps(record, indent=2) + "\n")
    folder.write_text("results.md", markdown(results, config))
    with replacing(folder.path / "results.png") as file:
        file.write(figure_png(results, histories, config))

    console.print(terminal_table(results, config))
    for sentence in comparisons(results):
        console.print(sentence)
    console.print(f"Table, plot, metrics and checkpoints are in {folder.path}.")
    return results


def main() -> None:
    """Run the command: read the options, train, report errors in one line each."""
    config = tyro.cli(Config, prog="diffstride-train")
    errors = Console(stderr=True, soft_wrap=True)
    try:
        run(config, Console())
    except KeyboardInterrupt:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        errors.print(
            f"\nInterrupted. Finished epochs are kept in {config.run_dir}; "
            f"go on with the same command:\n  {command}",
            markup=False,
            highlight=False,
        )
        sys.exit(130)
    except (ExperimentError, OSError) as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
