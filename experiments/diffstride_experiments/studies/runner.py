"""Running a study's grid: several runs at a time, each once, going on where it was stopped."""

import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from multiprocessing import get_context
from pathlib import Path

import torch
from rich.console import Console
from tqdm import tqdm

from diffstride_experiments.config import differences, fingerprint, read_recipe
from diffstride_experiments.data import Data, DataOptions, EvaluateOn
from diffstride_experiments.processes import Processes
from diffstride_experiments.run_folder import RunFolder
from diffstride_experiments.studies.study import Case, Outcome
from diffstride_experiments.train import train_methods, write_results

__all__ = ["run_cases"]


def run_cases(cases: Sequence[Case], folder: Path, jobs: int, title: str) -> list[Outcome]:
    """Run all cases that have not been run yet.

    Parameters
    ----------
    cases : sequence of Case
        What to run, on one thread each.
    folder : Path
        Where each run has a folder of its own. A run that was stopped goes on from its last
        checkpoint.
    jobs : int
        Runs at a time.
    title : str
        What the progress bar is for.

    Returns
    -------
    list of Outcome
        In the order of the cases.

    Raises
    ------
    ExperimentError
        If samples cannot be read or a loss is not finite.
    """
    placed = [
        Case(case.labels, case.config.model_copy(update={"run_dir": _run_folder(folder, case)}))
        for case in cases
    ]
    outcomes = {index: _finished(case) for index, case in enumerate(placed)}
    missing = [index for index, outcome in outcomes.items() if outcome is None]
    with tqdm(total=len(placed), initial=len(placed) - len(missing), desc=title, unit="run") as bar:
        for index, outcome in _run(placed, missing, jobs):
            outcomes[index] = outcome
            bar.set_postfix_str(f"{' / '.join(outcome.labels)}: {outcome.accuracy:.1%}")
            bar.update()
    return [outcome for outcome in outcomes.values() if outcome is not None]


def _run_folder(folder: Path, case: Case) -> Path:
    method = "-".join(case.config.methods)
    return folder / f"{method}-{case.config.seed}-{fingerprint(case.config)}"


def _finished(case: Case) -> Outcome | None:
    """Return the outcome of a case that was run to its end with these options."""
    folder = case.config.run_dir
    results, recipe = folder / "results.json", folder / "config.toml"
    if not results.exists() or differences(read_recipe(recipe), case.config):
        return None
    return Outcome.from_record(case, json.loads(results.read_text(encoding="utf-8")))


def _run(cases: Sequence[Case], missing: Sequence[int], jobs: int) -> Iterator[tuple[int, Outcome]]:
    if not missing:
        return
    # Spawned, since a fork of a process whose threads have begun to compute may hang.
    with ProcessPoolExecutor(min(jobs, len(missing)), mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run_case, cases[index]): index for index in missing}
        try:
            for future in as_completed(futures):
                yield futures[future], future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def run_case(case: Case) -> Outcome:
    """Run a case in this process, without a word, and write its results.json."""
    config = case.config
    torch.set_num_threads(config.threads)
    data = _load(config.data, config.evaluate_on)
    processes = Processes(torch.device(config.device))
    folder = RunFolder(config)
    trainers = train_methods(config, data, folder, processes, Console(quiet=True))
    write_results(trainers, folder)
    outcome = _finished(case)
    assert outcome is not None
    return outcome


@cache
def _load(options: DataOptions, evaluate_on: EvaluateOn) -> Data:
    # Once in a process, whose runs share the samples.
    return options.load(evaluate_on)
