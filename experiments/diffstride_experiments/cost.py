"""What a network costs: multiply-adds and feature-map sizes."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["feature_map_sizes", "multiply_adds"]

# What a layer computes once a batch, such as DiffStride's matrices, is shared by so many images.
BATCH_SIZE = 100


def _run(model: nn.Module, input_shape: tuple[int, ...]) -> None:
    training = model.training
    model.eval()
    with torch.no_grad():
        model(torch.zeros(BATCH_SIZE, *input_shape))
    model.train(training)


def multiply_adds(model: nn.Module, input_shape: tuple[int, ...]) -> int:
    """Count a forward pass's multiply-adds per image.

    Counted are convolutions and matrix products: linear layers and the resizing matrices of
    spectral pooling and DiffStride. Norms, nonlinearities and means are not.

    Parameters
    ----------
    model : torch.nn.Module
        Network, run in evaluation mode.
    input_shape : tuple of int
        Shape of one image, (C, H, W).

    Returns
    -------
    int
        Multiply-adds, the mean over a batch of 100.
    """
    with FlopCounterMode(display=False) as counter:
        _run(model, input_shape)
    # The counter takes a multiply-add for two operations.
    return round(counter.get_total_flops() / 2 / BATCH_SIZE)


def feature_map_sizes(
    model: nn.Module, layers: Iterable[nn.Module], input_shape: tuple[int, ...]
) -> list[tuple[int, int]]:
    """Find the sizes of some layers' outputs.

    Parameters
    ----------
    model : torch.nn.Module
        Network, run in evaluation mode.
    layers : iterable of torch.nn.Module
        Layers inside it that give tensors of shape (N, C, H, W).
    input_shape : tuple of int
        Shape of one image, (C, H, W).

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
