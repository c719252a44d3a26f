"""Results of a run as a table for the terminal, as Markdown and as JSON values."""

import math
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from diffstride_torch.models.blocks import ResidualNetwork
from rich import box
from rich.table import Table

from diffstride_core import __version__ as diffstride_version
from diffstride_experiments.config import Config
from diffstride_experiments.cost import feature_map_sizes, multiply_adds
from diffstride_experiments.data import Data
from diffstride_experiments.methods import MethodName
from diffstride_experiments.processes import Processes
from diffstride_experiments.trainer import Trainer, build_network

__all__ = [
    "Result",
    "comparisons",
    "data_notes",
    "markdown",
    "millions",
    "results_record",
    "summarise",
    "terminal_table",
    "versions",
]


MODULES = {"scikit-learn": "sklearn"}
# Number of left-out files that the terminal lists.
SHOWN = 10


@dataclass(frozen=True)
class Shape:
    """Strides of a network, and the sizes and cost that follow from them.

    Attributes
    ----------
    strides : list of pair of float
        Stride of each place along height and width.
    feature_maps : list of pair of int
        Height and width of each place's output.
    multiply_adds : int
        Multiply-adds per sample, see `diffstride_experiments.cost.multiply_adds`.
    """

    strides: list[tuple[float, float]]
    feature_maps: list[tuple[int, int]]
    multiply_adds: int


@dataclass(frozen=True)
class Result:
    """Outcome of one method.

    Attributes
    ----------
    method, label : str
        Key and name of the method.
    accuracy, standard_error : float
        Share of evaluation samples classified correctly after the last epoch, and its binomial
        standard error.
    before, after : Shape
        The network at its initial and at its final strides.
    trained_multiply_adds : int
        Multiply-adds of all forward passes over the whole training.
    seconds : float
        Time of training and evaluation.
    trajectory : list of dict
        See `Trainer`.
    """

    method: MethodName
    label: str
    accuracy: float
    standard_error: float
    before: Shape
    after: Shape
    trained_multiply_adds: int
    seconds: float
    trajectory: list[dict[str, Any]]


def _shape(network: ResidualNetwork, input_shape: tuple[int, int, int]) -> Shape:
    return Shape(
        strides=network.strides,
        feature_maps=feature_map_sizes(network, network.places, input_shape),
        multiply_adds=multiply_adds(network, input_shape),
    )


def summarise(trainer: Trainer) -> Result:
    """Summarise a finished training.

    Parameters
    ----------
    trainer : Trainer
        Training with at least one finished epoch.

    Returns
    -------
    Result
        The method's outcome.
    """
    accuracy = trainer.history[-1]["accuracy"]
    data = trainer.data
    untrained = build_network(trainer.method, trainer.config, data)
    return Result(
        method=trainer.method.name,
        label=trainer.method.label,
        accuracy=accuracy,
        standard_error=math.sqrt(accuracy * (1 - accuracy) / len(data.evaluation)),
        before=_shape(untrained, data.input_shape),
        after=_shape(trainer.network, data.input_shape),
        trained_multiply_adds=trainer.trained_multiply_adds,
        seconds=trainer.seconds,
        trajectory=trainer.trajectory,
    )


def comparisons(results: Sequence[Result]) -> list[str]:
    """Compare the methods in words.

    Parameters
    ----------
    results : sequence of Result
        Outcomes.

    Returns
    -------
    list of str
        One sentence for each comparison of which both methods were run. The standard error of a
        difference treats the two accuracies as independent. This is conservative, because they come
        from the same samples.
    """
    by_name = {result.method: result for result in results}

    def sentence(result: Result, reference: Result) -> str:
        points = 100 * (result.accuracy - reference.accuracy)
        error = 100 * math.hypot(result.standard_error, reference.standard_error)
        ratio = result.after.multiply_adds / reference.after.multiply_adds
        return (
            f"{result.label}, against {reference.label}: accuracy {points:+.1f} ± {error:.1f} "
            f"points at {ratio:.2f} times the multiply-adds."
        )

    pairs = [
        ("spectral", "conv"),
        ("diffstride", "conv"),
        ("diffstride", "spectral"),
        ("diffstride-penalised", "diffstride"),
        ("diffstride-budget", "conv"),
        ("diffstride-paper", "spectral"),
        ("diffstride-tensorflow", "spectral"),
    ]
    return [
        sentence(by_name[name], by_name[reference])
        for name, reference in pairs
        if name in by_name and reference in by_name
    ]


def _header(config: Config) -> list[str]:
    return [
        "method",
        f"{config.evaluate_on}\naccuracy, %",
        "strides",
        "feature\nmaps",
        "multiply-adds,\nmillions",
        "seconds",
    ]


def _rows(results: Sequence[Result]) -> list[list[str]]:
    return [
        [
            result.label,
            f"{100 * result.accuracy:.1f} ± {100 * result.standard_error:.1f}",
            "\n".join(map(_stride_movement, result.before.strides, result.after.strides)),
            "\n".join(f"{height}x{width}" for height, width in result.after.feature_maps),
            millions(result.before.multiply_adds, result.after.multiply_adds),
            f"{result.seconds:.0f}",
        ]
        for result in results
    ]


def _stride_movement(before: tuple[float, float], after: tuple[float, float]) -> str:
    if before == after:
        return f"{before[0]:g}x{before[1]:g}"
    return f"{before[0]:g}x{before[1]:g} → {after[0]:.2f}x{after[1]:.2f}"


def millions(before: float, after: float) -> str:
    """Return multiply-adds in millions to three digits, and how training changed them."""
    first, last = (f"{value / 1e6:#.3g}".rstrip(".") for value in (before, after))
    return first if first == last else f"{first} → {last}"


def terminal_table(results: Sequence[Result], config: Config) -> Table:
    """Lay the results out for a terminal.

    Parameters
    ----------
    results : sequence of Result
        Outcomes.
    config : Config
        Options of the run.

    Returns
    -------
    rich.table.Table
        One row per method. Strides and feature maps have one line per place.
    """
    # No vertical lines and little padding, so that 80 columns are enough.
    table = Table(box=box.HORIZONTALS, padding=(0, 1, 0, 0), show_lines=True)
    method, *numbers = _header(config)
    table.add_column(method)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(results):
        table.add_row(*row)
    return table


def data_notes(data: Data) -> list[str]:
    """Return notes on the samples, to show before training, as paragraphs.

    Parameters
    ----------
    data : Data
        Samples that are used.

    Returns
    -------
    list of str
        The names of all unreadable files; the names of the first other files that are not used; and
        the remarks.
    """
    notes = []
    if data.skipped:
        notes.append("\n  ".join([f"Skipped {len(data.skipped)} unreadable files:", *data.skipped]))
    if data.left_out:
        more = len(data.left_out) - SHOWN
        notes.append(
            "\n  ".join(
                [
                    f"Left out {len(data.left_out)} files, folders or frames:",
                    *data.left_out[:SHOWN],
                    *([f"and {more} more, see results.json"] if more > 0 else []),
                ]
            )
        )
    return [*notes, *data.remarks]


def _account(data: Data) -> str:
    """Return the counts and remarks as a paragraph."""
    counts = [
        f"{count} {what}, listed in results.json."
        for count, what in (
            (len(data.skipped), "unreadable files were skipped"),
            (len(data.left_out), "other files, folders or frames were left out"),
        )
        if count
    ]
    trained = f"Trained on {len(data.train)} samples, evaluated on {len(data.evaluation)}."
    return "\n".join([trained, *data.remarks, *counts])


def markdown(results: Sequence[Result], config: Config, data: Data) -> str:
    """Write the results as a Markdown page.

    Parameters
    ----------
    results : sequence of Result
        Outcomes.
    config : Config
        Options of the run.
    data : Data
        Samples that were used.

    Returns
    -------
    str
        Table, comparisons, an explanation of the columns, and an account of the samples.
    """
    header = [name.replace("\n", " ") for name in _header(config)]
    lines = [header, ["---"] + ["---:"] * 5]
    lines += [[cell.replace("\n", "<br>") for cell in row] for row in _rows(results)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    remarks = "\n".join(f"- {sentence}" for sentence in comparisons(results))
    return f"""# {config.model.name} on {config.data.name}: ways of downsampling

{table}

{remarks}

Accuracy after the last of {config.training.epochs} epochs, ± one standard error. Strides are height
x width, before → after training, with one line for each place that downsamples; feature maps are
the outputs there after training. Multiply-adds are those of one sample's forward pass. Seed
{config.seed}, threads: {config.threads}.{_placement(config)}

{_account(data)}
"""


def _placement(config: Config) -> str:
    """Return a sentence on the placement if the methods do not use their own."""
    placement = config.model.placement
    if placement == "method":
        return ""
    return (
        f"\nAll layers that resize come {placement} the first convolution of their place, but for "
        "a stem's, which comes after it."
    )


def versions() -> dict[str, str]:
    """Return the versions of Python and of the installed packages that affect results."""
    packages = ("torch", "torchvision", "numpy", "scikit-learn", "mlxtend", "librosa")
    installed = (name for name in packages if find_spec(MODULES.get(name, name)) is not None)
    return {
        "python": platform.python_version(),
        "diffstride": diffstride_version,
        **{name: version(name) for name in installed},
    }


def results_record(
    results: Sequence[Result], config: Config, data: Data, processes: Processes
) -> dict[str, Any]:
    """Collect the results and everything needed to repeat them.

    Parameters
    ----------
    results : sequence of Result
        Outcomes.
    config : Config
        Options of the run.
    data : Data
        Samples that were used.
    processes : Processes
        Processes that did the training.

    Returns
    -------
    dict
        JSON values.
    """
    return {
        "config": config.model_dump(mode="json"),
        "train_samples": len(data.train),
        "evaluation_samples": len(data.evaluation),
        "skipped": data.skipped,
        "left_out": data.left_out,
        "remarks": data.remarks,
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "processes": processes.count,
        "device": processes.device.type,
        "seconds": sum(result.seconds for result in results),
        "results": [asdict(result) for result in results],
        "comparisons": comparisons(results),
    }
