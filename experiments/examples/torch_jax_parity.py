"""Train the demo's network in PyTorch and in Flax NNX: the first steps are the same.

    python experiments/examples/torch_jax_parity.py --figure parity.png

The network, its optimiser and its schedule are rebuilt with Flax and Optax. Both frameworks use the
same initial weights and the same batches. The differences of the losses and strides in every step
are compared with two bounds. This example needs the extras flax and experiments, and optax.

float64
    Losses and strides agree to a relative 1e-10: the algorithms are the same. Rounding alone leaves
    less than 1e-13.

float32
    The difference in losses, and in strides, after step t of T is at most ``4 D t/T`` plus four
    float32 roundings of the value. D is the largest distance, over all T steps, between either of
    two float32 runs of PyTorch and its float64 run. The second float32 run starts with all weights
    one rounding off. The bound thus depends only on PyTorch's own rounding, not on JAX's: a bound
    that used JAX's distance from float64 would hold for any run, by the triangle inequality.

Rounding errors do not grow smoothly. A batch gives the ReLUs one to five million inputs, and often
one of them is so close to 0 that rounding decides its sign. One such flip can change the gradient
of a stride, which is a small sum of large terms, by 0.5 %, in PyTorch as in JAX. AdamW divides
gradients by their size, which makes this 0.5 % of a full step, however small the gradient is. Flips
happen in any step. This is why the bound grows in proportion to the steps instead of following the
jumps of one run, and why it says little about fewer than ten steps.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from diffstride_experiments.entry import importing

with importing("pip install 'diffstride[experiments,flax]' optax"):
    import diffstride_plotting as plotting
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax
    import torch
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.config import Config
    from diffstride_experiments.data import Data
    from diffstride_experiments.locking import check_folder
    from diffstride_experiments.methods import METHODS, Method, MethodName
    from diffstride_experiments.options import Options
    from diffstride_experiments.processes import Processes
    from diffstride_experiments.trainer import Trainer
    from diffstride_jax import nnx_modules
    from diffstride_torch import param_groups
    from flax import nnx
    from pydantic import Field
    from rich.console import Console
    from rich.table import Table
    from torch.utils.data import Dataset, default_collate

CONFIG = Config(device="cpu")
CHANNELS, STRIDES = CONFIG.model.channels, CONFIG.model.strides

FLOAT64_BOUND = 1e-10
# Multiple of PyTorch's rounding errors. It leaves room for flips, but far too little for products
# in TensorFloat-32, which are thousands of times coarser.
FLOAT32_FACTOR = 4


# Both placements, and the demo's methods whose loss also exists in JAX.
NAMES: tuple[MethodName, ...] = ("diffstride", "diffstride-penalised", "diffstride-paper")


@dataclass(frozen=True)
class Trajectory:
    """Losses and strides of a run.

    Attributes
    ----------
    losses : ndarray, shape (steps,)
        Cross-entropy of each batch, before its step.
    strides : ndarray, shape (steps, 3, 2)
        Strides of each block after each step.
    """

    losses: np.ndarray
    strides: np.ndarray


@dataclass(frozen=True)
class TorchRun:
    """A run in PyTorch and what another framework needs to repeat it.

    Attributes
    ----------
    state : dict of str to ndarray
        Initial state of the network.
    batches : list of (ndarray, ndarray)
        Images of shape (100, 1, 28, 28) and labels of each step.
    weight_rates, stride_rates : tuple of float
        Learning rates of each step.
    trajectory : Trajectory
    """

    state: dict[str, np.ndarray]
    batches: list[tuple[np.ndarray, np.ndarray]]
    weight_rates: tuple[float, ...]
    stride_rates: tuple[float, ...]
    trajectory: Trajectory


@functools.cache
def digits() -> Data:
    """Return the demo's samples."""
    return CONFIG.data.load(CONFIG.evaluate_on)


@dataclass(frozen=True)
class InDtype(Dataset[tuple[torch.Tensor, int]]):
    """Samples in another dtype."""

    samples: Dataset[tuple[torch.Tensor, int]]
    dtype: torch.dtype

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        """Return a sample and its label."""
        sample, label = self.samples[index]
        return sample.to(self.dtype), label


def train_torch(method: Method, steps: int, dtype: torch.dtype, nudge: bool = False) -> TorchRun:
    """Take the first steps of the demo's training.

    Parameters
    ----------
    method : Method
    steps : int
        Number of steps, at most one epoch (40). The schedule is the one for all 10 epochs.
    dtype : torch.dtype
        Dtype of all numbers. Weights and images are converted from float32.
    nudge : bool
        Whether to put every initial weight one rounding off.

    Returns
    -------
    TorchRun
    """
    train = InDtype(digits().train, dtype)
    with Processes.joined(CONFIG.device) as processes:
        trainer = Trainer(method, CONFIG, replace(digits(), train=train), processes)
    trainer.network.to(dtype)
    if nudge:
        with torch.no_grad():
            for weight in param_groups(trainer.network)[0]["params"]:
                weight.copy_(torch.nextafter(weight, torch.tensor(torch.inf, dtype=dtype)))
    state = {name: tensor.numpy().copy() for name, tensor in trainer.network.state_dict().items()}
    rates, losses, strides = [trainer.learning_rates], [], []
    for _ in itertools.islice(trainer.steps(), steps):
        rates.append(trainer.learning_rates)
        losses.append(trainer.loss)
        strides.append(trainer.network.strides)
    weight_rates, stride_rates = zip(*rates[:-1], strict=True)
    batches = [
        default_collate([train[index] for _, index in keys])
        for keys in itertools.islice(trainer.sampler(range(steps)), steps)
    ]
    trajectory = Trajectory(np.array(losses), np.array(strides))
    batches = [(samples.numpy(), labels.numpy()) for samples, labels in batches]
    return TorchRun(state, batches, weight_rates, stride_rates, trajectory)


def convolution(in_channels: int, out_channels: int, size: int, rngs: nnx.Rngs) -> nnx.Conv:
    """Return a square convolution without bias that keeps the size."""
    return nnx.Conv(in_channels, out_channels, (size, size), use_bias=False, rngs=rngs)


def batch_norm(channels: int, rngs: nnx.Rngs) -> nnx.BatchNorm:
    """Return a batch norm like PyTorch's, which takes the variance of the centred values.

    The running averages, which training does not use, differ: PyTorch averages the unbiased
    variance.
    """
    return nnx.BatchNorm(channels, momentum=0.9, use_fast_variance=False, rngs=rngs)


class PreActBlock(nnx.Module):
    """`diffstride_torch.models.PreActBlock` with a projection, channels last."""

    def __init__(
        self, in_channels: int, out_channels: int, stride: float, method: Method, rngs: nnx.Rngs
    ) -> None:
        self.norm1 = batch_norm(in_channels, rngs)
        self.conv1 = convolution(in_channels, out_channels, 3, rngs)
        self.norm2 = batch_norm(out_channels, rngs)
        self.conv2 = convolution(out_channels, out_channels, 3, rngs)
        self.shortcut = convolution(in_channels, out_channels, 1, rngs)
        self.pool = nnx_modules.DiffStride(stride, convention=method.convention)
        self.placement = method.placement

    def __call__(self, x: jax.Array) -> jax.Array:
        """Apply the block to feature maps of shape (N, H, W, in_channels)."""
        h = nnx.relu(self.norm1(x))
        pooled = self.pool(h)
        h = self.conv1(pooled) if self.placement == "before" else self.pool(self.conv1(h))
        return self.shortcut(pooled) + self.conv2(nnx.relu(self.norm2(h)))


class PreActResNet(nnx.Module):
    """`diffstride_torch.models.small_resnet` with the demo's sizes, channels last."""

    def __init__(self, method: Method, rngs: nnx.Rngs) -> None:
        self.stem = convolution(1, CHANNELS[0], 3, rngs)
        self.blocks = nnx.List(
            PreActBlock(*channels, stride, method, rngs)
            for *channels, stride in zip(CHANNELS[:-1], CHANNELS[1:], STRIDES, strict=True)
        )
        self.norm = batch_norm(CHANNELS[-1], rngs)
        self.classifier = nnx.Linear(CHANNELS[-1], 10, rngs=rngs)

    @property
    def pools(self) -> list[nnx_modules.DiffStride]:
        """The layers with strides, from input to output."""
        return [block.pool for block in self.blocks]

    def __call__(self, x: jax.Array) -> jax.Array:
        """Return the logits of images of shape (N, 28, 28, 1)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.classifier(nnx.relu(self.norm(x)).mean((1, 2)))


FLAX_NAMES = {"running_mean": "mean", "running_var": "var"}
FLAX_AXES = {1: (0,), 2: (1, 0), 4: (2, 3, 1, 0)}


def load(model: PreActResNet, state: dict[str, np.ndarray]) -> None:
    """Load the weights and strides of a PyTorch network's state into a model, in their dtype."""
    for name, array in state.items():
        *path, last = name.split(".")
        if last in ("num_batches_tracked", "_extra_state"):
            continue
        module = functools.reduce(
            lambda part, key: part[int(key)] if key.isdigit() else getattr(part, key), path, model
        )
        if last == "weight":
            last = "scale" if array.ndim == 1 else "kernel"
        variable = getattr(module, FLAX_NAMES.get(last, last))
        value = array.transpose(FLAX_AXES[array.ndim])
        assert value.shape == variable.shape, name
        variable.set_value(jnp.asarray(value))
    nnx_modules.replan(model)


# Equal rates give the same object, because the compiled step belongs to its optimiser.
@functools.cache
def adamw(
    weight_rates: tuple[float, ...], stride_rates: tuple[float, ...]
) -> optax.GradientTransformation:
    """Return AdamW with a group for the strides, which have no weight decay."""

    def schedule(rates: Sequence[float]) -> Callable[[jax.Array], jax.Array]:
        return lambda step: jnp.array(rates)[step]

    def groups(params: nnx.State) -> nnx.State:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: "strides" if "strides" in jax.tree_util.keystr(path) else "weights",
            params,
        )

    return optax.partition(
        {
            "weights": optax.adamw(
                schedule(weight_rates), weight_decay=CONFIG.optimizer.weight_decay
            ),
            "strides": optax.adamw(schedule(stride_rates), weight_decay=0.0),
        },
        groups,
    )


@nnx.jit
def train_step(
    model: PreActResNet, optimizer: nnx.Optimizer, x: jax.Array, y: jax.Array, penalty: float
) -> jax.Array:
    """Take a step and return the cross-entropy before it."""

    def objective(model: PreActResNet) -> tuple[jax.Array, jax.Array]:
        loss = optax.softmax_cross_entropy_with_integer_labels(model(x), y).mean()
        return loss + penalty * nnx_modules.complexity_penalty(model.pools), loss

    (_, loss), gradients = nnx.value_and_grad(objective, has_aux=True)(model)
    optimizer.update(model, gradients)
    return loss


def train_jax(method: Method, run: TorchRun) -> Trajectory:
    """Repeat a PyTorch run in JAX, in the dtype of its initial state.

    Parameters
    ----------
    method : Method
    run : TorchRun
        Run to repeat. If it is in float64, call this function within ``jax.enable_x64(True)``.

    Returns
    -------
    Trajectory
    """
    model = PreActResNet(method, nnx.Rngs(CONFIG.seed))
    load(model, run.state)
    optimizer = nnx.Optimizer(model, adamw(run.weight_rates, run.stride_rates), wrt=nnx.Param)
    penalty = CONFIG.training.penalty if method.penalised else 0.0
    losses, strides = [], []
    for x, y in run.batches:
        loss = train_step(model, optimizer, x.transpose(0, 2, 3, 1), y, penalty)
        losses.append(loss.item())
        # Not in the compiled step, because the strides decide the sizes of the next one.
        nnx_modules.project_strides(model)
        strides.append([pool.strides[...].tolist() for pool in model.pools])
    return Trajectory(np.array(losses), np.array(strides))


@dataclass(frozen=True)
class Difference:
    """Differences of losses or of strides after each step, and their bounds.

    Attributes
    ----------
    float32, float64 : ndarray, shape (steps,)
        Largest difference between PyTorch and JAX.
    float32_bound, float64_bound : ndarray, shape (steps,)
        Bounds of these differences.
    """

    float32: np.ndarray
    float32_bound: np.ndarray
    float64: np.ndarray
    float64_bound: np.ndarray

    @property
    def float32_holds(self) -> bool:
        """Whether the bound holds in every step."""
        return bool((self.float32 <= self.float32_bound).all())

    @property
    def float64_holds(self) -> bool:
        """Whether the bound holds in every step."""
        return bool((self.float64 <= self.float64_bound).all())


@dataclass(frozen=True)
class Comparison:
    """Runs of one method in both frameworks.

    Attributes
    ----------
    torch_runs : tuple of TorchRun, length 3
        Runs in float32, in float32 with nudged weights, and in float64.
    jax_trajectories : tuple of Trajectory, length 2
        Runs in float32 and float64.
    """

    method: Method
    torch_runs: tuple[TorchRun, TorchRun, TorchRun]
    jax_trajectories: tuple[Trajectory, Trajectory]

    def difference(self, quantity: str) -> Difference:
        """Compare ``"losses"`` or ``"strides"``."""
        first, nudged, torch64 = (
            _rows(getattr(run.trajectory, quantity)) for run in self.torch_runs
        )
        jax32, jax64 = (_rows(getattr(run, quantity)) for run in self.jax_trajectories)
        distance = max(abs(first - torch64).max(), abs(nudged - torch64).max())
        size = abs(torch64).max(1)
        progress = np.arange(1, len(size) + 1) / len(size)
        return Difference(
            float32=abs(first - jax32).max(1),
            float32_bound=FLOAT32_FACTOR * distance * progress + 4 * size * 2.0**-24,
            float64=abs(torch64 - jax64).max(1),
            float64_bound=FLOAT64_BOUND * abs(torch64).min(1),
        )

    @property
    def holds(self) -> bool:
        """Whether all bounds hold."""
        differences = [self.difference(quantity) for quantity in ("losses", "strides")]
        return all(d.float32_holds and d.float64_holds for d in differences)


def _rows(values: np.ndarray) -> np.ndarray:
    return values.reshape(len(values), -1)


def compare(method: Method, steps: int) -> Comparison:
    """Train with one method in both frameworks and both precisions."""
    single = train_torch(method, steps, torch.float32)
    nudged = train_torch(method, steps, torch.float32, nudge=True)
    double = train_torch(method, steps, torch.float64)
    jax_single = train_jax(method, single)
    with jax.enable_x64(True):
        jax_double = train_jax(method, double)
    return Comparison(method, (single, nudged, double), (jax_single, jax_double))


def table(comparisons: Sequence[Comparison]) -> Table:
    """Return a table of some steps."""
    result = Table(title="PyTorch and JAX, step by step: largest differences")
    for column in ("", "step", "loss\nPyTorch", "\nJAX"):
        result.add_column(column, justify="right" if column else "left")
    for quantity in ("loss", "strides"):
        for column in (f"{quantity}\nfloat32", "\nbound", "\nfloat64"):
            result.add_column(column, justify="right")
    for comparison in comparisons:
        losses, strides = comparison.difference("losses"), comparison.difference("strides")
        pairs = list(
            zip(
                comparison.torch_runs[0].trajectory.losses,
                comparison.jax_trajectories[0].losses,
                strict=True,
            )
        )
        shown = [step for step in (1, 5, 10, 20) if step <= len(pairs)]
        for step in shown:
            i = step - 1
            result.add_row(
                comparison.method.label if step == 1 else "",
                str(step),
                *(f"{loss:.6f}" for loss in pairs[i]),
                *(
                    f"{values[i]:.0e}"
                    for d in (losses, strides)
                    for values in (d.float32, d.float32_bound, d.float64)
                ),
                end_section=step == shown[-1],
            )
    return result


def draw(comparisons: Sequence[Comparison]) -> plotting.Figure:
    """Draw the losses and strides of both frameworks, each with the differences below."""
    figure = plotting.make_figure(1.6 + 3.2 * len(comparisons), 9)
    grid = figure.subplots(
        4,
        len(comparisons),
        sharex=True,
        sharey="row",
        squeeze=False,
        gridspec_kw={"height_ratios": (3, 2, 3, 2)},
    )
    for column, comparison in zip(grid.T, comparisons, strict=True):
        column[0].set_title(comparison.method.label)
        column[-1].set_xlabel("step")
        torch_run = comparison.torch_runs[0].trajectory
        jax_run = comparison.jax_trajectories[0]
        steps = np.arange(1, len(torch_run.losses) + 1)
        rings = {"marker": "o", "markersize": 5, "markeredgewidth": 0.7, "linestyle": "none"}
        rings |= {"color": "black", "markerfacecolor": "none", "label": "JAX, float32"}
        column[0].plot(steps, torch_run.losses, color=plotting.BLUE, label="PyTorch, float32")
        column[0].plot(steps, jax_run.losses, **rings)
        start = np.array(STRIDES)[:, None]
        plotting.draw_strides(
            column[2],
            steps,
            torch_run.strides - start,
            [f"block {i}" for i in range(1, len(STRIDES) + 1)],
            ("height", "width"),
        )
        rings["label"] = None
        column[2].plot(steps, _rows(jax_run.strides - start), **rings)
        for axes, quantity in ((column[1], "losses"), (column[3], "strides")):
            difference = comparison.difference(quantity)
            for values, colour, style, label in (
                (difference.float32_bound, plotting.GREY, "--", "bound, float32"),
                (difference.float32, plotting.VERMILLION, ".-", "float32"),
                (difference.float64_bound, plotting.GREY, ":", "bound, float64"),
                (difference.float64, plotting.GREEN, ".-", "float64"),
            ):
                shown = np.where(values > 0, values, np.nan)
                axes.plot(steps, shown, style, color=colour, label=label)
            axes.set_yscale("log")
        for axes in column:
            plotting.open_frame(axes)
    ylabels = ("loss", "|PyTorch − JAX|", "stride − initial stride", "|PyTorch − JAX|")  # noqa: RUF001
    titles = (None, "no point: equal", "PyTorch; rings: JAX", "no point: equal")
    for row, ylabel, title in zip(grid, ylabels, titles, strict=True):
        row[0].set_ylabel(ylabel)
        row[-1].legend(
            loc="center left",
            bbox_to_anchor=(1.02, 0.5),
            frameon=False,
            fontsize="small",
            title=title,
            title_fontsize="small",
        )
    figure.align_ylabels(grid[:, 0])
    return figure


def main(steps: int, methods: Sequence[str], figure: Path | None) -> list[Comparison]:
    """Compare methods, print the table, draw the figure and return the comparisons."""
    comparisons = [compare(METHODS[name], steps) for name in methods]
    console = Console(width=110)
    console.print(table(comparisons))
    for comparison in comparisons:
        verdict = "within" if comparison.holds else "BEYOND"
        console.print(f"{comparison.method.label}: {verdict} the bounds in all {steps} steps")
    if figure is not None:
        draw(comparisons).savefig(figure, dpi=130)
    return comparisons


if __name__ == "__main__":

    class Arguments(Options):
        """Take the same steps in PyTorch and in JAX, and compare them."""

        steps: int = Field(20, ge=10, le=40)
        """Steps to take."""

        methods: tuple[Literal[NAMES], ...] = Field(NAMES, min_length=1)
        """Methods to compare."""

        figure: Path | None = None
        """PNG file to draw."""

    def compare_all(**options: Any) -> None:
        """Compare the methods, and exit with status 1 if one exceeds its bounds."""
        if options["figure"] is not None:
            check_folder(options["figure"].parent, "--figure")
        if not all(comparison.holds for comparison in main(**options)):
            sys.exit(1)

    run_script(Arguments, compare_all)
