"""The cost of networks, and networks of another width, for comparisons at equal multiply-adds."""

import math
import warnings
from functools import cache

import torch
from diffstride_torch import FlopsPenalty, flops_penalty
from torch import nn

from diffstride_core import NothingToCropWarning
from diffstride_experiments.config import Config, Model
from diffstride_experiments.cost import multiply_adds
from diffstride_experiments.methods import METHODS, MethodName
from diffstride_experiments.studies.bases import CLASSES
from diffstride_experiments.studies.changes import changed

__all__ = ["cost", "cost_of_strides", "least_cost", "parameters", "widened"]


def cost(config: Config, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds per sample of a run's network at its initial strides.

    Parameters
    ----------
    config : Config
        Options with one method.
    input_shape : tuple of int
        Channels, height and width of a sample.

    Returns
    -------
    int
    """
    (method,) = config.methods
    return _cost(config.model, method, input_shape)


def parameters(config: Config, input_shape: tuple[int, int, int]) -> int:
    """Return the number of parameters of a run's network.

    Parameters
    ----------
    config : Config
        Options with one method.
    input_shape : tuple of int
        Channels, height and width of a sample.

    Returns
    -------
    int
    """
    (method,) = config.methods
    network = _network(config.model, method, input_shape)
    return sum(parameter.numel() for parameter in network.parameters())


@cache
def _cost(model: Model, method: MethodName, input_shape: tuple[int, int, int]) -> int:
    return multiply_adds(_network(model, method, input_shape), input_shape)


def _network(model: Model, method: MethodName, input_shape: tuple[int, int, int]) -> nn.Module:
    # The meta device is enough unless the values of strides decide sizes. On the CPU, weights are
    # drawn from torch's generator and thrown away, so the generator's state must be restored.
    reads_strides = METHODS[method].pooling == "diffstride"
    with torch.random.fork_rng(devices=()), torch.device("cpu" if reads_strides else "meta"):
        return model.build(METHODS[method], input_shape[0], CLASSES)


@cache
def least_cost(model: Model, input_shape: tuple[int, int, int]) -> int:
    """Return the multiply-adds per sample of a network with the largest possible strides.

    Parameters
    ----------
    model : Model
        Options of the network.
    input_shape : tuple of int
        Channels, height and width of a sample.

    Returns
    -------
    int
    """
    return cost_of_strides(model, input_shape).multiply_adds_range()[0]


def cost_of_strides(model: Model, input_shape: tuple[int, int, int]) -> FlopsPenalty:
    """Return a counter of the multiply-adds per sample of a network at any strides.

    Parameters
    ----------
    model : Model
        Options of the network.
    input_shape : tuple of int
        Channels, height and width of a sample.

    Returns
    -------
    FlopsPenalty
        The counter. Its layers hold the strides.
    """
    with torch.random.fork_rng(devices=()), warnings.catch_warnings():
        # The warning is about feature maps as small as two samples.
        warnings.simplefilter("ignore", NothingToCropWarning)
        network = model.build(METHODS["diffstride"], input_shape[0], CLASSES)
        return flops_penalty(network, torch.zeros(1, *input_shape))


def widened(config: Config, budget: float, input_shape: tuple[int, int, int]) -> Config:
    """Widen or narrow all layers of a network alike, to about a given number of multiply-adds.

    Parameters
    ----------
    config : Config
        Options with one method and with `model.channels`.
    budget : float
        Multiply-adds per sample.
    input_shape : tuple of int
        Channels, height and width of a sample.

    Returns
    -------
    Config
        Options with the width whose cost is nearest to the budget. The width varies in steps of one
        channel of the narrowest layer.
    """
    channels = config.model.channels
    narrowest = min(channels)

    def with_width(width: int) -> Config:
        scaled = tuple(round(count * width / narrowest) for count in channels)
        return changed(config, {"model.channels": scaled})

    def distance(width: int) -> float:
        return abs(cost(with_width(width), input_shape) - budget)

    # The cost grows about with the square of the width, so this start is close to the result.
    width = max(1, round(narrowest * math.sqrt(budget / cost(config, input_shape))))
    nearest = distance(width)
    for step in (-1, 1):
        while width + step > 0 and (away := distance(width + step)) < nearest:
            width, nearest = width + step, away
    return with_width(width)
