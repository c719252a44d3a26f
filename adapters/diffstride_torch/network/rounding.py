"""Learnt strides made whole numbers."""

from __future__ import annotations

import math
from collections import defaultdict
from dataclasses import dataclass
from functools import reduce

from torch import nn

from diffstride_core.plan import Bounds
from diffstride_torch.modules import DiffStride, project_strides, read_strides, write_strides
from diffstride_torch.network.summary import aligned, axes_as_used, named_layers, shown


@dataclass(frozen=True)
class RoundedAxis:
    """One resized axis of a layer.

    Attributes
    ----------
    axis : int
        As the layer was given it.
    before : float
        The stride as it was used, that is within its bounds.
    after : int
        The whole number that it is now.
    input_size : int or None
        N as seen last; None, as the next two, where there was no forward pass.
    size_before, size_after : int or None
        M, for this N at both strides.
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
        The layer's names in the model: several where the model holds it in several places.
    axes : tuple of RoundedAxis
        In the order in which the layer was given them.
    """

    names: tuple[str, ...]
    axes: tuple[RoundedAxis, ...]


@dataclass(frozen=True)
class RoundingReport:
    """What `round_strides` did; printed, a table.

    Attributes
    ----------
    rows : tuple of RoundedLayer
        In the order in which the layers were registered.
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
            "N, M: sizes before and after the layer, for the input that it saw last; where a layer "
            "before it has",
            "changed too, it will see another. The model computes something else now: measure its "
            "accuracy again.",
        ]
        if any(axis.input_size is None for row in self.rows for axis in row.axes):
            notes.append("?: sizes unknown, the layer has seen no input")
        return "\n".join([*aligned(lines), *notes])


def round_strides(model: nn.Module) -> RoundingReport:
    """Round every stride of a model to the nearest whole number within its bounds.

    In place. Halves go down, to the larger map. The model computes something else then: measure its
    accuracy again, and train it a little more if that has fallen, with the strides held
    (``layer.strides.requires_grad_(False)``).

    Parameters
    ----------
    model : torch.nn.Module
        Where ``fully_shard`` distributes it, all processes must call the function.

    Returns
    -------
    RoundingReport
        The strides and sizes of each layer before and after, to be printed.

    Raises
    ------
    TypeError
        If the model is no module.
    ValueError
        If the model has no DiffStride layer, if a stride is NaN or infinite, and if there is no
        whole number within a layer's bounds. No stride is changed then.

    Notes
    -----
    The bounds are those of `project_strides`, which is called at the end: they follow from the
    sizes that the layers have seen, and begin anew with the next forward pass. Two layers with the
    same parameter get one stride, within the bounds of both.

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
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
        As `round_strides`.
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
    """Return the whole number nearest to a stride within bounds, None if they hold none."""
    least = math.ceil(bounds.apply(0.0))
    whole = max(math.ceil(bounds.apply(stride) - 0.5), least)
    if whole > bounds.upper:
        whole = math.floor(bounds.upper)
    return whole if bounds.apply(whole) == whole else None
