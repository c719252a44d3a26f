"""Swap layers into trained networks, before and after their convolutions, and continue training.

Usage: ``python benchmarks/surgery_placement.py [--images PATH] [--seeds N] [--quick]``

Networks with strided convolutions are trained on the handwritten digits, or on 10,000 images of one
size in a folder PATH/train/CLASS and PATH/test/CLASS, and tested on 5,000. Then
`replace_downsampling` puts layers into two copies, one for each placement. These and an unchanged
copy are trained further in the same way. The script prints the accuracies on the test images right
after the swap and after one and three further epochs, as means over seeds with their standard
errors, and the multiply-adds relative to the unchanged network. It writes `surgery_placement.json`,
or `surgery_placement_images.json`, to `benchmarks/results`.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import measuring
import torch
from diffstride_experiments.data import Data, Digits, ImageFolder
from diffstride_torch import (
    NothingToCropWarning,
    flops_penalty,
    param_groups,
    project_strides,
    replace_downsampling,
)
from diffstride_torch.models import small_resnet
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn
from torch.utils.data import default_collate

BATCH = 64
EPOCHS = 6
FURTHER = 3
"""Number of epochs after the swap."""
RATE = 1e-3
FURTHER_RATE = 3e-4
STRIDE_RATE = 3e-3

Samples = tuple[torch.Tensor, torch.Tensor]
"""Images and labels."""


def residual(channels: int, classes: int) -> nn.Module:
    """Return a narrow residual network of three strided blocks."""
    return small_resnet(
        pooling="conv", channels=(16, 32, 64, 128), in_channels=channels, num_classes=classes
    )


def plain(channels: int, classes: int) -> nn.Module:
    """Return a network without shortcuts in which every second convolution is strided."""
    layers: list[nn.Module] = []
    for width in (16, 32, 64):
        for stride in (1, 2):
            layers += [
                nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
            ]
            channels = width
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes)
    )


NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"residual": residual, "plain": plain}


def together(part: Any) -> Samples:
    """Return all samples of a data set as two tensors."""
    images, labels = default_collate([part[index] for index in range(len(part))])
    return images, labels


def epochs(
    network: nn.Module,
    samples: Samples,
    seed: int,
    rate: float,
    decays_over: int | None,
    stride_rate: float = STRIDE_RATE,
) -> Iterator[int]:
    """Train a network, and yield after every epoch.

    Parameters
    ----------
    network : torch.nn.Module
    samples : Tensor, shape (N, C, H, W), and Tensor, shape (N,)
    seed : int
        Seed of the order of the samples.
    rate : float
        Learning rate.
    decays_over : int or None
        Epochs over which the rate falls to 0 along a cosine. None: the rate stays constant.
    stride_rate : float
        Learning rate of the strides.
    """
    groups = param_groups(network, lr=rate, weight_decay=1e-2, stride_lr=stride_rate)
    optimizer = torch.optim.AdamW(groups)
    generator = torch.Generator().manual_seed(seed)
    images, labels = samples
    steps = -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, 1.0)
    if decays_over is not None:
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, decays_over * steps)
    done = 0
    while True:
        network.train()
        for batch in torch.randperm(len(images), generator=generator).split(BATCH):
            loss = nn.functional.cross_entropy(network(images[batch]), labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            project_strides(network)
        done += 1
        yield done


@torch.no_grad()
def accuracy(network: nn.Module, samples: Samples) -> float:
    """Return the share of images that a network classifies correctly."""
    network.eval()
    images, labels = samples
    logits = torch.cat([network(part) for part in images.split(BATCH)])
    return float((logits.argmax(1) == labels).float().mean())


def measure(
    make: Callable[[int, int], nn.Module], data: Data, train: Samples, test: Samples, seed: int
) -> dict[str, dict[str, Any]]:
    """Train a network, swap, and train further; return the measurements by kind of copy."""
    torch.manual_seed(seed)
    network = make(data.input_shape[0], len(data.classes))
    for _ in islice(epochs(network, train, seed, RATE, EPOCHS), EPOCHS):
        pass
    example = test[0][:2]
    rows: dict[str, dict[str, Any]] = {}
    for kind in ("strided", "before", "after"):
        copied = copy.deepcopy(network)
        costs = [1.0]
        penalty, before = None, 1
        if kind != "strided":
            report = replace_downsampling(copied, example, placement=kind)
            penalty, before = flops_penalty(copied, example), report.multiply_adds_before
            costs = [report.multiply_adds_after / before]
        accuracies = [accuracy(copied, test)]
        for _ in islice(epochs(copied, train, seed + 1000, FURTHER_RATE, None), FURTHER):
            accuracies.append(accuracy(copied, test))
            costs.append(1.0 if penalty is None else penalty.multiply_adds() / before)
        rows[kind] = {"accuracies": accuracies, "multiply-adds ratios": costs}
    return rows


def show(console: Console, name: str, runs: list[dict[str, dict[str, Any]]]) -> None:
    """Print the means of a network over the seeds."""
    table = Table(title=f"{name}: accuracy on the test images, %, over {len(runs)} seeds")
    after = [f"after {n} epoch{'s' * (n > 1)}" for n in (1, FURTHER)]
    for column in ("", "right after", *after, "multiply-adds right after", after[-1]):
        table.add_column(column, justify="right")
    for kind in runs[0]:
        cells = []
        for epoch in (0, 1, FURTHER):
            cells.append(mean_and_error([run[kind]["accuracies"][epoch] for run in runs]))
        for epoch in (0, FURTHER):
            ratios = (run[kind]["multiply-adds ratios"][epoch] for run in runs)
            cells.append(f"{statistics.mean(ratios):.2f}")
        table.add_row(kind, *cells)
    console.print(table)


def mean_and_error(accuracies: Sequence[float]) -> str:
    """Return the mean of shares and its standard error, in percent."""
    values = [100 * accuracy for accuracy in accuracies]
    error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {error:.1f}"


@dataclass(frozen=True)
class Task:
    """The samples and seeds that the command line asks for."""

    data: Data
    train: Samples
    test: Samples
    seeds: range
    suffix: str | None
    """End of the name of the results file; None for a quick run, which writes none."""


def read_task(description: str) -> Task:
    """Read the command line and load the samples."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("--images", type=Path, help="folder of images; by default the digits")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="few samples, one seed, no file")
    options = parser.parse_args()
    digits = options.images is None
    train_count, test_count = (None, None) if digits else (10_000, 5000)
    if options.quick:
        train_count, test_count = 200, 100
    counts = {"train_count": train_count, "evaluation_count": test_count}
    source = (
        Digits(**counts) if digits else ImageFolder(path=options.images, in_memory=True, **counts)
    )
    data = source.load("test")
    return Task(
        data,
        together(data.train),
        together(data.evaluation),
        range(1 if options.quick else options.seeds),
        None if options.quick else "" if digits else "_images",
    )


def save(console: Console, name: str, task: Task, content: dict[str, Any]) -> None:
    """Write the results, unless the run was a quick one."""
    if task.suffix is not None:
        content = {"samples": [len(task.train[0]), len(task.test[0])], **content}
        console.print(f"written: {measuring.save(name + task.suffix, content)}")


def main() -> None:
    """Run the benchmark."""
    task = read_task(__doc__)
    console = Console(width=110)
    # The warning is about feature maps of two samples, which no stride crops.
    warnings.simplefilter("ignore", NothingToCropWarning)
    results = {
        name: [
            measure(make, task.data, task.train, task.test, seed)
            for seed in track(task.seeds, name, console=console)
        ]
        for name, make in NETWORKS.items()
    }
    for name, runs in results.items():
        show(console, name, runs)
    save(console, "surgery_placement", task, {"networks": results})


if __name__ == "__main__":
    main()
