"""Training one method, epoch by epoch."""

import math
import time
from collections.abc import Iterator
from typing import Any

import torch
from diffstride_torch import complexity_penalty, param_groups, project_strides
from diffstride_torch.models import PreActResNet, small_resnet
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm import tqdm

from diffstride_experiments.config import Config
from diffstride_experiments.data import CLASS_COUNT, DigitSplit
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import Method

__all__ = ["Trainer", "build_network"]

# Evaluation needs no gradient and so has room for larger batches.
EVALUATION_BATCH_SIZE = 250


def build_network(method: Method, config: Config) -> PreActResNet:
    """Build a method's network with seeded initial weights.

    Parameters
    ----------
    method : Method
        How to downsample.
    config : Config
        Options. The seed is set anew for every network, so that all methods begin with the same
        weights.

    Returns
    -------
    PreActResNet
        Network for images of shape (N, 1, 28, 28).
    """
    torch.manual_seed(config.seed)
    return small_resnet(
        pooling=method.pooling,
        strides=config.strides,
        convention=method.convention,
        channels=config.channels,
        num_classes=CLASS_COUNT,
    )


class Trainer:
    """Training of one method, which can stop after any epoch and go on in another process.

    Parameters
    ----------
    method : Method
        How to downsample.
    config : Config
        Options.
    data : DigitSplit
        Images.

    Attributes
    ----------
    network : PreActResNet
        What is trained.
    history : list of dict
        Metrics of each finished epoch.
    seconds : float
        Time that the finished epochs took, evaluation included.
    """

    def __init__(self, method: Method, config: Config, data: DigitSplit) -> None:
        self.method = method
        self.config = config
        self.data = data
        self.history: list[dict[str, Any]] = []
        self.seconds = 0.0
        self._batches = len(data.train_images) // config.batch_size
        self.network = build_network(self.method, config)
        groups = param_groups(
            self.network,
            lr=config.learning_rate,
            weight_decay=config.weight_decay,
            stride_lr=config.stride_learning_rate,
        )
        self._optimizer = torch.optim.AdamW(groups)
        self._scheduler = torch.optim.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=[group["lr"] for group in groups],
            total_steps=config.epochs * self._batches,
            cycle_momentum=False,
        )
        # Its own generator: every method sees the same batches, whatever its layers draw.
        self._batch_generator = torch.Generator().manual_seed(config.seed)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the epochs to come depend on, and the metrics so far."""
        return {
            "network": self.network.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scheduler": self._scheduler.state_dict(),
            "random": {
                "torch": torch.get_rng_state(),
                "batches": self._batch_generator.get_state(),
            },
            "epoch": len(self.history),
            "history": self.history,
            "seconds": self.seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go back to where `state_dict` was called."""
        self.network.load_state_dict(state["network"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"]["torch"])
        self._batch_generator.set_state(state["random"]["batches"])
        self.history = state["history"]
        self.seconds = state["seconds"]

    def epochs(self) -> Iterator[dict[str, Any]]:
        """Train the epochs that are left, with a progress bar.

        The bar shows the training loss of the epoch so far, the accuracy after the epoch before and
        the strides of all blocks.

        Yields
        ------
        dict
            Metrics of the epoch that has just been finished, already in `history`.

        Raises
        ------
        ExperimentError
            If the loss is no longer finite.
        """
        done, epochs = len(self.history), self.config.epochs
        with tqdm(
            total=epochs * self._batches,
            initial=done * self._batches,
            desc=self.method.name,
            bar_format="{desc} {percentage:3.0f}% {bar} {remaining}{postfix}",
            dynamic_ncols=True,
            mininterval=0.5,
        ) as progress:
            if self.history:
                self._show(progress, self.history[-1]["train_loss"])
            for epoch in range(done + 1, epochs + 1):
                started = time.perf_counter()
                metrics: dict[str, Any] = {
                    "method": self.method.name,
                    "epoch": epoch,
                    **self._train_epoch(epoch, progress),
                    **self._evaluate(),
                    "strides": list(map(list, self.network.strides)),
                }
                self.seconds += time.perf_counter() - started
                self.history.append(metrics)
                self._show(progress, metrics["train_loss"])
                yield metrics

    def _train_epoch(self, epoch: int, progress: tqdm) -> dict[str, float]:
        self.network.train()
        size = self.config.batch_size
        order = torch.randperm(len(self.data.train_images), generator=self._batch_generator)
        loss_sum, correct, seen = 0.0, 0, 0
        for batch in order[: self._batches * size].split(size):
            labels = self.data.train_labels[batch]
            logits = self.network(self.data.train_images[batch])
            loss = cross_entropy(logits, labels)
            if not math.isfinite(loss.item()):
                raise ExperimentError(
                    f"{self.method.label}: the loss became {loss.item()} in epoch {epoch}. "
                    "Lower --learning-rate or --stride-learning-rate."
                )
            self._step(loss)
            loss_sum += loss.item() * size
            correct += _count_correct(logits, labels)
            seen += size
            progress.update()
            self._show(progress, loss_sum / seen)
        return {"train_loss": loss_sum / seen, "train_accuracy": correct / seen}

    def _step(self, loss: Tensor) -> None:
        if self.method.penalised:
            loss = loss + self.config.penalty * complexity_penalty(self.network)
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()
        project_strides(self.network)
        self._scheduler.step()

    @torch.no_grad()
    def _evaluate(self) -> dict[str, float]:
        self.network.eval()
        loss_sum, correct, count = 0.0, 0, len(self.data.images)
        for images, labels in zip(
            self.data.images.split(EVALUATION_BATCH_SIZE),
            self.data.labels.split(EVALUATION_BATCH_SIZE),
            strict=True,
        ):
            logits = self.network(images)
            loss_sum += cross_entropy(logits, labels, reduction="sum").item()
            correct += _count_correct(logits, labels)
        return {"loss": loss_sum / count, "accuracy": correct / count}

    def _show(self, progress: tqdm, train_loss: float) -> None:
        # Short, so that a line of 80 columns holds it.
        accuracy = f"acc {self.history[-1]['accuracy']:.1%} " if self.history else ""
        strides = " ".join(f"{h:.1f}x{w:.1f}" for h, w in self.network.strides)
        # refresh=False: drawn at the bar's own pace.
        progress.set_postfix_str(f"loss {train_loss:.2f} {accuracy}{strides}", refresh=False)


def _count_correct(logits: Tensor, labels: Tensor) -> int:
    return int((logits.argmax(dim=1) == labels).sum())
