"""Running a study and writing its files."""

import json
import os
import platform
import shlex
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import tomli_w
from pydantic import TypeAdapter, ValidationError
from rich.console import Console
from rich.markdown import Markdown

from diffstride_experiments.atomic import replacing
from diffstride_experiments.config import Config
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.locking import locked
from diffstride_experiments.report import versions
from diffstride_experiments.studies.bases import base, check_samples
from diffstride_experiments.studies.changes import common
from diffstride_experiments.studies.options import StudyOptions
from diffstride_experiments.studies.registry import STUDIES
from diffstride_experiments.studies.runner import run_cases
from diffstride_experiments.studies.study import Case, Outcome, Report, Study
from diffstride_experiments.studies.summary import group

__all__ = ["comparison", "run_study"]


def run_study(options: StudyOptions, console: Console) -> list[Outcome]:
    """Run a study and write its files.

    Parameters
    ----------
    options : StudyOptions
        Options of the study.
    console : Console
        Console to print the findings on.

    Returns
    -------
    list of Outcome
        Outcomes of all runs.

    Raises
    ------
    ExperimentError
        If data are missing or do not fit the study, if another process runs the study in the
        folder, or if a run fails.
    """
    study = STUDIES[options.name]
    earlier = None if options.against is None else _read("against", options.against)
    if earlier is not None and any(len(o.labels) != len(study.columns) for o in earlier):
        raise ExperimentError(f"--against: {options.against} has outcomes of another study.")
    known = [] if options.reuse is None else _read("reuse", options.reuse)
    folder = options.folder / study.name
    path = options.data.path
    config = base(study.data, path and path.resolve())
    if study.introduction is not None:
        console.print(study.introduction, markup=False)
    with locked(folder, "folder"):
        outcomes = _run(study, config, options, console, known)
    console.print(f"{folder / 'results.md'} has the tables.", markup=False, soft_wrap=True)
    if earlier is not None:
        console.print(comparison(outcomes, earlier), markup=False, soft_wrap=True)
    return outcomes


def _run(
    study: Study,
    config: Config,
    options: StudyOptions,
    console: Console,
    known: Sequence[Outcome],
) -> list[Outcome]:
    """Run what has not been run yet and write all files."""
    folder = options.folder / study.name
    check_samples(config, study.data)
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    cases = study.cases(config, seeds)
    # Studies share the runs that they have in common.
    runs = options.folder / "runs"
    outcomes = run_cases(cases, runs, options.jobs, study.name, known)
    if study.follow_up is not None:
        more = study.follow_up(config, seeds, outcomes)
        title = f"{study.name}, continued"
        outcomes += run_cases(more, runs, options.jobs, title, known)
        cases += more

    report = study.report(outcomes)
    for name, content in report.figures.items():
        with replacing(folder / f"{name}.png") as file:
            file.write(content)
    texts = {
        "config.toml": _shared_options(cases),
        "environment.json": json.dumps(_environment(options), indent=2) + "\n",
        "outcomes.jsonl": "".join(f"{json.dumps(asdict(outcome))}\n" for outcome in outcomes),
        "results.md": _page(study, options, report, outcomes, {old.run for old in known}),
    }
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    if study.introduction is not None:
        console.print(Markdown(report.markdown))
        for sentence in report.sentences:
            console.print(sentence, markup=False)
    return outcomes


def _shared_options(cases: Sequence[Case]) -> str:
    shared = common([case.config.model_dump(mode="json", exclude_none=True) for case in cases])
    for options, name in ((shared, "run_dir"), (shared["data"], "path"), (shared["data"], "cache")):
        options.pop(name, None)  # places of files, which differ between users
    return tomli_w.dumps(shared)


def _environment(options: StudyOptions) -> dict[str, object]:
    return {
        "versions": versions(),
        "processor": f"{platform.machine()}, {os.cpu_count()} cores",
        "jobs": options.jobs,
    }


def _page(
    study: Study,
    options: StudyOptions,
    report: Report,
    outcomes: Sequence[Outcome],
    known: Collection[str],
) -> str:
    command = ["diffstride-study", study.name]
    if study.data != "digits":
        command += ["--data.path", study.data.upper()]
    if options.seeds != 3:
        command += ["--seeds", str(options.seeds)]
    if options.first_seed:
        command += ["--first-seed", str(options.first_seed)]
    longest = max(outcome.seconds for outcome in outcomes)
    total = sum(outcome.seconds for outcome in outcomes) / 60
    reused = sum(outcome.run in known for outcome in outcomes)
    origin = f"{reused} of the runs are from an earlier execution. " if reused else ""
    images = "\n\n".join(f"![{name}]({name}.png)" for name in report.figures)
    sentences = "".join(f"- {sentence}\n" for sentence in report.sentences)
    return (
        f"""# {study.title}

`{shlex.join(command)}`: {len(outcomes)} runs, each on one thread and at most
{longest:.0f} s. Their seconds add up to {total:.0f} minutes, with {options.jobs} runs at a time.
{origin}{_seeds(outcomes)} Numbers are mean ± standard deviation over the seeds.
Options that all runs share: [config.toml](config.toml); each run's outcome:
[outcomes.jsonl](outcomes.jsonl); versions: [environment.json](environment.json).

{images}

{report.markdown}
{sentences}""".rstrip()
        + "\n"
    )


def _seeds(outcomes: Sequence[Outcome]) -> str:
    """Say which seeds the rows have."""
    rows = [{outcome.seed for outcome in row.outcomes} for row in group(outcomes).values()]
    everywhere = sorted(set.intersection(*rows))
    more = sorted(set.union(*rows).difference(everywhere))
    text = f"The seeds are {', '.join(map(str, everywhere))}"
    return f"{text}; some rows also have {', '.join(map(str, more))}." if more else f"{text}."


def _read(option: str, folder: Path) -> list[Outcome]:
    path = folder / "outcomes.jsonl"
    try:
        lines = path.read_bytes().splitlines()
        return [TypeAdapter(Outcome).validate_json(line) for line in lines]
    except (OSError, ValidationError) as error:
        raise ExperimentError(
            f"--{option}: {path} has no outcomes of a study of this version."
        ) from error


def comparison(outcomes: Sequence[Outcome], earlier: Sequence[Outcome]) -> str:
    """Compare the mean accuracies of two executions of a study.

    Parameters
    ----------
    outcomes, earlier : sequence of Outcome
        Outcomes of both executions.

    Returns
    -------
    str
        The number of rows that agree within the combined standard deviation of both, and the rows
        that do not.
    """
    now, before = group(outcomes), group(earlier)
    lines = []
    for labels in now.keys() & before.keys():
        a, b = now[labels].accuracy, before[labels].accuracy
        # A single seed has no deviation.
        if abs(a.mean - b.mean) > np.hypot(*np.nan_to_num([a.deviation, b.deviation])):
            lines.append(f"  {' / '.join(labels)}: {a:.1f} now, {b:.1f} there")
    common = len(now.keys() & before.keys())
    head = f"{common - len(lines)} of {common} rows agree within both standard deviations"
    missing = len(now.keys() ^ before.keys())
    if missing:
        head += f"; {missing} rows are in one of the two alone"
    return "\n".join([f"{head}{':' if lines else '.'}", *sorted(lines)])
