"""Optimisers and their learning rates."""

import bisect
import math
from collections.abc import Callable

import torch
from diffstride_torch import param_groups
from torch import nn
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR

from diffstride_experiments.config import Optimizer

__all__ = ["build_optimizer", "build_schedule"]


def build_optimizer(network: nn.Module, options: Optimizer) -> torch.optim.Optimizer:
    """Make the optimiser for a network, with a separate group for the strides.

    Parameters
    ----------
    network : torch.nn.Module
        Network to train.
    options : Optimizer
        Kind of optimiser and its rates.

    Returns
    -------
    torch.optim.Optimizer
        Optimiser at its peak learning rates.
    """
    groups = param_groups(
        network,
        lr=options.learning_rate,
        weight_decay=options.weight_decay,
        stride_lr=options.stride_learning_rate,
    )
    if options.name == "sgd":
        return torch.optim.SGD(groups, momentum=options.momentum)
    return torch.optim.AdamW(groups)


def build_schedule(
    optimizer: torch.optim.Optimizer, options: Optimizer, steps_per_epoch: int, epochs: int
) -> LRScheduler:
    """Make the learning-rate schedule, which takes one step after each step of the optimiser.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Optimiser at its peak learning rates.
    options : Optimizer
        Kind of schedule and its parameters.
    steps_per_epoch, epochs : int
        Length of the training.

    Returns
    -------
    LRScheduler
    """
    total = steps_per_epoch * epochs
    if options.schedule == "one-cycle":
        return OneCycleLR(
            optimizer,
            max_lr=[group["lr"] for group in optimizer.param_groups],
            total_steps=total,
            cycle_momentum=False,
        )
    warmup = round(options.warmup_epochs * steps_per_epoch)
    factor = _factor(options, steps_per_epoch, warmup, total)

    def with_warmup(step: int) -> float:
        return (step + 1) / (warmup + 1) * factor(warmup) if step < warmup else factor(step)

    return LambdaLR(optimizer, with_warmup)


def _factor(
    options: Optimizer, steps_per_epoch: int, warmup: int, total: int
) -> Callable[[int], float]:
    """Return a function from a step, counted from 0, to the factor of the peak learning rates."""
    if options.schedule == "steps":
        unit = steps_per_epoch if options.boundary_unit == "epochs" else 1
        boundaries = [boundary * unit for boundary in options.boundaries]
        return lambda step: options.factors[bisect.bisect_right(boundaries, step)]
    if options.schedule == "cosine":
        span = max(total - warmup, 1)
        return lambda step: (1 + math.cos(math.pi * min((step - warmup) / span, 1.0))) / 2
    return lambda step: 1.0
