"""Running a study's grid: several runs at a time, each only once, also after an interruption."""

import json
import os
import signal
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from dataclasses import asdict, replace
from functools import cache
from itertools import islice
from multiprocessing import get_context, parent_process
from pathlib import Path
from threading import Thread

import torch
from rich.console import Console
from tqdm import tqdm

from diffstride_core import NothingToCropWarning
from diffstride_experiments.config import fingerprint
from diffstride_experiments.data import Data, DataOptions, EvaluateOn
from diffstride_experiments.data.cache import digest
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.processes import Processes
from diffstride_experiments.report import versions
from diffstride_experiments.run import train_methods, write_results
from diffstride_experiments.run_folder import RunFolder
from diffstride_experiments.studies.study import Case, Outcome

__all__ = ["run_cases"]


def run_cases(
    cases: Sequence[Case],
    folder: Path,
    jobs: int,
    title: str,
    earlier: Sequence[Outcome] = (),
) -> list[Outcome]:
    """Run all cases that have not been run yet.

    Parameters
    ----------
    cases : sequence of Case
        Runs, each on one thread.
    folder : Path
        Folder in which each run has its own folder. An interrupted run continues from its last
        checkpoint.
    jobs : int
        Number of runs at a time.
    title : str
        Title of the progress bar.
    earlier : sequence of Outcome
        Outcomes of other executions. Their runs are not run again.

    Returns
    -------
    list of Outcome
        Outcomes in the order of the cases.

    Raises
    ------
    ExperimentError
        If samples cannot be read or a loss is not finite.
    """
    placed = [
        Case(case.labels, case.config.model_copy(update={"run_dir": _run_folder(folder, case)}))
        for case in cases
    ]
    known = {outcome.run: outcome for outcome in earlier}
    outcomes = {index: _finished(case, known) for index, case in enumerate(placed)}
    missing = [index for index, outcome in outcomes.items() if outcome is None]
    with tqdm(total=len(placed), initial=len(placed) - len(missing), desc=title, unit="run") as bar:
        for index, outcome in _run(placed, missing, jobs):
            outcomes[index] = outcome
            bar.set_postfix_str(f"{' / '.join(outcome.labels)}: {outcome.accuracy:.1%}")
            bar.update()
    return [outcome for outcome in outcomes.values() if outcome is not None]


def _run_folder(folder: Path, case: Case) -> Path:
    # The versions are in the name: results of other versions of a library are not reused.
    method, seed = case.config.methods[0], case.config.seed
    return folder / f"{method}-{seed}-{fingerprint(case.config)}-{digest(versions())[:8]}"


def _finished(case: Case, known: Mapping[str, Outcome]) -> Outcome | None:
    """Return the outcome of a case that has been run to the end, or None."""
    if (outcome := known.get(case.config.run_dir.name)) is not None:
        return replace(outcome, labels=case.labels)
    try:
        record = json.loads((case.config.run_dir / "results.json").read_text(encoding="utf-8"))
        (result,) = record["results"]
        return Outcome.from_result(case, result)
    except (OSError, ValueError, KeyError):
        return None


def _run(cases: Sequence[Case], missing: Sequence[int], jobs: int) -> Iterator[tuple[int, Outcome]]:
    if not missing:
        return
    waiting = iter(missing)
    running: dict[Future[Outcome], int] = {}
    # Spawn, because a fork of a process whose threads have begun to compute may hang.
    with ProcessPoolExecutor(
        min(jobs, len(missing)), mp_context=get_context("spawn"), initializer=_end_with_parent
    ) as pool:
        # Submit no more runs than can start at once: queued runs would start even after an error.
        for index in islice(waiting, jobs):
            running[pool.submit(run_case, cases[index])] = index
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                finished = running.pop(future)
                try:
                    yield finished, future.result()
                except BrokenExecutor as error:
                    raise ExperimentError(
                        "the process of a run was killed, perhaps because memory ran out; fewer "
                        "--jobs need less. To continue, run the same command."
                    ) from error
                for index in islice(waiting, 1):
                    running[pool.submit(run_case, cases[index])] = index


def _end_with_parent() -> None:
    """End this process as soon as its parent ends, so that a killed study leaves no run behind.

    An interruption from the terminal goes to all processes and ends this one silently.
    """
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    parent = parent_process()
    assert parent is not None, "the pool's processes are children"

    def watch() -> None:
        parent.join()
        os._exit(1)

    Thread(target=watch, daemon=True).start()


def run_case(case: Case) -> Outcome:
    """Run a case in this process without output, and write its results.json.

    Raises
    ------
    ExperimentError
        If samples cannot be read or a loss is not finite. The message names the case.
    """
    config = case.config
    torch.set_num_threads(config.threads)
    # The warning is about feature maps as small as two samples.
    warnings.simplefilter("ignore", NothingToCropWarning)
    processes = Processes(torch.device(config.device))
    try:
        folder = RunFolder(config)
        with folder.held():
            data = _load(config.data, config.evaluate_on)
            trainers = train_methods(config, data, folder, processes, Console(quiet=True))
            (result,) = write_results(trainers, folder)
    except ExperimentError as error:
        name = " / ".join([*case.labels, f"seed {config.seed}"])
        raise ExperimentError(f"{name} ({config.run_dir}): {error}") from error
    return Outcome.from_result(case, asdict(result))


@cache
def _load(options: DataOptions, evaluate_on: EvaluateOn) -> Data:
    # Loaded once per process: its runs share the samples.
    return options.load(evaluate_on)
