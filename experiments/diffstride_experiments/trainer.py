"""Training one method, step by step."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
from diffstride_torch import FlopsBudget, complexity_penalty, flops_penalty, project_strides
from diffstride_torch.models.blocks import ResidualNetwork
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, Subset
from torchvision.transforms.v2 import MixUp
from tqdm import tqdm

from diffstride_experiments.config import Config
from diffstride_experiments.cost import multiply_adds
from diffstride_experiments.data import Data
from diffstride_experiments.errors import ExperimentError, UsageError
from diffstride_experiments.methods import Method
from diffstride_experiments.optimisation import build_optimizer, build_schedule
from diffstride_experiments.processes import Processes
from diffstride_experiments.sampling import STEP, SeededSamples, StepSampler, random_seed

__all__ = ["Trainer", "build_network"]

NOTES_PER_EPOCH = 10
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def build_network(method: Method, config: Config, data: Data) -> ResidualNetwork:
    """Build a method's network with seeded initial weights.

    Parameters
    ----------
    method : Method
        How to downsample.
    config : Config
        Options. The seed is set before each network is built, so that all methods begin with the
        same weights.
    data : Data
        Samples. The network has their channels and classes.

    Returns
    -------
    ResidualNetwork
        Network for samples of shape (N, *data.input_shape).
    """
    torch.manual_seed(config.seed)
    return config.model.build(method, data.input_shape[0], len(data.classes))


class Trainer:
    """Training of one method, which can stop after any step and continue in another process.

    Parameters
    ----------
    method : Method
        How to downsample.
    config : Config
        Options.
    data : Data
        Samples.
    processes : Processes
        The processes that share the work.

    Attributes
    ----------
    network : ResidualNetwork
        Network that is trained.
    history : list of dict
        Metrics of each finished epoch.
    step : int
        Steps done.
    trajectory : list of dict
        If strides are learnt: ``step``, ``strides`` and ``multiply_adds`` per sample, before the
        first step and several times per epoch.
    trained_multiply_adds : int
        Multiply-adds of all forward passes in training so far.
    loss : float
        Loss of the last step, without penalty and budget term; NaN before the first step.
    seconds : float
        Time that the steps took, including evaluations.

    Raises
    ------
    ExperimentError
        If the batch size does not fit the samples or the processes, or if the budget does not fit
        the network.
    """

    def __init__(self, method: Method, config: Config, data: Data, processes: Processes) -> None:
        self.method = method
        self.config = config
        self.data = data
        self.history: list[dict[str, Any]] = []
        self.trajectory: list[dict[str, Any]] = []
        self.trained_multiply_adds = 0
        self.step = 0
        self.loss = math.nan
        self.seconds = 0.0
        training = config.training
        self.processes = processes
        self._steps_per_epoch = _steps_per_epoch(config, data, processes)
        self._steps_between_notes = -(-self._steps_per_epoch // NOTES_PER_EPOCH)
        # Sums over the epoch so far: loss, correct answers, samples.
        self._sums = [0.0, 0.0, 0.0]
        self._format = torch.channels_last if training.channels_last else torch.contiguous_format
        self.network = build_network(method, config, data).to(
            processes.device, memory_format=self._format
        )
        self._budget = self._build_budget() if method.budgeted else None
        self._count_multiply_adds = self._build_counter()
        self._optimizer = build_optimizer(self.network, config.optimizer)
        self._schedule = build_schedule(
            self._optimizer, config.optimizer, self._steps_per_epoch, training.epochs
        )
        self._scaler = torch.amp.GradScaler(
            processes.device.type, enabled=training.precision == "float16"
        )
        self._mixup = (
            MixUp(alpha=training.mixup, num_classes=len(data.classes)) if training.mixup else None
        )
        self._model: nn.Module = self.network
        if processes.count > 1:
            self._model = DistributedDataParallel(self.network)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later steps depend on, and the metrics so far."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "schedule": self._schedule.state_dict(),
            "scaler": self._scaler.state_dict(),
            "step": self.step,
            "sums": self._sums,
            "history": self.history,
            "trajectory": self.trajectory,
            "trained_multiply_adds": self.trained_multiply_adds,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state that `state_dict` returned."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._schedule.load_state_dict(state["schedule"])
        self._scaler.load_state_dict(state["scaler"])
        self.step = state["step"]
        self._sums = state["sums"]
        self.history = state["history"]
        self.trajectory = state["trajectory"]
        self.trained_multiply_adds = state["trained_multiply_adds"]
        self.seconds = state["seconds"]

    def steps(self, *, show: bool = True) -> Iterator[bool]:
        """Train the remaining steps.

        Parameters
        ----------
        show : bool
            Whether to show a progress bar, with the training loss of the epoch so far, the accuracy
            after the previous epoch, and the strides of all places.

        Yields
        ------
        bool
            After each step, whether it ended an epoch. The metrics of the epoch are then in
            `history`.

        Raises
        ------
        ExperimentError
            If the loss is no longer finite.
        """
        total = self._steps_per_epoch * self.config.training.epochs
        if self.step == total:
            return
        step_model = self._compiled()
        loader = DataLoader(
            SeededSamples(self.data.train, self.config.seed),
            batch_sampler=self.sampler(range(self.step, total)),
            num_workers=self.config.training.workers,
            pin_memory=self.processes.device.type == "cuda",
        )
        with tqdm(
            total=total,
            initial=self.step,
            desc=self.method.name,
            bar_format="{desc} {percentage:3.0f}% {bar} {remaining}{postfix}",
            dynamic_ncols=True,
            mininterval=0.5,
            disable=not show,
        ) as progress:
            self._show(progress)
            if self.step == 0:
                self._note_strides()
            started = time.perf_counter()
            for samples, labels in loader:
                self._train_step(step_model, samples, labels)
                self.step += 1
                progress.update()
                self._show(progress)
                if self.step % self._steps_between_notes == 0:
                    self._note_strides()
                ended = self.step % self._steps_per_epoch == 0
                if ended:
                    self._end_epoch()
                    self._show(progress)
                self.seconds += time.perf_counter() - started
                yield ended
                started = time.perf_counter()

    @property
    def learning_rates(self) -> list[float]:
        """Learning rates of the next step, for the weights and, if they are learnt, the strides."""
        return [group["lr"] for group in self._optimizer.param_groups]

    def sampler(self, steps: range) -> StepSampler:
        """Return a sampler of the epochs and indices of this process's samples in some steps."""
        return StepSampler(
            count=len(self.data.train),
            steps=steps,
            steps_per_epoch=self._steps_per_epoch,
            batch_size=self.config.training.batch_size,
            seed=self.config.seed,
            rank=self.processes.rank,
            processes=self.processes.count,
        )

    def _build_budget(self) -> FlopsBudget:
        try:
            return FlopsBudget(self.network, self._sample(), target=self.config.training.budget)
        except ValueError as error:
            raise UsageError(f"training.budget: {error} ({self.method.name}).") from error

    def _build_counter(self) -> Callable[[], int]:
        """Return a function that counts the multiply-adds per sample at the current strides."""
        if self.method.learns_strides:
            return flops_penalty(self.network, self._sample()).multiply_adds
        fixed = multiply_adds(self.network, self.data.input_shape)
        return lambda: fixed

    def _sample(self) -> Tensor:
        return torch.zeros(1, *self.data.input_shape, device=self.processes.device)

    def _compiled(self) -> nn.Module:
        backend = self.config.training.compile
        if backend == "off":
            return self._model
        # A module that has run before is compiled once for its first sizes; otherwise twice.
        self._model.eval()
        with torch.no_grad(), self._autocast():
            self._model(self._sample())
        return torch.compile(self._model, backend=backend, dynamic=False)

    def _autocast(self) -> torch.autocast:
        precision = self.config.training.precision
        return torch.autocast(
            self.processes.device.type, DTYPES[precision], enabled=precision != "float32"
        )

    def _to_device(self, samples: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        device = self.processes.device
        return (
            samples.to(device, non_blocking=True, memory_format=self._format),
            labels.to(device, non_blocking=True),
        )

    def _train_step(self, model: nn.Module, samples: Tensor, labels: Tensor) -> None:
        model.train()
        torch.manual_seed(random_seed(self.config.seed, self.step, self.processes.rank, STEP))
        samples, labels = self._to_device(samples, labels)
        targets = labels
        if self._mixup is not None:
            samples, targets = self._mixup(samples, labels)
        with self._autocast():
            logits = model(samples)
            loss = cross_entropy(
                logits, targets, label_smoothing=self.config.training.label_smoothing
            )
        # For mixed samples, take the label with the larger share.
        self._count(loss, logits, labels if targets.ndim == 1 else targets.argmax(dim=1))
        self._update(loss)

    def _count(self, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Add a step to the epoch's sums; refuse a loss that is not finite."""
        correct = (logits.argmax(dim=1) == labels).sum()
        loss_sum = loss.detach().double() * len(labels)
        sums = self.processes.total(torch.stack([loss_sum, correct.double()]))
        self._check_finite(sums[0], self.step // self._steps_per_epoch + 1)
        samples = len(labels) * self.processes.count
        self.trained_multiply_adds += samples * self._count_multiply_adds()
        self.loss = sums[0] / samples
        self._sums = [a + b for a, b in zip(self._sums, [*sums, samples], strict=True)]

    def _check_finite(self, loss: float, epoch: int) -> None:
        if not math.isfinite(loss):
            raise ExperimentError(
                f"{self.method.label}: the loss became {loss} in epoch {epoch}. Lower "
                "--optimizer.learning-rate or --optimizer.stride-learning-rate."
            )

    def _update(self, loss: Tensor) -> None:
        if self.method.penalised:
            loss = loss + self.config.training.penalty * complexity_penalty(self.network)
        if self._budget is not None:
            loss = loss + self.config.training.budget_weight * self._budget()
        self._optimizer.zero_grad()
        self._scaler.scale(loss).backward()
        if self.config.optimizer.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self.network.parameters(), self.config.optimizer.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        project_strides(self.network)
        self._schedule.step()

    def _note_strides(self) -> None:
        if self.method.learns_strides:
            self.trajectory.append(
                {
                    "step": self.step,
                    "strides": list(map(list, self.network.strides)),
                    "multiply_adds": self._count_multiply_adds(),
                }
            )

    def _end_epoch(self) -> None:
        loss, correct, samples = self._sums
        self._sums = [0.0, 0.0, 0.0]
        self.history.append(
            {
                "method": self.method.name,
                "epoch": self.step // self._steps_per_epoch,
                "train_loss": loss / samples,
                "train_accuracy": correct / samples,
                **self._evaluate(),
                "strides": list(map(list, self.network.strides)),
            }
        )

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        # After its last step, each process has the running statistics of its own samples.
        self.processes.share(self.network.buffers())
        self.network.eval()
        count = len(self.data.evaluation)
        share = range(self.processes.rank, count, self.processes.count)
        loader = DataLoader(
            Subset(self.data.evaluation, share),
            batch_size=self.config.training.evaluation_batch_size,
            num_workers=self.config.training.workers,
        )
        sums = torch.zeros(2, dtype=torch.float64, device=self.processes.device)
        for batch in loader:
            samples, labels = self._to_device(*batch)
            with self._autocast():
                logits = self.network(samples)
                loss = cross_entropy(logits, labels, reduction="sum")
            correct = (logits.argmax(dim=1) == labels).sum()
            sums += torch.stack([loss.double(), correct.double()])
        loss_sum, correct_sum = self.processes.total(sums)
        self._check_finite(loss_sum, self.step // self._steps_per_epoch)
        return {"loss": loss_sum / count, "accuracy": correct_sum / count}

    def _show(self, progress: tqdm) -> None:
        if progress.disable:
            return
        # Short enough for a line of 80 columns.
        parts = []
        if self._sums[2]:
            parts.append(f"loss {self._sums[0] / self._sums[2]:.2f}")
        if self.history:
            parts.append(f"acc {self.history[-1]['accuracy']:.1%}")
        parts += [f"{h:.1f}x{w:.1f}" for h, w in self.network.strides]
        # refresh=False: the bar redraws at its own pace.
        progress.set_postfix_str(" ".join(parts), refresh=False)


def _steps_per_epoch(config: Config, data: Data, processes: Processes) -> int:
    size, count = config.training.batch_size, len(data.train)
    if size > count:
        raise ExperimentError(
            f"training.batch_size: {size} is not allowed: there are {count} training samples."
        )
    if size % processes.count:
        raise ExperimentError(
            f"training.batch_size: {size} is not allowed; give a multiple of the number of "
            f"processes, {processes.count}."
        )
    return count // size
