"""The interface of a window, the gradient of its edge, and the flat window of a plain resize."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, TypeAlias

from diffstride_core.bases import AxisBasis, half_spectrum
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Bounds

Term: TypeAlias = tuple[AxisBasis, ...]


class Mask(NamedTuple):
    """A window over the K bins of one axis, in the precise dtype.

    Attributes
    ----------
    value : array, shape (K,)
        mu.
    dmask : array, shape (K,), or None
        d mu/dS; None if no stride is involved.
    """

    value: Array
    dmask: Array | None

    def scaled(self, factor: float) -> Mask:
        """Return the mask times a factor."""
        return Mask(self.value * factor, None if self.dmask is None else self.dmask * factor)


class Window(ABC):
    """The stride-dependent half of a separable resize: a weight per frequency bin and axis.

    Attributes
    ----------
    has_fft : bool
        Whether the bins are those of ``bases.half_spectrum``, which the FFT engine can crop.
    """

    has_fft: ClassVar[bool] = True

    @abstractmethod
    def mask(
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        """Return the mask of one axis.

        Parameters
        ----------
        ops : ArrayOps
        axis : AxisPlan
        smoothness : float
        stride : array, shape (), or None
            The stride parameter in the precise dtype, not yet clipped to its bounds; None for a
            window without strides.
        like : array
            Gives the device.

        Returns
        -------
        Mask
        """

    def ramp_bins(self, size: int, smoothness: float, bounds: Bounds) -> int:
        """Return the number of neighbouring bins that hold the ramp, at any allowed stride."""
        return 0

    def terms(self, axes: tuple[AxisPlan, ...]) -> tuple[Term, ...]:
        """Return the separable operators whose sum is the resize, each with a basis per axis."""
        return (tuple(AxisBasis(axis.size, axis.output_size, half_spectrum) for axis in axes),)


@dataclass(frozen=True)
class FlatWindow(Window):
    """mu = 1: the resize without a mask.

    Parameters
    ----------
    nyquist : float
        Weight of the bin at the Nyquist frequency of an even output that is shorter than the input.
        1 keeps the operator's definition; 2 restores the full amplitude of a cosine, as
        `scipy.signal.resample` does.
    """

    nyquist: float = 1.0

    def mask(  # noqa: D102
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        frequency = ops.frequencies(min(axis.size, axis.output_size) // 2 + 1, like)
        ones = ops.xp.ones_like(frequency)
        if axis.output_size < axis.size and axis.output_size % 2 == 0:
            at_nyquist = frequency == axis.output_size // 2
            return Mask(ops.xp.where(at_nyquist, self.nyquist * ones, ones), None)
        return Mask(ones, None)


def spread_strides(ops: ArrayOps, strides: Array, count: int) -> list[Array]:
    """Return the stride of each of `count` axes in the precise dtype.

    Parameters
    ----------
    ops : ArrayOps
    strides : array, shape (), (1,) or (count,)
        The parameters. A single one serves all axes.
    count : int
    """
    precise = ops.xp.astype(strides, ops.precise_dtype(strides), copy=False)
    flat = ops.xp.reshape(precise, (-1,))
    return [flat[i if flat.shape[0] > 1 else 0] for i in range(count)]


def gather_stride_gradients(ops: ArrayOps, per_axis: Array, strides: Array) -> Array:
    """Return the gradient in the parameters that `spread_strides` spread over the axes.

    Parameters
    ----------
    ops : ArrayOps
    per_axis : array, shape (count,)
        The gradient in the stride of each axis.
    strides : array, shape (), (1,) or (count,)
        The parameters.

    Returns
    -------
    array
        Gradient, with the shape and dtype of `strides`.
    """
    xp = ops.xp
    if strides.shape in ((), (1,)):
        per_axis = xp.sum(per_axis)
    return xp.astype(xp.reshape(per_axis, strides.shape), strides.dtype, copy=False)


def straight_through(ops: ArrayOps, stride: Array, bounds: Bounds) -> Array:
    """Return the stride clipped to its bounds, with derivative 1 in the parameter everywhere.

    The gradient of a plain clamp is 0 outside the bounds: a stride that has left them would never
    come back.
    """
    bounded = clamp(ops, stride, max(bounds.floor, bounds.lower), bounds.upper)
    return with_derivative_of(ops, bounded, stride)


def clamp(ops: ArrayOps, array: Array, lower: float, upper: float) -> Array:
    """Return min(max(array, lower), upper): `upper` wins if the two cross."""
    xp = ops.xp
    raised = xp.where(array < lower, xp.full_like(array, lower), array)
    return xp.where(raised > upper, xp.full_like(array, upper), raised)


def with_derivative_of(
    ops: ArrayOps, value: Array, formula: Array, active: Array | None = None
) -> Array:
    """Return `value`, which automatic differentiation sees as `formula`.

    Parameters
    ----------
    value : array
        Value of the result. Its own derivative is not used.
    formula : array
        Expression to differentiate, to any order.
    active : array of bool, optional
        Entries at which the formula's derivative is used. Elsewhere, the derivative is 0.
    """
    change = formula - ops.stop_gradient(formula)
    if active is not None:
        change = ops.xp.where(active, change, ops.xp.zeros_like(change))
    return ops.stop_gradient(value) + change


def clipped_ramp(ops: ArrayOps, v: Array, dv: Array) -> Mask:
    """Return clip(v, 0, 1) with the right-hand derivative at its corners.

    Frameworks differ in the derivative of their own clip exactly at 0 and 1. Integer strides put a
    bin there, and rounding decides on which side of the corner v falls. Hence the tolerance: the
    ramp is 0 < v <= 1, shifted up a little.

    Parameters
    ----------
    ops : ArrayOps
    v : array, shape (K,)
        The unclipped mask, differentiable in the stride.
    dv : array, broadcastable to (K,)
        dv/dS.

    Returns
    -------
    Mask
    """
    xp = ops.xp
    # Not a constant of the module: torch.compile makes symbols of those if sizes are dynamic.
    tie = 1e-4
    in_ramp = (v > tie) & (v <= 1 + tie)
    return Mask(
        value=with_derivative_of(ops, clamp(ops, v, 0.0, 1.0), v, in_ramp),
        dmask=xp.where(in_ramp, dv, xp.zeros_like(v)),
    )
