"""The cost of a network: multiply-adds and feature-map sizes."""

import math
from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["feature_map_sizes", "multiply_adds"]


def _batch_size(input_shape: tuple[int, ...]) -> int:
    # The samples of a batch share the work that a layer does once per batch, such as computing
    # DiffStride's matrices. Batches of large samples are smaller.
    return max(1, min(100, 2**18 // math.prod(input_shape[1:])))


def _run(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    training = model.training
    device = next((parameter.device for parameter in model.parameters()), None)
    model.eval()
    with torch.no_grad():
        model(torch.zeros(_batch_size(input_shape), *input_shape, device=device))
    model.train(training)


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Count the multiply-adds per sample of a forward pass.

    Convolutions and matrix products are counted, including linear layers and the resizing matrices
    of spectral pooling and DiffStride. Norms, nonlinearities and means are not counted.

    Parameters
    ----------
    model : torch.nn.Module
        Network, run in evaluation mode.
    input_shape : tuple of int
        Shape of one sample, (C, H, W).

    Returns
    -------
    int
        Multiply-adds, averaged over a batch. The batch has 100 samples of up to 2621 pixels, or
        fewer samples if they are larger.
    """
    with FlopCounterMode(display=False) as counter:
        _run(model, input_shape)
    # The counter counts a multiply-add as two operations.
    return round(counter.get_total_flops() / 2 / _batch_size(input_shape))


def feature_map_sizes(
    model: nn.Module, layers: Iterable[nn.Module], input_shape: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Find the sizes of the outputs of some layers.

    Parameters
    ----------
    model : torch.nn.Module
        Network, run in evaluation mode.
    layers : iterable of torch.nn.Module
        Layers of the network whose outputs have shape (N, C, H, W).
    input_shape : tuple of int
        Shape of one sample, (C, H, W).

    Returns
    -------
    list of pair of int
        Height and width of each layer's output, in the order in which the layers are run.
    """
    sizes: list[tuple[int, int]] = []
    hooks = [
        layer.register_forward_hook(lambda _, __, output: sizes.append(tuple(output.shape[-2:])))
        for layer in layers
    ]
    try:
        _run(model, input_shape)
    finally:
        for hook in hooks:
            hook.remove()
    return sizes
