"""Swap DiffStride into torchvision's ResNet-18, train it within a budget, freeze it and ship it.

    python experiments/examples/swap_train_ship.py

The script trains the strided network and the one with learnt strides on the same handwritten
digits. It keeps the second at the multiply-adds of the first, freezes its strides, exports both to
ONNX and runs them in onnxruntime. This example needs the extra experiments.
"""

from __future__ import annotations

import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

from diffstride_experiments.entry import importing

with importing():
    import numpy as np
    import onnxruntime
    import torch
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.cost import multiply_adds
    from diffstride_experiments.data import Digits
    from diffstride_experiments.options import Options
    from diffstride_torch import (
        FlopsBudget,
        NothingToCropWarning,
        flops_penalty,
        freeze,
        param_groups,
        project_strides,
        replace_downsampling,
        stride_summary,
    )
    from pydantic import Field, NonNegativeFloat, PositiveInt
    from rich.console import Console
    from rich.table import Table
    from torch import Tensor, nn
    from torch.export import Dim
    from torch.utils.data import Dataset, default_collate
    from torchvision.models import resnet18
    from tqdm import tqdm

BATCH = 50
THREADS = 2


Samples = tuple[Tensor, Tensor]
"""Images with three channels, and their labels."""


def colour_digits(count: int) -> tuple[Samples, Samples]:
    """Return three-channel digits to train and to test on. A quarter of them are for testing."""
    test_count = count // 4
    options = Digits(
        test_fraction=0.25, train_count=count - test_count, evaluation_count=test_count
    )
    data = options.load("test")

    def together(part: Dataset[tuple[Tensor, int]]) -> Samples:
        images, labels = default_collate([part[index] for index in range(len(part))])
        return images.expand(-1, 3, -1, -1), labels

    return together(data.train), together(data.evaluation)


def train(
    model: nn.Module, samples: Samples, epochs: int, cost: Callable[[], Tensor] | None, seed: int
) -> None:
    """Train a network; `cost` is added to the loss."""
    optimizer = torch.optim.AdamW(param_groups(model, lr=1e-3, weight_decay=1e-2, stride_lr=3e-2))
    generator = torch.Generator().manual_seed(seed)
    images, labels = samples
    model.train()
    for _ in range(epochs):
        order = torch.randperm(len(images), generator=generator)
        for batch in tqdm(order.split(BATCH), mininterval=1):
            loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
            if cost is not None:
                loss = loss + cost()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            project_strides(model)
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, samples: Samples) -> float:
    """Return the share of images that a network classifies correctly."""
    images, labels = samples
    logits = torch.cat([model(part) for part in images.split(BATCH)])
    return float((logits.argmax(1) == labels).float().mean())


def to_onnxruntime(model: nn.Module, x: Tensor, folder: Path) -> onnxruntime.InferenceSession:
    """Export a network for any batch size, and load it."""
    path = folder / f"{id(model)}.onnx"
    exported = torch.onnx.export(
        model, (x,), dynamo=True, dynamic_shapes=({0: Dim("batch")},), verbose=False
    )
    exported.save(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def run_onnx(session: onnxruntime.InferenceSession, x: Tensor) -> np.ndarray:
    """Return the output of a loaded network."""
    (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return output


def seconds(sessions: list[onnxruntime.InferenceSession], x: Tensor) -> list[float]:
    """Return each network's median time for a batch, measured alternately."""
    times: list[list[float]] = [[] for _ in sessions]
    for repeat in range(23):
        for session, mine in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run_onnx(session, x)
            if repeat >= 3:  # The first repeats warm up.
                mine.append(time.perf_counter() - start)
    return list(map(statistics.median, times))


def main(images: int, epochs: int, weight: float, seed: int) -> dict[str, float]:
    """Run all steps, print the table and return the measurements."""
    torch.set_num_threads(THREADS)
    training, test = colour_digits(images)
    x = test[0][:20].contiguous()

    torch.manual_seed(seed)
    strided = resnet18(num_classes=10)
    learnt = resnet18(num_classes=10)
    learnt.load_state_dict(strided.state_dict())
    report = replace_downsampling(learnt, x)
    print(report)

    budget = FlopsBudget(learnt, x, target=report.multiply_adds_before)
    train(strided, training, epochs, None, seed)
    train(learnt, training, epochs, lambda: weight * budget(), seed)
    print(stride_summary(learnt, flops_penalty(learnt, x)))

    frozen = freeze(learnt, x)
    with tempfile.TemporaryDirectory() as folder:
        sessions = [to_onnxruntime(model, x, Path(folder)) for model in (strided, frozen)]
        strided_time, frozen_time = seconds(sessions, x)
        with torch.no_grad():
            expected = learnt(x)
            freezing = (frozen(x) - expected).abs().max() / expected.abs().max()
        shipping = np.abs(run_onnx(sessions[1], x) - expected.numpy()).max()
        shipping /= expected.abs().max().item()

    costs = [multiply_adds(model, tuple(x.shape[1:])) for model in (strided, frozen)]
    count = len(test[0])
    result = {
        "strided accuracy": accuracy(strided, test),
        "learnt accuracy": accuracy(frozen, test),
        "multiply-adds ratio": costs[1] / costs[0],
        "latency ratio": frozen_time / strided_time,
        "freezing error": freezing.item(),
        "shipping error": float(shipping),
    }
    table = Table(title=f"torchvision's ResNet-18 on {len(training[0])} digits, seed {seed}")
    for column in ("", "strided", "DiffStride, frozen"):
        table.add_column(column)
    names = ("strided accuracy", "learnt accuracy")
    errors = [100 * (result[n] * (1 - result[n]) / count) ** 0.5 for n in names]
    table.add_row(
        f"accuracy on {count} test images, %",
        *(f"{100 * result[n]:.1f} ± {e:.1f}" for n, e in zip(names, errors, strict=True)),
    )
    strides = "  ".join(
        "x".join(f"{s:.2f}" for s in layer.strides.tolist()) for layer in report.layers
    )
    table.add_row("strides", "2  2  2  2  2", strides)
    table.add_row(
        "multiply-adds per image",
        f"{costs[0] / 1e6:.1f} M",
        f"{costs[1] / 1e6:.1f} M (began at {report.multiply_adds_after / 1e6:.1f} M)",
    )
    table.add_row(
        f"latency of {len(x)} images in onnxruntime",
        f"{1e3 * strided_time:.1f} ms",
        f"{1e3 * frozen_time:.1f} ms ({result['latency ratio']:.2f} times)",
    )
    table.add_row("largest difference when frozen", "", f"{result['freezing error']:.1e}")
    table.add_row("largest difference in onnxruntime", "", f"{result['shipping error']:.1e}")
    Console(width=100).print(table)
    return result


if __name__ == "__main__":
    # Digits are small: the last feature maps are too small to crop at any stride, as reported.
    warnings.simplefilter("ignore", NothingToCropWarning)

    class Arguments(Options):
        """Put DiffStride into torchvision's ResNet-18, train it on digits and ship it."""

        images: int = Field(1200, ge=100, le=5000)
        """Number of digits. A quarter of them are for testing."""

        epochs: PositiveInt = 3
        """Passes over the training images."""

        weight: NonNegativeFloat = 1.0
        """Weight of the budget term in the loss."""

        seed: int = Field(0, ge=0, lt=2**63)
        """Seed of the weights and of the order of the images."""

    run_script(Arguments, main)
