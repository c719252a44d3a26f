"""Time whole training steps of networks that differ in how they downsample.

Usage: ``python benchmarks/training_steps.py``

The demo's network on 28x28 images and the authors' pre-activation ResNet-18 on 32x32 ones, with
strided convolutions, with fixed spectral pooling to the feature-map sizes that DiffStride has at
the same strides, and with DiffStride in both conventions: with every layer behind its convolution
("separate"), and fused with it where that is expected to be faster, as the networks are by default.
Time, peak memory and multiply-adds of a step are printed as ratios to the network with strided
convolutions, like the paper's table of costs; DiffStride's beside the ratios to its twin with fixed
pooling and to "separate", and beside what the cost model expects of fusing. Writes
`training_steps.json` and `training_steps.png` to `benchmarks/results`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import measuring
import torch
from diffstride_experiments.cost import multiply_adds
from diffstride_torch import DiffStride2d, SpectralPool2d, param_groups, project_strides
from diffstride_torch.joining import fused_plan
from diffstride_torch.models import PreActResNet, preact_resnet18, small_resnet
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import nn

from diffstride_core.convolution import expected_costs

# Strides a little above 2 and 3, where the smallest step down would make the maps of the paper's
# convention two samples larger.
NETWORKS: dict[str, tuple[Callable[..., PreActResNet], tuple[int, ...], float]] = {
    "demo network, 128 x 1x28x28": (small_resnet, (128, 1, 28, 28), 2.05),
    "ResNet-18, 16 x 3x32x32": (preact_resnet18, (16, 3, 32, 32), 2.05),
    "ResNet-18 at stride 3, 16 x 3x32x32": (preact_resnet18, (16, 3, 32, 32), 3.05),
}
CONVENTIONS = ("paper", "relative")


def same_sizes_pool(layer: DiffStride2d, sizes: tuple[int, int]) -> SpectralPool2d:
    """Return fixed spectral pooling to the output sizes of a layer."""
    pooled = layer.output_sizes(sizes)
    # A little less, since pooling rounds N/S down.
    strides = (max(1.0, n / (m + 0.25)) for n, m in zip(sizes, pooled, strict=True))
    return SpectralPool2d(tuple(strides))


def with_fixed_pooling(network: nn.Module, input_shape: tuple[int, ...]) -> nn.Module:
    """Replace every DiffStride layer by spectral pooling to the sizes that it has."""
    sizes: dict[nn.Module, tuple[int, int]] = {}
    hooks = [
        module.register_forward_hook(
            lambda layer, inputs, _: sizes.__setitem__(layer, tuple(inputs[0].shape[-2:]))
        )
        for module in network.modules()
        if isinstance(module, DiffStride2d)
    ]
    with torch.no_grad():
        network(torch.zeros(2, *input_shape[1:]))
    for hook in hooks:
        hook.remove()
    for module in network.modules():
        if isinstance(getattr(module, "pool", None), DiffStride2d):
            module.pool = same_sizes_pool(module.pool, sizes[module.pool])
    return network


def variants(name: str) -> dict[str, nn.Module]:
    """Return a network with each way of downsampling."""
    build, shape, stride = NETWORKS[name]
    options = {"strides": (stride,) * 3}
    if build is preact_resnet18:
        options = {"strides": (1.0, None, *(stride,) * 3)}
    networks: dict[str, nn.Module] = {"strided convolution": build(pooling="conv", **options)}
    for convention in CONVENTIONS:
        network = partial(build, pooling="diffstride", convention=convention, **options)
        networks[f"spectral, sizes of {convention}"] = with_fixed_pooling(network(), shape)
        networks[f"DiffStride, {convention}, separate"] = separate(network())
        networks[f"DiffStride, {convention}"] = network()
    return networks


def separate(network: PreActResNet) -> PreActResNet:
    """Put every layer behind its convolution."""
    for place in network.places:
        place.method = "separate"
    return network


def expected_saving(network: PreActResNet, shape: tuple[int, ...]) -> float:
    """Return what fusing is expected to save, in multiply-adds of a convolution per image."""
    saved = 0.0

    def add(layer: DiffStride2d, inputs: tuple, keywords: dict, _: torch.Tensor) -> None:
        nonlocal saved
        x, *conv = inputs
        if conv:
            size, axes = tuple(x.shape), layer.settings.axes
            plan = fused_plan(conv[0], size, axes, lambda: layer.plan(size), keywords["method"])
            if plan is not None:
                expected = expected_costs(plan)
                saved += expected["separate"] - expected["fused"]

    hooks = [
        module.register_forward_hook(add, with_kwargs=True)
        for module in network.modules()
        if isinstance(module, DiffStride2d)
    ]
    with torch.no_grad():
        network(torch.zeros(2, *shape[1:]))
    for hook in hooks:
        hook.remove()
    return saved


def training_step(network: nn.Module, shape: tuple[int, ...]) -> Callable[[], None]:
    """Return a whole step: forward, loss, backward, optimiser, projection of the strides."""
    images, labels = torch.randn(shape), torch.randint(10, shape[:1])
    # A rate at which nothing changes its size while it is timed; the operators are made anew.
    optimizer = torch.optim.SGD(param_groups(network, lr=1e-6, stride_lr=1e-6), momentum=0.9)
    learns = any(isinstance(module, DiffStride2d) for module in network.modules())

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
        if learns:
            project_strides(network)

    return step


def measure(name: str) -> dict[str, dict[str, float]]:
    """Return seconds, peak bytes and multiply-adds of every variant."""
    torch.manual_seed(0)
    shape = NETWORKS[name][1]
    networks = variants(name)
    steps = {kind: training_step(network, shape) for kind, network in networks.items()}
    seconds = measuring.medians(steps, rounds=25, seconds=150)
    return {
        kind: {
            "seconds": seconds[kind],
            "peak bytes": measuring.torch_peak(steps[kind]),
            "multiply-adds": multiply_adds(network, shape[1:]),
            "expected saving": expected_saving(network, shape),
        }
        for kind, network in networks.items()
    }


def show(console: Console, name: str, rows: dict[str, dict[str, float]]) -> None:
    """Print the ratios of one network."""
    base = rows["strided convolution"]
    table = Table(title=f"{name}: a training step")
    for column in (
        "downsampling",
        "ms",
        "time ratio",
        "memory ratio",
        "multiply-adds ratio",
        "time / multiply-adds",
        "time over fixed",
        "memory over fixed",
        "time of separate",
        "expected",
        "memory of separate",
    ):
        table.add_column(column, justify="right")
    for kind, row in rows.items():
        ratio = {key: row[key] / base[key] for key in base if base[key]}
        cells = [
            f"{1e3 * row['seconds']:.1f}",
            *(f"{ratio[key]:.2f}" for key in ("seconds", "peak bytes", "multiply-adds")),
            f"{ratio['seconds'] / ratio['multiply-adds']:.2f}",
        ]
        if (behind := rows.get(f"{kind}, separate")) is not None:
            fixed = rows[kind.replace("DiffStride,", "spectral, sizes of")]
            cells += [f"{row[key] / fixed[key]:.3f}" for key in ("seconds", "peak bytes")]
            cells += [
                f"{row['seconds'] / behind['seconds']:.3f}",
                f"{1 - row['expected saving'] / behind['multiply-adds']:.3f}",
                f"{row['peak bytes'] / behind['peak bytes']:.3f}",
            ]
        table.add_row(kind, *cells)
    console.print(table)


def draw(results: dict[str, dict[str, dict[str, float]]]) -> None:
    """Draw time, memory and multiply-adds relative to strided convolution."""
    figure, axes = plt.subplots(len(results), figsize=(9, 10), layout="constrained")
    for panel, (name, rows) in zip(axes, results.items(), strict=True):
        base = rows["strided convolution"]
        for i, key in enumerate(("seconds", "peak bytes", "multiply-adds")):
            at = [j + 0.27 * (i - 1) for j in range(len(rows))]
            panel.bar(at, [row[key] / base[key] for row in rows.values()], width=0.25, label=key)
        labels = [kind.replace(", ", ",\n") for kind in rows]
        panel.set_xticks(range(len(rows)), labels, fontsize=8)
        panel.set_title(name, fontsize=10)
        panel.axhline(1, color="black", linewidth=0.8)
    axes[0].set_ylabel("of the network with strided convolutions")
    axes[0].legend(fontsize=8)
    measuring.RESULTS.mkdir(exist_ok=True)
    figure.savefig(measuring.RESULTS / "training_steps.png", dpi=150)


def main() -> None:
    """Run the benchmark."""
    console = Console(width=190)
    results = {name: measure(name) for name in track(NETWORKS, console=console)}
    for name, rows in results.items():
        show(console, name, rows)
    draw(results)
    console.print(f"written: {measuring.save('training_steps', {'networks': results})}")


if __name__ == "__main__":
    main()
