"""Summary of a model's strides, as a table."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch

from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.planning import size_jumps
from diffstride_torch.modules import DiffStride, read_strides


class Flops(Protocol):
    """Counter of the multiply-adds of a model per image, at its present strides.

    `flops_penalty` and `FlopsBudget` make one.
    """

    @property
    def layers(self) -> Sequence[DiffStride]:
        """The DiffStride layers in the order in which the model calls them."""

    def multiply_adds(self) -> int:
        """Return the multiply-adds of the whole model."""

    def of_layer(self, layer: DiffStride) -> int:
        """Return the multiply-adds of a DiffStride layer."""

    def at_output_of(self, layer: DiffStride) -> int:
        """Return the multiply-adds of all that is computed at the size of a layer's output."""


@dataclass(frozen=True)
class AxisSummary:
    """One resized axis of a layer.

    Attributes
    ----------
    axis : int
        The axis, as passed to the layer.
    stride : float
        The stride within its bounds, as used.
    input_size, output_size : int or None
        The last input size N, and the output size M. They are None if there was no forward pass,
        and so are the fields that follow.
    effective_stride : float or None
        N/M.
    rise, fall : float or None
        By how much the stride can rise before the output gets smaller, and fall before it gets
        larger. None if the size stays the same up to the stride's bound.
    """

    axis: int
    stride: float
    input_size: int | None
    output_size: int | None
    effective_stride: float | None
    rise: float | None
    fall: float | None


@dataclass(frozen=True)
class LayerSummary:
    """One DiffStride layer.

    Attributes
    ----------
    names : tuple of str
        Names of the layer in the model: several if it is in several places.
    axes : tuple of AxisSummary
        The axes, in the order in which they were passed to the layer.
    share : float or None
        Share of the layer itself in the model's multiply-adds, between 0 and 1. None without
        `flops`, and for a layer that the example of `flops` did not reach.
    share_at_output : float or None
        Share of all operations that run at the size of the layer's output.
    """

    names: tuple[str, ...]
    axes: tuple[AxisSummary, ...]
    share: float | None
    share_at_output: float | None


@dataclass(frozen=True)
class StrideSummary:
    """Summary of a model's DiffStride layers. Print it to get a table.

    Attributes
    ----------
    rows : tuple of LayerSummary
        The layers, in the order of the network.
    multiply_adds : int or None
        Multiply-adds of the model per image. None without `flops`.
    """

    rows: tuple[LayerSummary, ...]
    multiply_adds: int | None

    def to_dicts(self) -> list[dict[str, Any]]:
        """Return the rows as dictionaries of plain values, ready for JSON."""
        return [asdict(row) for row in self.rows]

    def __str__(self) -> str:
        with_shares = self.multiply_adds is not None
        header = ["layer", "axis", "stride", "N", "M", "N/M", "to smaller M", "to larger M"]
        header += ["own share", "at M"] if with_shares else []
        lines = [line for row in self.rows for line in _cells(row, with_shares)]
        notes = [
            "N, M: input and output size; to smaller, larger M: change of stride to the next size"
        ]
        if any(axis.input_size is None for row in self.rows for axis in row.axes):
            notes.append("?: sizes unknown, because the layer has seen no input")
        if with_shares:
            notes.append(
                "own share, at M: the layer's and its output size's part of "
                f"{self.multiply_adds:,} multiply-adds per image"
            )
        return "\n".join([*aligned([header, *lines]), *notes])


def stride_summary(model: torch.nn.Module, flops: Flops | None = None) -> StrideSummary:
    """Return a table of a model's strides and sizes.

    Input sizes are the last ones that the layers have seen. If a layer has seen several sizes since
    the last projection, it is the one that was new last. Output sizes are for the present strides.

    Parameters
    ----------
    model : torch.nn.Module
    flops : FlopsPenalty or FlopsBudget, optional
        Counter that was made for this model. It adds each layer's shares of the model's
        multiply-adds.

    Returns
    -------
    StrideSummary
        The rows are in the order in which the layers were registered or, with `flops`, called.

    Raises
    ------
    TypeError
        If `flops` cannot count.
    ValueError
        If the model has no DiffStride layer, `flops` was made for another model, or a stride is NaN
        or infinite.
    """
    names = named_layers(model)
    check_counted("flops", flops, names, model)
    called = [] if flops is None else list(flops.layers)
    read_strides(names)
    total = None if flops is None else flops.multiply_adds()
    rows = []
    for layer in dict.fromkeys([*called, *names]):
        counts = None
        if flops is not None and total is not None and layer in called:
            counts = flops.of_layer(layer) / total, flops.at_output_of(layer) / total
        share, share_at_output = counts or (None, None)
        rows.append(LayerSummary(names[layer], _axes(layer), share, share_at_output))
    return StrideSummary(tuple(rows), total)


def check_counted(
    argument: str,
    flops: Flops | None,
    names: Mapping[DiffStride, tuple[str, ...]],
    model: torch.nn.Module,
) -> None:
    """Raise TypeError if an argument cannot count, ValueError if it counts for another model."""
    if flops is None:
        return
    if not callable(getattr(flops, "multiply_adds", None)):
        raise TypeError(
            f"{argument} must be what flops_penalty returns, or a FlopsBudget, got "
            f"{type(flops).__name__}"
        )
    if not names.keys() >= set(flops.layers):
        raise ValueError(
            f"{argument} must be of the model given, got one with a DiffStride layer that "
            f"{type(model).__name__} does not have"
        )


def _axes(layer: DiffStride) -> tuple[AxisSummary, ...]:
    summaries = []
    for name, used, axis in axes_as_used(layer):
        if axis is None:
            summaries.append(AxisSummary(name, used, None, None, None, None, None))
            continue
        below, above = size_jumps(layer.settings, axis, used)
        summaries.append(
            AxisSummary(
                axis=name,
                stride=used,
                input_size=axis.size,
                output_size=axis.output_size,
                effective_stride=axis.size / axis.output_size,
                rise=None if above is None else above - used,
                fall=None if below is None else used - below,
            )
        )
    return tuple(summaries)


def axes_as_used(layer: DiffStride) -> Iterator[tuple[int, float, AxisPlan | None]]:
    """Yield, for each axis of a layer, the axis, its stride within its bounds, and its plan.

    The axis is as passed to the layer. The plan is for the last size that the layer has seen, or
    None if it has seen none.
    """
    (strides,) = read_strides([layer])
    plan = last_plan(layer)
    axes = (None,) * layer.rank if plan is None else plan.axes
    bounds = layer.plans.bounds() if plan is None else [axis.bounds for axis in plan.axes]
    strides *= layer.rank // len(strides)
    for name, axis, bound, stride in zip(layer.settings.axes, axes, bounds, strides, strict=True):
        yield name, bound.apply(stride), axis


def named_layers(model: torch.nn.Module) -> dict[DiffStride, tuple[str, ...]]:
    """Return a model's DiffStride layers in the order of registration, each with all its names.

    Raises
    ------
    ValueError
        If the model has none.
    """
    names = layer_names(model)
    if not names:
        raise ValueError(
            f"model must have a DiffStride layer, got {type(model).__name__} with none"
        )
    return names


def layer_names(model: torch.nn.Module) -> dict[DiffStride, tuple[str, ...]]:
    """Return a model's DiffStride layers in the order of registration, each with all its names."""
    names: dict[DiffStride, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, DiffStride):
            names[module] = (*names.get(module, ()), name)
    return names


def last_plan(layer: DiffStride) -> Plan | None:
    """Return the plan for the last size that a layer has seen, or None if it has seen none.

    If it has seen several sizes since the last projection, this is the one that was new last.
    """
    return layer.plans.newest()


def _cells(row: LayerSummary, with_shares: bool) -> list[list[str]]:
    """Return a line of cells per axis, the first one with all names of the layer."""
    lines = []
    for i, axis in enumerate(row.axes):
        line = ["" if i else ", ".join(row.names), *_axis_cells(axis)]
        if with_shares:
            shares = (row.share, row.share_at_output)
            line += ["" if i else shown(share, "{:.1%}") for share in shares]
        lines.append(line)
    return lines


def _axis_cells(axis: AxisSummary) -> list[str]:
    unknown = "?" if axis.input_size is None else "never"
    return [
        str(axis.axis),
        f"{axis.stride:.3f}",
        shown(axis.input_size, "{}"),
        shown(axis.output_size, "{}"),
        shown(axis.effective_stride, "{:.3f}"),
        shown(axis.rise, "+{:.2g}", unknown),
        shown(axis.fall, "-{:.2g}", unknown),
    ]


def shown(value: float | None, style: str, missing: str = "?") -> str:
    """Return a value as a cell of a table."""
    return missing if value is None else style.format(value)


def aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a table with aligned cells: names to the left, numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return [
        "  ".join(
            cell.rjust(width) if i else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]
