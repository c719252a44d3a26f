"""Compare ways to fine-tune a trained network to learnt strides.

Usage: ``python benchmarks/fine_tuning.py [--images PATH] [--seeds N] [--quick]``

A residual network with strided convolutions is trained on the handwritten digits, or on 10,000
images of a folder PATH/train/CLASS and PATH/test/CLASS. `replace_downsampling` puts learnt strides
into copies of it, one per recipe, and each copy is trained for three more epochs. The script prints
the accuracy on the test images after the swap, after each epoch, and the multiply-adds relative to
the strided network, as means over the seeds with their standard errors. It writes
`fine_tuning.json`, or `fine_tuning_images.json`, to `benchmarks/results`.
"""

from __future__ import annotations

import copy
import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import torch
from diffstride_torch import NothingToCropWarning, flops_penalty, replace_downsampling
from rich.console import Console
from rich.progress import track
from rich.table import Table
from surgery_placement import (
    BATCH,
    EPOCHS,
    FURTHER,
    FURTHER_RATE,
    RATE,
    STRIDE_RATE,
    Samples,
    accuracy,
    epochs,
    mean_and_error,
    read_task,
    residual,
    save,
)
from torch import nn
from torch.optim.swa_utils import update_bn


@dataclass(frozen=True)
class Recipe:
    """A way to fine-tune a network after the swap.

    Attributes
    ----------
    placement : {"before", "after"}
    recalibrates : bool
        Whether to estimate the statistics of batch norms again before training.
    holds : {"nothing", "strides", "weights"}
        Parameters that do not train in the first epoch. Weights include the parameters of norms.
    stride_rate : float
        Learning rate of the strides. The learning rate of the weights is 3e-4.
    """

    placement: str = "before"
    recalibrates: bool = True
    holds: str = "nothing"
    stride_rate: float = STRIDE_RATE


RECIPES = {
    "before the convolutions": Recipe(),
    "  statistics not re-estimated": Recipe(recalibrates=False),
    "  strides held in the first epoch": Recipe(holds="strides"),
    "  weights held in the first epoch": Recipe(holds="weights"),
    "  stride rate 1e-3": Recipe(stride_rate=1e-3),
    "  stride rate 1e-2": Recipe(stride_rate=1e-2),
    "after the convolutions": Recipe("after"),
    "  strides held in the first epoch, after": Recipe("after", holds="strides"),
}


def hold(parameters: Sequence[nn.Parameter], held: bool) -> None:
    """Hold parameters, or let them train."""
    for parameter in parameters:
        parameter.requires_grad_(not held)


def fine_tune(
    network: nn.Module, recipe: Recipe, train: Samples, test: Samples, seed: int
) -> dict[str, Any]:
    """Swap learnt strides into a copy of a network and fine-tune it."""
    tuned = copy.deepcopy(network)
    example = test[0][:2]
    report = replace_downsampling(tuned, example, placement=recipe.placement)
    penalty = flops_penalty(tuned, example)
    strides = [layer.strides for layer in report.layers]
    own = set(map(id, strides))
    weights = [p for p in tuned.parameters() if id(p) not in own]
    if recipe.recalibrates:
        update_bn(train[0].split(BATCH), tuned)
    costs = [report.multiply_adds_after / report.multiply_adds_before]
    accuracies = [accuracy(tuned, test)]

    def train_on(count: int, seed: int) -> None:
        rates = {"rate": FURTHER_RATE, "stride_rate": recipe.stride_rate, "decays_over": None}
        for _ in islice(epochs(tuned, train, seed, **rates), count):
            accuracies.append(accuracy(tuned, test))
            costs.append(penalty.multiply_adds() / report.multiply_adds_before)

    held = {"nothing": [], "strides": strides, "weights": weights}[recipe.holds]
    hold(held, True)
    train_on(1, seed)
    hold(held, False)
    train_on(FURTHER - 1, seed + 1000)
    return {"accuracies": accuracies, "multiply-adds ratios": costs}


def show(console: Console, runs: dict[str, list[dict[str, Any]]], before: list[float]) -> None:
    """Print the means over the seeds."""
    strided = f"{100 * statistics.mean(before):.1f}"
    table = Table(title=f"accuracy, %, over {len(before)} seeds; before the swap: {strided}")
    after = [f"after {n} epoch{'s' * (n > 1)}" for n in range(1, FURTHER + 1)]
    for column in ("recipe", "at the swap", *after, "multiply-adds, at the end"):
        table.add_column(column, justify="left" if column == "recipe" else "right")
    for name, rows in runs.items():
        cells = []
        for epoch in range(FURTHER + 1):
            cells.append(mean_and_error([row["accuracies"][epoch] for row in rows]))
        ends = (row["multiply-adds ratios"][-1] for row in rows)
        table.add_row(name, *cells, f"{statistics.mean(ends):.2f}")
    console.print(table)


def main() -> None:
    """Run the benchmark."""
    task = read_task(__doc__)
    console = Console(width=120)
    # The warning is about feature maps of two samples, which no stride crops.
    warnings.simplefilter("ignore", NothingToCropWarning)
    before: list[float] = []
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in RECIPES}
    for seed in track(task.seeds, "seeds", console=console):
        torch.manual_seed(seed)
        network = residual(task.data.input_shape[0], len(task.data.classes))
        for _ in islice(epochs(network, task.train, seed, RATE, EPOCHS), EPOCHS):
            pass
        before.append(accuracy(network, task.test))
        for name, recipe in RECIPES.items():
            runs[name].append(fine_tune(network, recipe, task.train, task.test, seed + 2000))
    show(console, runs, before)
    content = {
        "accuracies before the swap": before,
        "recipes": {name.strip(): asdict(recipe) for name, recipe in RECIPES.items()},
        "runs": {name.strip(): rows for name, rows in runs.items()},
    }
    save(console, "fine_tuning", task, content)


if __name__ == "__main__":
    main()
