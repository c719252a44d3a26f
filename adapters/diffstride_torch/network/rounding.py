"""Rounding learnt strides to whole numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce

from torch import nn

from diffstride_core.plan import Bounds
from diffstride_torch.modules import (
    DiffStride,
    check_module,
    project_strides,
    read_strides,
    write_strides,
)
from diffstride_torch.network.summary import aligned, axes_as_used, named_layers, shown


@dataclass(frozen=True)
class RoundedAxis:
    """One resized axis of a layer.

    Attributes
    ----------
    axis : int
        The axis, as passed to the layer.
    before : float
        The stride before, within its bounds.
    after : int
        The stride now.
    input_size : int or None
        The last input size N. It is None if there was no forward pass, and so are the next two.
    size_before, size_after : int or None
        The output sizes M for this N, at both strides.
    """

    axis: int
    before: float
    after: int
    input_size: int | None
    size_before: int | None
    size_after: int | None


@dataclass(frozen=True)
class RoundedLayer:
    """One DiffStride layer.

    Attributes
    ----------
    names : tuple of str
        Names of the layer in the model: several if it is in several places.
    axes : tuple of RoundedAxis
        The axes, in the order in which they were passed to the layer.
    """

    names: tuple[str, ...]
    axes: tuple[RoundedAxis, ...]


@dataclass(frozen=True)
class RoundingReport:
    """Report of `round_strides`. Print it to get a table.

    Attributes
    ----------
    rows : tuple of RoundedLayer
        The layers, in the order in which they were registered.
    """

    rows: tuple[RoundedLayer, ...]

    def __str__(self) -> str:
        lines = [["layer", "axis", "stride", "now", "N", "M", "M now"]]
        for row in self.rows:
            for i, axis in enumerate(row.axes):
                sizes = (axis.input_size, axis.size_before, axis.size_after)
                lines.append(
                    [
                        "" if i else ", ".join(row.names),
                        str(axis.axis),
                        f"{axis.before:.3f}",
                        str(axis.after),
                        *(shown(size, "{}") for size in sizes),
                    ]
                )
        notes = [
            "N, M: sizes before and after the layer, for its last input. If an earlier layer has "
            "changed too, N will",
            "change. The model does not compute the same as before: measure its accuracy again.",
        ]
        if any(axis.input_size is None for row in self.rows for axis in row.axes):
            notes.append("?: sizes unknown, the layer has seen no input")
        return "\n".join([*aligned(lines), *notes])


def round_strides(model: nn.Module) -> RoundingReport:
    """Round every stride of a model to the nearest whole number within its bounds.

    The model is changed in place. Halves are rounded down, to the larger map. The model does not
    compute the same as before, so measure its accuracy again. If it has fallen, train the model a
    little more with the strides held (``layer.strides.requires_grad_(False)``).

    Parameters
    ----------
    model : torch.nn.Module
        If ``fully_shard`` distributes the model, all processes must call this function.

    Returns
    -------
    RoundingReport
        Strides and sizes of each layer before and after. Print it to get a table.

    Raises
    ------
    TypeError
        If the model is not a module.
    ValueError
        If the model has no DiffStride layer, a stride is NaN or infinite, or there is no whole
        number within the bounds of a layer. No stride has then changed.

    Notes
    -----
    The bounds are those of `project_strides`, which is called at the end. They depend on the input
    sizes that the layers have seen. Two layers that share a parameter get one stride, within the
    bounds of both.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStride2d, round_strides
    >>> layer = DiffStride2d((1.6, 3.3))
    >>> _ = layer(torch.zeros(1, 24, 24))
    >>> report = round_strides(layer)
    >>> layer.strides.tolist()
    [2.0, 3.0]
    >>> report.rows[0].axes[0].size_before, report.rows[0].axes[0].size_after
    (15, 12)
    """
    check_module(model)
    names = named_layers(model)
    whole = whole_strides(model)
    before = {layer: list(axes_as_used(layer)) for layer in names}
    for layer, strides in whole.items():
        write_strides(layer, strides[: layer.strides.numel()])
    rows = []
    for layer, own in names.items():
        axes = []
        for (axis, stride, plan), (_, _, new), rounded in zip(
            before[layer], axes_as_used(layer), whole[layer], strict=True
        ):
            size = None if plan is None else plan.size
            sizes = [None if axis is None else axis.output_size for axis in (plan, new)]
            axes.append(RoundedAxis(axis, stride, rounded, size, *sizes))
        rows.append(RoundedLayer(own, tuple(axes)))
    project_strides(model)
    return RoundingReport(tuple(rows))


def whole_strides(model: nn.Module) -> dict[DiffStride, tuple[int, ...]]:
    """Return the whole numbers nearest to the strides of a model's layers, one per axis.

    Raises
    ------
    ValueError
        If the model has no DiffStride layer, or a stride cannot be rounded; see `round_strides`.
    """
    names = named_layers(model)
    read = dict(zip(names, read_strides(names), strict=True))
    owners: defaultdict[int, list[DiffStride]] = defaultdict(list)
    for layer in names:
        owners[id(layer.strides)].append(layer)
    whole: dict[DiffStride, tuple[int, ...]] = {}
    for layers in owners.values():
        first = layers[0]
        rounded = []
        for i, stride in enumerate(read[first]):
            bounds = reduce(Bounds.intersect, (layer.plans.bounds()[i] for layer in layers))
            nearest = _nearest(stride, bounds)
            if nearest is None:
                raise ValueError(
                    f"strides of layer {names[first][0]!r} cannot be rounded: its bounds, "
                    f"{bounds.apply(0.0):g} to {bounds.upper:g}, hold no whole number"
                )
            rounded.append(nearest)
        for layer in layers:
            whole[layer] = tuple(rounded) * (layer.rank // len(rounded))
    return whole


def _nearest(stride: float, bounds: Bounds) -> int | None:
    """Return the whole number nearest to a stride within bounds, or None if they hold none."""
    least = math.ceil(bounds.apply(0.0))
    whole = max(math.ceil(bounds.apply(stride) - 0.5), least)
    if whole > bounds.upper:
        whole = math.floor(bounds.upper)
    return whole if bounds.apply(whole) == whole else None
