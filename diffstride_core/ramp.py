"""The slope of an axis operator: the few bins of the ramp, as two thin matrices."""

from __future__ import annotations

import numpy as np

from diffstride_core.bases import AxisBasis, bin_counts, tables_of_bins
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan
from diffstride_core.window import Mask


def ramp_factors(
    ops: ArrayOps, axis: AxisPlan, basis: AxisBasis, mask: Mask, like: Array
) -> tuple[Array, Array]:
    """Return the two factors of dA/dS over bins that hold the ramp, for arrays like `like`.

    Parameters
    ----------
    ops : ArrayOps
    axis : AxisPlan
    basis : AxisBasis
        Its tables are not made where the FFT engine takes the axis: they would be too large.
    mask : Mask
    like : array
        Gives dtype and device.

    Returns
    -------
    synthesis : array, shape (M, 2K)
        Times the mask's slope.
    analysis : array, shape (2K, N)
    """
    xp, dtype, slope = ops.xp, ops.compute_dtype(like), mask.slope
    assert slope is not None
    bins = slope.shape[0]
    # In multiples that the kernels of matrix products divide by.
    multiple = 4 if axis.axis == -1 else 2
    count = _bins_in_ramp(slope, axis) if ops.reads_values else axis.sloped_bins
    count = min(bins, multiple * -(-count // multiple))
    # Where the ramp begins follows from the stride's value: found by array operations, since it can
    # be traced.
    first = xp.argmax(xp.astype(slope != 0, slope.dtype))
    steps = xp.astype(ops.frequencies(count, like), first.dtype)
    chosen = xp.where(first < bins - count, first, bins - count) + steps
    slope = xp.take(slope, chosen, axis=0)
    if axis.use_fft:
        lo = min(axis.size, axis.output_size)
        counts = bin_counts(xp, xp.astype(chosen, slope.dtype), lo)

        def indices(count: int) -> Array:
            return xp.astype(ops.frequencies(count, like), chosen.dtype)

        synthesis, analysis = tables_of_bins(
            xp, (chosen, chosen, counts), axis.size, axis.output_size, indices
        )
    else:
        both = xp.concat([chosen, bins + chosen])
        synthesis, analysis = ops.tables(basis, slope)
        synthesis = xp.take(synthesis, both, axis=1)
        analysis = xp.take(analysis, both, axis=0)
    weighted = synthesis * xp.concat([slope, slope])
    return xp.astype(weighted, dtype, copy=False), xp.astype(analysis, dtype, copy=False)


def _bins_in_ramp(slope: Array, axis: AxisPlan) -> int:
    """Return how many neighbouring bins have all slopes: the plan's are those of any stride."""
    found = np.flatnonzero(slope)
    return int(found[-1] - found[0]) + 1 if found.size else min(axis.sloped_bins, 1)
