"""Sizes, bounds and the plan: everything that is decided before an array is touched.

All numbers are plain Python numbers. A plan is frozen and hashable. Two plans are equal exactly if
a traced framework can reuse its compiled code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffstride_core.window import Window


@dataclass(frozen=True, slots=True)
class Bounds:
    """The range of one stride.

    Attributes
    ----------
    floor : float
        The least stride that keeps the window's edge inside the spectrum.
    lower, upper : float
        The limits, including the user's. If they cross, `upper` wins.
    """

    floor: float = 1.0
    lower: float = 1.0
    upper: float = math.inf

    def apply(self, stride: float) -> float:
        """Return a parameter's value clipped to the bounds: the stride that is used."""
        return min(max(stride, self.floor, self.lower), self.upper)

    def intersect(self, other: Bounds) -> Bounds:
        """Return the bounds of one stride shared by two axes."""
        return Bounds(
            max(self.floor, other.floor),
            max(self.lower, other.lower),
            min(self.upper, other.upper),
        )


@dataclass(frozen=True, slots=True)
class AxisPlan:
    """One resized axis.

    Attributes
    ----------
    axis : int
        Counted from the end (negative), so that there may be any number of batch dimensions.
    size, output_size : int
        N and M.
    is_last : bool
        Whether the axis is the last in the order given by the caller.
    bounds : Bounds
        Bounds of the stride on this axis. If the axes share one stride, these are the bounds of all
        axes together.
    use_fft : bool
        Whether the FFT engine resizes the axis, rather than the matrix engine.
    ramp_bins : int
        Number of neighbouring bins that hold the window's ramp, at any stride within the bounds.
        Only the matrix engine uses it.
    size_offset : int
        Number that the layer adds to the output size that follows from the stride.
    """

    axis: int
    size: int
    output_size: int
    is_last: bool = False
    bounds: Bounds = Bounds()
    use_fft: bool = False
    ramp_bins: int = 0
    size_offset: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A resize in which only the values of the strides are open.

    Attributes
    ----------
    window : Window
        Gives the mask and the terms of the operator.
    smoothness : float
        Width of the window's ramp, in the window's own unit.
    axes : tuple of AxisPlan
        In the order given by the caller.
    scale : float
        The norm's factor on the output.
    steps : tuple of tuple of int
        The indices of the axes that each step resizes, from `steps_of`. A step multiplies one axis
        by its matrix, or transforms one or more axes.
    """

    window: Window
    smoothness: float
    axes: tuple[AxisPlan, ...]
    scale: float
    steps: tuple[tuple[int, ...], ...]

    @property
    def output_sizes(self) -> tuple[int, ...]:
        """M of each axis, in the order given by the caller."""
        return tuple(axis.output_size for axis in self.axes)

    def output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that an array of the given shape is resized to."""
        sizes = list(shape)
        for axis in self.axes:
            sizes[axis.axis] = axis.output_size
        return tuple(sizes)

    def permuted(self, order: tuple[int, ...]) -> Plan:
        """Return the plan for arrays whose axes are permuted, new axis i being old ``order[i]``."""
        rank = len(order)
        axes = tuple(replace(axis, axis=order.index(rank + axis.axis) - rank) for axis in self.axes)
        return replace(self, axes=axes)

    @property
    def by_matrices(self) -> Plan:
        """The same resize by matrices alone."""
        axes = tuple(replace(axis, use_fft=False) for axis in self.axes)
        return replace(self, axes=axes, steps=steps_of(axes))


def steps_of(axes: Sequence[AxisPlan]) -> tuple[tuple[int, ...], ...]:
    """Return the indices of the axes that each step of a resize takes, in the order of application.

    All axes with FFTs are resized in one step.
    """
    order = order_of_application(axes)
    together = tuple(sorted((i for i in order if axes[i].use_fft), key=lambda i: axes[i].axis))
    steps: list[tuple[int, ...]] = []
    for i in order:
        step = together if axes[i].use_fft else (i,)
        if step not in steps:
            steps.append(step)
    return tuple(steps)


def order_of_application(axes: Sequence[AxisPlan]) -> tuple[int, ...]:
    """Return the indices of the axes in the order of application that costs least.

    Axis a goes before b if this needs fewer multiply-adds, N_a N_b M_a + M_a N_b M_b <
    N_a N_b M_b + M_b N_a M_a, that is 1/N_a - 1/M_a < 1/N_b - 1/M_b. Among equals, the axis nearest
    the end comes first: its products are the widest, and the array is largest at first.
    """
    return tuple(
        sorted(
            range(len(axes)),
            key=lambda i: (1 / axes[i].size - 1 / axes[i].output_size, -axes[i].axis),
        )
    )
