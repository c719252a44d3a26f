"""What the strides of a model's layers amount to, as numbers to log while it trains."""

from __future__ import annotations

import re

from torch import nn

from diffstride_torch.modules import DiffStride, read_strides
from diffstride_torch.network.summary import Counter, axes_as_used, check_counted, layer_names
from diffstride_torch.network.tracing import unwrapped

# From the first axis of a map to the last.
_AXES = {1: ("length",), 2: ("height", "width"), 3: ("depth", "height", "width")}


def stride_metrics(model: nn.Module, penalty: Counter | None = None) -> dict[str, float]:
    """Return the strides of a model as named numbers, for TensorBoard, W&B, MLflow and others.

    Read from the model's device in one transfer; after `project_strides` in none.

    Parameters
    ----------
    model : torch.nn.Module
        Of a wrapper, as ``DistributedDataParallel`` or what ``torch.compile`` returns, the model in
        it, so that names stay. Where ``fully_shard`` distributes it, all processes must call the
        function.
    penalty : FlopsPenalty or FlopsBudget, optional
        Made for this model, to count its multiply-adds.

    Returns
    -------
    dict of str to float
        By the name of a layer in the model and that of an axis, for each layer

        - ``strides/LAYER/AXIS``: the stride as used, that is within its bounds;
        - ``sizes/LAYER/AXIS``: the output size that follows from it, for the input that the layer
          saw last; missing before the first forward pass;

        and ``multiply_adds`` per image, with a `penalty`. The axes of a map are height and width,
        with depth before them in three dimensions, and length in one. A layer in several places
        has the name of the first; a layer by itself has none, as in ``strides/height``. Characters
        in names that some tools refuse become underscores. Empty without a layer, so that the same
        loop logs other models.

    Raises
    ------
    TypeError
        If the model is no module, or `penalty` counts nothing.
    ValueError
        If `penalty` is that of another model, and if a stride is NaN or infinite.

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if penalty is not None and not callable(getattr(penalty, "multiply_adds", None)):
        raise TypeError(
            "penalty must be what flops_penalty returns, or a FlopsBudget, got "
            f"{type(penalty).__name__}"
        )
    model = unwrapped(model)
    names = layer_names(model)
    if penalty is not None:
        check_counted("penalty", penalty.layers, names, model)
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
