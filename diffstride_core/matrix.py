"""The matrix engine: an axis operator as a small real matrix, its slope from the ramp's bins alone.

A = synthesis @ diag(mu, mu) @ analysis has a matrix as small as the axis, so that applying it is
one product. Its slope has a rank of two per bin in the ramp, which is far less: it is taken as
<synthesis^T u, diag(dmu/dS) analysis x> over those bins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from diffstride_core.bases import AxisBasis
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan
from diffstride_core.window import Mask


class MatrixOperator:
    """An axis operator as a matrix.

    Parameters
    ----------
    ops : ArrayOps
    plan : AxisPlan
    matrix : array, shape (M, N)
        From `axis_matrix`.
    ramp : (array, array), optional
        From `axis_ramp`.
    """

    def __init__(
        self, ops: ArrayOps, plan: AxisPlan, matrix: Array, ramp: tuple[Array, Array] | None
    ) -> None:
        self._ops, self._axis, self._matrix, self._ramp = ops, plan.axis, matrix, ramp

    def apply(self, x: Array, out: Array | None = None) -> Array:
        """Return A x."""
        return self._multiply(self._matrix, x, out)

    def adjoint(self, g: Array, out: Array | None = None) -> Array:
        """Return A^T g."""
        return self._multiply(self._ops.xp.matrix_transpose(self._matrix), g, out)

    def slope(self, u: Array, x: Array, others: Callable[[Array], Array]) -> Array:
        """Return <u, (dA/dS) B x>, where B applies the operators of other axes."""
        assert self._ramp is not None
        xp, (synthesis, analysis) = self._ops.xp, self._ramp
        # The projection first: what is left of x is thin, and the other axes cost little.
        of_x = others(self._multiply(analysis, x))
        of_u = self._multiply(xp.matrix_transpose(synthesis), u)
        # In parts: short sums lose nothing in single precision, their many results would.
        parts = xp.sum(of_u * of_x, axis=tuple(range(-min(2, x.ndim), 0)))
        return xp.sum(parts, dtype=self._ops.precise_dtype(x))

    def _multiply(self, matrix: Array, x: Array, out: Array | None = None) -> Array:
        """Multiply every vector along the axis by a matrix, without transposing the array."""
        xp, shape = self._ops.xp, tuple(x.shape)
        at = len(shape) + self._axis
        before, after = math.prod(shape[:at]), math.prod(shape[at + 1 :])
        # One large product along the last axis; a small one per entry of the batch elsewhere.
        rest = () if after == 1 else (after,)
        place = None if out is None else xp.reshape(out, (before, matrix.shape[0], *rest))
        vectors = xp.reshape(x, (before, shape[at], *rest))
        if after == 1:
            y = self._ops.matmul(vectors, xp.matrix_transpose(matrix), place)
        else:
            y = self._ops.matmul(matrix[None, :, :], vectors, place)
        if out is not None:
            return out
        return xp.reshape(y, (*shape[:at], matrix.shape[0], *shape[at + 1 :]))


def axis_matrix(ops: ArrayOps, basis: AxisBasis, mask: Mask, like: Array) -> Array:
    """Return A, shape (M, N), for arrays like `like`."""
    xp = ops.xp
    synthesis, analysis = ops.tables(basis, mask.value)
    matrix = (synthesis * xp.concat([mask.value, mask.value])) @ analysis
    return xp.astype(matrix, ops.compute_dtype(like), copy=False)


def axis_ramp(
    ops: ArrayOps, axis: AxisPlan, basis: AxisBasis, mask: Mask, like: Array
) -> tuple[Array, Array]:
    """Return the two factors of dA/dS over K bins that hold the ramp, for arrays like `like`.

    Returns
    -------
    synthesis : array, shape (M, 2K)
        Times the mask's slope.
    analysis : array, shape (2K, N)
    """
    xp, dtype = ops.xp, ops.compute_dtype(like)
    synthesis, analysis = ops.tables(basis, mask.value)
    slope = mask.slope
    assert slope is not None
    bins = slope.shape[0]
    # Rows in multiples that the kernels of matrix products divide by.
    multiple = 4 if axis.axis == -1 else 2
    count = multiple * -(-axis.sloped_bins // multiple)
    if count < bins:
        # Where the ramp begins follows from the stride's value: found by array operations, since
        # it can be traced.
        first = xp.argmax(xp.astype(slope != 0, slope.dtype))
        steps = xp.astype(ops.frequencies(count, like), first.dtype)
        chosen = xp.where(first < bins - count, first, bins - count) + steps
        slope = xp.take(slope, chosen, axis=0)
        both = xp.concat([chosen, bins + chosen])
        synthesis = xp.take(synthesis, both, axis=1)
        analysis = xp.take(analysis, both, axis=0)
    weighted = synthesis * xp.concat([slope, slope])
    return xp.astype(weighted, dtype, copy=False), xp.astype(analysis, dtype, copy=False)
