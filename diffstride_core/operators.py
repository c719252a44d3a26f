"""The operators of a resize, which multiply arrays. They are made from tables and a window.

Along one axis a resize is A = synthesis @ diag(mu, mu) @ analysis, with the tables of
``diffstride_core.bases`` and the mask mu of a window. The matrix engine multiplies by A itself. The
FFT engine (``diffstride_core.spectrum``) multiplies by mu between two transforms. The stride's
gradient needs dA/dS. Its rank is two per bin on the ramp: for the matrix engine, it is the product
of two thin matrices. The FFT engine needs dmu/dS alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffstride_core.bases import AxisBasis
from diffstride_core.ops import Array, ArrayOps, Factors
from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.window import Mask, spread_strides


def resize_operators(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> Factors:
    """Return the operator of each axis of each term.

    Parameters
    ----------
    ops : ArrayOps
    plan : Plan
    strides : array, shape (), (1,) or (d,), or None
        The stride parameters; None for a window without strides.
    like : array
        Gives dtype and device.

    Returns
    -------
    tuple of tuple of array
        Per term, one per axis: the matrix A, shape (M, N), or, for the FFT engine, the mask, shape
        (K,). The operators of the axis that is resized first include the norm's factor.
    """
    masks = _masks(ops, plan, strides, like)

    def of_axis(i: int, basis: AxisBasis) -> Array:
        if plan.axes[i].use_fft:
            return masks[i].value
        return _matrix(ops, basis, masks[i], like)

    return _of_all_axes(plan, of_axis)


def ramp_operators(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> Factors:
    """Return the factors of the stride's gradient for each axis of each term.

    The parameters are those of `resize_operators`.

    Returns
    -------
    tuple of tuple
        Per term, one per axis: the two factors of dA/dS over the bins on the ramp, of shapes
        (M, 2K) and (2K, N); or, for the FFT engine, dmu/dS, shape (K,).
    """
    masks = _masks(ops, plan, strides, like)

    def of_axis(i: int, basis: AxisBasis) -> Array | tuple[Array, Array]:
        if plan.axes[i].use_fft:
            return masks[i].dmask
        return _ramp_factors(ops, plan.axes[i], basis, masks[i], like)

    return _of_all_axes(plan, of_axis)


def _masks(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> list[Mask]:
    count = len(plan.axes)
    per_axis = [None] * count if strides is None else spread_strides(ops, strides, count)
    masks = [
        plan.window.mask(ops, axis, plan.smoothness, stride, like)
        for axis, stride in zip(plan.axes, per_axis, strict=True)
    ]
    first = plan.steps[0][0]
    masks[first] = masks[first].scaled(plan.scale)
    return masks


def _of_all_axes(plan: Plan, of_axis: Callable[[int, AxisBasis], Any]) -> Factors:
    return tuple(
        tuple(of_axis(i, basis) for i, basis in enumerate(bases))
        for bases in plan.window.terms(plan.axes)
    )


def _matrix(ops: ArrayOps, basis: AxisBasis, mask: Mask, like: Array) -> Array:
    """Return A, shape (M, N), for arrays like `like`."""
    xp = ops.xp
    synthesis, analysis = ops.tables(basis, mask.value)
    matrix = (synthesis * xp.concat([mask.value, mask.value])) @ analysis
    return xp.astype(matrix, ops.compute_dtype(like), copy=False)


def _ramp_factors(
    ops: ArrayOps, axis: AxisPlan, basis: AxisBasis, mask: Mask, like: Array
) -> tuple[Array, Array]:
    """Return the two factors of dA/dS over the bins that hold the ramp, for arrays like `like`.

    Parameters
    ----------
    ops : ArrayOps
    axis : AxisPlan
    basis : AxisBasis
    mask : Mask
    like : array
        Gives dtype and device.

    Returns
    -------
    synthesis : array, shape (M, 2K)
        Multiplied by dmu/dS.
    analysis : array, shape (2K, N)
    """
    xp, dtype, dmask = ops.xp, ops.compute_dtype(like), mask.dmask
    assert dmask is not None
    bins = dmask.shape[0]
    # Round up to a multiple that suits the kernels of matrix products.
    multiple = 4 if axis.axis == -1 else 2
    count = _bins_in_ramp(dmask, axis) if ops.reads_values else axis.ramp_bins
    count = min(bins, multiple * -(-count // multiple))
    # The first bin of the ramp follows from the stride's value. Array operations find it, since
    # the value may be traced.
    first = xp.argmax(xp.astype(dmask != 0, dmask.dtype))
    steps = xp.astype(ops.frequencies(count, like), first.dtype)
    chosen = xp.where(first < bins - count, first, bins - count) + steps
    dmask = xp.take(dmask, chosen, axis=0)
    both = xp.concat([chosen, bins + chosen])
    synthesis, analysis = ops.tables(basis, dmask)
    synthesis = xp.take(synthesis, both, axis=1)
    analysis = xp.take(analysis, both, axis=0)
    weighted = synthesis * xp.concat([dmask, dmask])
    return xp.astype(weighted, dtype, copy=False), xp.astype(analysis, dtype, copy=False)


def _bins_in_ramp(dmask: Array, axis: AxisPlan) -> int:
    """Return how many bins hold the ramp at this stride; the plan's number is for any stride."""
    found = np.flatnonzero(dmask)
    return int(found[-1] - found[0]) + 1 if found.size else min(axis.ramp_bins, 1)
