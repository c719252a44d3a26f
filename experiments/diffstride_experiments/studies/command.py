"""The console command ``diffstride-study``."""

import json
import math
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Literal

import tyro
from pydantic import Field, PositiveInt
from rich.console import Console

from diffstride_core import __version__ as diffstride_version
from diffstride_experiments.atomic import replacing
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.options import Options
from diffstride_experiments.studies.bases import base
from diffstride_experiments.studies.registry import STUDIES
from diffstride_experiments.studies.runner import run_cases
from diffstride_experiments.studies.study import Outcome, Study
from diffstride_experiments.studies.summary import group

__all__ = ["StudyOptions", "main", "run_study"]

StudyName = Literal[
    "tuning",
    "robustness-digits",
    "robustness-images",
    "penalty",
    "window",
    "robustness-recordings",
]


class StudyOptions(Options):
    """Run a study: a grid of short trainings, each on one thread, and tables and figures of them.

    Interrupted, the same command goes on. What is in the folder already is not run again.
    """

    name: Annotated[StudyName, tyro.conf.Positional]
    """Which study."""

    data: Path | None = None
    """Folder of the data where they are not bundled: the recordings of the Free Spoken Digit
    Dataset for robustness-recordings, else CIFAR10, either unpacked from its Python version or as
    train/CLASS/* and test/CLASS/*."""

    folder: Path = Path("runs/studies")
    """The study's folder is made in it."""

    seeds: PositiveInt = 3
    """Runs of each row, with the seeds 0, 1, ..."""

    jobs: PositiveInt = Field(default_factory=lambda: os.cpu_count() or 1)
    """Runs at a time. Results do not depend on it."""

    against: Path | None = None
    """Folder of another execution of the study, such as experiments/results/NAME: say how far the
    means are from its."""


def run_study(options: StudyOptions, console: Console) -> list[Outcome]:
    """Run a study and write its files.

    Parameters
    ----------
    options : StudyOptions
        What to run.
    console : Console
        Where to say what was found.

    Returns
    -------
    list of Outcome
        Of all runs.

    Raises
    ------
    ExperimentError
        If data are missing or a run fails.
    """
    study = STUDIES[options.name]
    earlier = None if options.against is None else _read(options.against / "results.json")
    folder = options.folder / study.name
    config = base(study.data, options.data)
    seeds = range(options.seeds)
    outcomes = run_cases(study.cases(config, seeds), folder / "runs", options.jobs, study.name)
    if study.follow_up is not None:
        more = study.follow_up(config, seeds, outcomes)
        title = f"{study.name}, continued"
        outcomes += run_cases(more, folder / "runs", options.jobs, title)

    report = study.report(outcomes)
    for name, content in report.figures.items():
        with replacing(folder / f"{name}.png") as file:
            file.write(content)
    texts = {
        "config.toml": config.to_toml(),
        "results.json": json.dumps(_record(study, outcomes), indent=1) + "\n",
        "results.md": _page(study, options, report.markdown, list(report.figures), outcomes),
    }
    for name, text in texts.items():
        with replacing(folder / name) as file:
            file.write(text.encode())
    console.print(f"{folder / 'results.md'} has the tables.", markup=False, soft_wrap=True)
    if earlier is not None:
        console.print(comparison(outcomes, earlier), markup=False, soft_wrap=True)
    return outcomes


def _page(
    study: Study,
    options: StudyOptions,
    tables: str,
    figures: Sequence[str],
    outcomes: Sequence[Outcome],
) -> str:
    command = ["diffstride-study", study.name]
    if study.data != "digits":
        command += ["--data", study.data.upper()]
    if options.seeds != 3:
        command += ["--seeds", str(options.seeds)]
    longest = max(outcome.seconds for outcome in outcomes)
    total = sum(outcome.seconds for outcome in outcomes)
    images = "\n\n".join(f"![{name}]({name}.png)" for name in figures)
    return f"""# {study.title}

`{shlex.join(command)}`: {len(outcomes)} runs of at most {longest:.0f} s on one thread,
{total / 60:.0f} minutes of one core together; seeds 0 to {options.seeds - 1}. Options that all runs
share: [config.toml](config.toml); all outcomes and versions: [results.json](results.json). Numbers
are mean ± standard deviation over the seeds.

{images}

{tables}"""


def _record(study: Study, outcomes: Sequence[Outcome]) -> dict[str, object]:
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "mlxtend", "librosa")
    return {
        "study": study.name,
        "columns": study.columns,
        "versions": {
            "python": platform.python_version(),
            "diffstride": diffstride_version,
            **{name: version(name) for name in packages},
        },
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "outcomes": [asdict(outcome) for outcome in outcomes],
    }


def _read(path: Path) -> list[Outcome]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        return [Outcome(**{**o, "labels": tuple(o["labels"])}) for o in record["outcomes"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ExperimentError(f"--against: {path} has no results of a study: {error}") from error


def comparison(outcomes: Sequence[Outcome], earlier: Sequence[Outcome]) -> str:
    """Say how far the mean accuracies of two executions of a study are from each other.

    Parameters
    ----------
    outcomes, earlier : sequence of Outcome
        Of both executions.

    Returns
    -------
    str
        How many rows agree within the standard deviations of both, taken together, and the rows
        that do not.
    """
    now, before = group(outcomes), group(earlier)
    lines = []
    for labels in now.keys() & before.keys():
        a, b = now[labels].accuracy, before[labels].accuracy
        if not abs(a.mean - b.mean) <= math.hypot(a.deviation, b.deviation):
            lines.append(f"  {' / '.join(labels)}: {a:.1f} now, {b:.1f} there")
    common = len(now.keys() & before.keys())
    head = f"{common - len(lines)} of {common} rows agree within both standard deviations"
    missing = len(now.keys() ^ before.keys())
    if missing:
        head += f"; {missing} rows are in one of the two alone"
    return "\n".join([f"{head}{':' if lines else '.'}", *sorted(lines)])


def main() -> None:
    """Run the command: read the options, run the study, report errors in one line each."""
    errors = Console(stderr=True, soft_wrap=True)
    try:
        run_study(tyro.cli(StudyOptions, prog="diffstride-study"), Console())
    except KeyboardInterrupt:
        command = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
        errors.print(
            f"\nInterrupted. Go on with the same command:\n  {command}",
            markup=False,
            highlight=False,
        )
        sys.exit(130)
    except (ExperimentError, OSError) as error:
        errors.print(f"error: {error}", markup=False, highlight=False)
        sys.exit(1)


if __name__ == "__main__":
    main()
