"""Time whole training steps of networks that differ in how they downsample.

Usage: ``python benchmarks/training_steps.py``

The networks are ResNet-18 on small images and, with ImageNet's stem, on large images. They
downsample by two at three places: with strided convolutions; with spectral pooling or DiffStride
before the convolutions, with held or learnt strides; or with either of them after the convolutions,
for DiffStride also in the paper's convention. The script prints time, peak memory and multiply-adds
of a step, as ratios to the network with strided convolutions. It writes `training_steps.json` and
`training_steps.png` to `benchmarks/results`.

The steps are timed in alternation in one process. The peak memory is measured in a separate process
for each network, above the memory that it has once the network is built.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import matplotlib.pyplot as plt
import measuring
import torch
from diffstride_experiments.cost import multiply_adds
from diffstride_torch import DiffStride2d, param_groups, project_strides
from diffstride_torch.models import preact_resnet18, resnet18
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

NETWORKS: dict[str, tuple[Callable[..., nn.Module], tuple[int, ...], dict[str, Any]]] = {
    "ResNet-18, 16 x 3x32x32": (preact_resnet18, (16, 3, 32, 32), {}),
    "ResNet-18, ImageNet's stem, 8 x 3x224x224": (
        resnet18,
        (8, 3, 224, 224),
        {"stem": "imagenet"},
    ),
}
STRIDED, HELD = "strided convolution", "DiffStride before, strides held"
KINDS: dict[str, dict[str, Any]] = {
    STRIDED: {"pooling": "conv"},
    "spectral pooling before": {"pooling": "spectral"},
    HELD: {},
    "DiffStride before, strides learnt": {},
    "spectral pooling after": {"pooling": "spectral", "placement": "after"},
    "DiffStride after": {"placement": "after"},
    "DiffStride after, the paper's convention": {"placement": "after", "convention": "paper"},
}
QUANTITIES = {"seconds": "time", "peak bytes": "memory", "multiply-adds": "multiply-adds"}
STRIDES = (2.0, 2.0, 2.0)


def build(name: str, kind: str) -> nn.Module:
    """Return a network with one way of downsampling."""
    torch.manual_seed(0)
    make, _, options = NETWORKS[name]
    network = make(strides=STRIDES, num_classes=10, **options, **KINDS[kind])
    for module in network.modules():
        if isinstance(module, DiffStride2d):
            module.strides.requires_grad_(kind != HELD)
    return network


def training_step(network: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a whole step: forward, loss, backward, optimiser, projection of the strides."""
    images, labels = torch.randn(shape), torch.randint(10, shape[:1])
    # At this rate, no size changes during the timing, but the operators are recomputed.
    optimizer = torch.optim.SGD(param_groups(network, lr=1e-6, stride_lr=1e-6), momentum=0.9)
    learns = any(
        isinstance(module, DiffStride2d) and module.strides.requires_grad
        for module in network.modules()
    )

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if learns:
            project_strides(network)

    return step


def peak_in_a_process(name: str, kind: str) -> int:
    """Return the peak memory of some steps in bytes, measured in a new process."""
    call = [sys.executable, __file__, name, kind]
    return int(subprocess.run(call, check=True, capture_output=True, text=True).stdout)


def peak(name: str, kind: str) -> int:
    """Return the peak memory of some steps in bytes, above the memory with the network built."""
    shape = NETWORKS[name][1]
    step = training_step(build(name, kind), shape)
    return measuring.resident_peak(lambda: [step() for _ in range(3)])


def measure(name: str) -> dict[str, dict[str, float]]:
    """Return seconds, peak bytes and multiply-adds of every kind."""
    shape = NETWORKS[name][1]
    networks = {kind: build(name, kind) for kind in KINDS}
    steps = {kind: training_step(network, shape) for kind, network in networks.items()}
    seconds = measuring.medians(steps, rounds=41, seconds=300)
    return {
        kind: {
            "seconds": seconds[kind],
            "peak bytes": peak_in_a_process(name, kind),
            "multiply-adds": multiply_adds(network, shape[1:]),
        }
        for kind, network in networks.items()
    }


def ratios(rows: dict[str, dict[str, float]], kind: str) -> dict[str, float]:
    """Return each quantity of a kind, relative to strided convolution."""
    return {key: rows[kind][key] / rows[STRIDED][key] for key in QUANTITIES}


def show(console: Console, name: str, rows: dict[str, dict[str, float]]) -> None:
    """Print the ratios of one network."""
    table = Table(title=f"{name}: a training step, relative to strided convolution")
    table.add_column("downsampling")
    for column in ("ms", *QUANTITIES.values()):
        table.add_column(column, justify="right")
    for kind, row in rows.items():
        found = ratios(rows, kind).values()
        table.add_row(kind, f"{1e3 * row['seconds']:.0f}", *(f"{ratio:.3f}" for ratio in found))
    console.print(table)


def draw(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Draw time, memory and multiply-adds relative to strided convolution."""
    figure, axes = plt.subplots(
        1, len(results), figsize=(10, 4.2), sharey=True, layout="constrained"
    )
    kinds = [kind for kind in KINDS if kind != STRIDED]
    for panel, (name, rows) in zip(axes, results.items(), strict=True):
        for i, (key, label) in enumerate(QUANTITIES.items()):
            at = [j + 0.27 * (i - 1) for j in range(len(kinds))]
            lengths = [ratios(rows, kind)[key] for kind in kinds]
            panel.barh(at, lengths, height=0.25, label=label)
        panel.set_yticks(range(len(kinds)), kinds)
        panel.set_title(name, fontsize=10)
        panel.axvline(1, color="black", linewidth=0.8)
        panel.set_xlabel("of the network with strided convolutions")
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(measuring.RESULTS / "training_steps.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    if len(sys.argv) > 1:
        print(peak(*sys.argv[1:]))
        return
    console = Console(width=120)
    results = {name: measure(name) for name in track(NETWORKS, console=console)}
    for name, rows in results.items():
        show(console, name, rows)
    path = measuring.save("training_steps", {"strides": STRIDES, "networks": results})
    draw(results)
    console.print(f"written: {path}")


if __name__ == "__main__":
    main()
