"""A run: train every method and write the results."""

import json
import time
from collections.abc import Sequence
from contextlib import nullcontext

import torch
from rich.console import Console

from diffstride_experiments.atomic import replacing
from diffstride_experiments.config import Config
from diffstride_experiments.data import Data
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import METHODS
from diffstride_experiments.metrics import MetricsWriter
from diffstride_experiments.plot import figure_png
from diffstride_experiments.processes import Processes
from diffstride_experiments.report import (
    Result,
    comparisons,
    data_notes,
    markdown,
    results_record,
    summarise,
    terminal_table,
)
from diffstride_experiments.run_folder import RunFolder
from diffstride_experiments.trainer import Trainer

__all__ = ["run", "train_methods", "write_results"]


def run(config: Config, console: Console) -> list[Result]:
    """Train every method and write all files of the run folder.

    Parameters
    ----------
    config : Config
        Options.
    console : Console
        Console to print the table on.

    Returns
    -------
    list of Result
        Outcomes in the order of the methods. If there are several processes, the first one returns
        them and the others return an empty list.

    Raises
    ------
    ExperimentError
        If samples cannot be read, if another run uses the folder, if the folder has a run with
        other options or only damaged checkpoints, if there is not enough memory, or if a loss is
        not finite.
    """
    config.check_networks()
    torch.set_num_threads(config.threads)
    folder = RunFolder(config)
    with (
        Processes.joined(config.device) as processes,
        folder.held() if processes.is_first else nullcontext(),
    ):
        if not processes.is_first:
            console = Console(quiet=True)
            # The first process creates the folder and the caches of the data.
            processes.wait()
        data = config.data.load(config.evaluate_on, config.training.workers)
        if processes.is_first:
            processes.wait()
        for note in data_notes(data):
            console.print(note, markup=False, soft_wrap=True)

        try:
            trainers = train_methods(config, data, folder, processes, console)
        except torch.OutOfMemoryError as error:
            raise ExperimentError(
                f"device: {processes.device} has not enough memory; lower training.batch_size, "
                f"{config.training.batch_size}, or training.evaluation_batch_size, "
                f"{config.training.evaluation_batch_size}."
            ) from error
        if not processes.is_first:
            return []
        results = write_results(trainers, folder)
        folder.write_text("results.md", markdown(results, config, data))
        with replacing(folder.path / "results.png") as file:
            file.write(figure_png(results, [trainer.history for trainer in trainers], config))
        console.print(terminal_table(results, config))
        for sentence in comparisons(results):
            console.print(sentence)
        console.print(f"Table, plot, metrics and checkpoints are in {folder.path}.", markup=False)
        return results


def train_methods(
    config: Config, data: Data, folder: RunFolder, processes: Processes, console: Console
) -> list[Trainer]:
    """Train every method that has not been trained yet.

    Parameters
    ----------
    config : Config
        Options.
    data : Data
        Samples that the options describe.
    folder : RunFolder
        Folder for metrics and checkpoints. Interrupted runs continue from its checkpoints.
    processes : Processes
        The processes that share the work.
    console : Console
        Console to report damaged checkpoints on. If it is quiet, no progress is shown.

    Returns
    -------
    list of Trainer
        Finished trainings, in the order of the methods.

    Raises
    ------
    ExperimentError
        If a budget is out of reach, if all checkpoints of a method are damaged, or if a loss is not
        finite.
    """
    # Make all trainers first, so that no method is trained if the options of another are refused.
    trainers = [Trainer(METHODS[name], config, data, processes) for name in config.methods]
    writer = MetricsWriter(folder.path)
    for count in range(1, len(trainers) + 1):
        _train(trainers[:count], folder, writer, console)
    if processes.is_first:
        # Written again, in case the run was stopped between its last checkpoint and its metrics.
        writer.write_lines([trainer.history for trainer in trainers])
    return trainers


def write_results(trainers: Sequence[Trainer], folder: RunFolder) -> list[Result]:
    """Write results.json, with everything needed to repeat the run, and return the outcomes."""
    first = trainers[0]
    results = [summarise(trainer) for trainer in trainers]
    record = results_record(results, first.config, first.data, first.processes)
    folder.write_text("results.json", json.dumps(record, indent=2) + "\n")
    return results


def _train(
    trainers: Sequence[Trainer], folder: RunFolder, writer: MetricsWriter, console: Console
) -> None:
    """Continue the last trainer from its last checkpoint; the others have finished."""
    trainer = trainers[-1]
    checkpoints = folder.checkpoints(trainer.method, trainer.processes)
    state, refused = checkpoints.load()
    for reason in refused:
        console.print(f"{reason} Using the checkpoint before it.", markup=False, soft_wrap=True)
    if state is not None:
        trainer.load_state_dict(state)
        if trainer.processes.is_first:
            folder.claim()
    if trainer.history and trainer.processes.is_first:
        # Written again, in case the run was stopped between its last checkpoint and its metrics.
        writer.write_events(trainer.history[-1])
    saved = time.monotonic()
    for ended_epoch in trainer.steps(show=not console.quiet):
        due = time.monotonic() - saved >= trainer.config.training.checkpoint_seconds
        if trainer.processes.is_first and (ended_epoch or due):
            folder.claim()
            checkpoints.save(trainer.step, trainer.state_dict())
            saved = time.monotonic()
            if ended_epoch:
                writer.write_lines([trainer.history for trainer in trainers])
                writer.write_events(trainer.history[-1])
