"""Strides and sizes of a model's layers, as numbers to log during training."""

from __future__ import annotations

import re

from torch import nn

from diffstride_torch.modules import DiffStride, check_module, read_strides
from diffstride_torch.network.summary import Flops, axes_as_used, check_counted, layer_names
from diffstride_torch.network.tracing import unwrapped

# From the first axis of a map to the last.
_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def stride_metrics(model: nn.Module, penalty: Flops | None = None) -> dict[str, float]:
    """Return the strides of a model as named numbers, for TensorBoard, W&B, MLflow and others.

    The strides are read in one transfer per device and dtype. After `project_strides` no transfer
    is needed.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a wrapper of it: ``DistributedDataParallel``, or what ``torch.compile``
        returns. Names are those of the inner model. If ``fully_shard`` distributes the model, all
        processes must call this function.
    penalty : FlopsPenalty or FlopsBudget, optional
        Counter of the model's multiply-adds. It must have been made for this model.

    Returns
    -------
    dict of str to float
        For each layer and axis:

        - ``strides/LAYER/AXIS``: the stride within its bounds, as used.
        - ``sizes/LAYER/AXIS``: the output size for the layer's last input. It is missing before the
          first forward pass.

        With `penalty`, also ``multiply_adds``, per image. AXIS is ``height`` or ``width``,
        ``depth`` too in three dimensions, and ``length`` in one. LAYER is the name of the layer in
        the model, or its first name if it is in several places. It is left out if the model is a
        layer, as in ``strides/height``. Characters that some tools refuse become underscores. For a
        model without a layer the dictionary is empty, so the same loop can log any model.

    Raises
    ------
    TypeError
        If the model is not a module, or `penalty` cannot count.
    ValueError
        If `penalty` was made for another model, or a stride is NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import stride_metrics
    >>> from diffstride_torch.models import small_resnet
    >>> model = small_resnet(strides=(2.0, (1.5, 3.0), 2.0))
    >>> _ = model(torch.zeros(1, 1, 24, 24))
    >>> stride_metrics(model)["sizes/blocks.1.pool/width"]
    4.0
    """
    check_module(model)
    model = unwrapped(model)
    names = layer_names(model)
    check_counted("penalty", penalty, names, model)
    read_strides(names)
    strides, sizes = {}, {}
    for layer, (name, *_) in names.items():
        for axis_name, (_, stride, axis) in zip(
            _axis_names(layer), axes_as_used(layer), strict=True
        ):
            key = "/".join(filter(None, [re.sub(r"[^\w.-]", "_", name, flags=re.A), axis_name]))
            strides[f"strides/{key}"] = stride
            if axis is not None:
                sizes[f"sizes/{key}"] = float(axis.output_size)
    metrics = {**strides, **sizes}
    if penalty is not None:
        metrics["multiply_adds"] = float(penalty.multiply_adds())
    return metrics


def _axis_names(layer: DiffStride) -> list[str]:
    """Return the names of the axes that a layer resizes, in the order of its strides."""
    axes = layer.settings.axes
    # Axes counted from the start come before those counted from the end.
    in_order = sorted(axes, key=lambda axis: (axis < 0, axis))
    return [_AXES[layer.rank][in_order.index(axis)] for axis in axes]
