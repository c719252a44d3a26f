"""The matrix engine: an axis operator as a small real matrix."""

from __future__ import annotations

from diffstride_core.axis_operator import AxisOperator
from diffstride_core.bases import AxisBasis
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.window import Mask


class MatrixOperator(AxisOperator):
    """An axis operator as a matrix, from `axis_matrix`."""

    def apply(self, x: Array, out: Array | None = None) -> Array:
        """Return A x."""
        return self._multiply(self._weights, x, out)

    def adjoint(self, g: Array, out: Array | None = None) -> Array:
        """Return A^T g."""
        return self._multiply(self._ops.xp.matrix_transpose(self._weights), g, out)

    def add_adjoint(self, total: Array | None, g: Array) -> Array:
        """Return total + A^T g, where None is 0; the total may be overwritten."""
        return self._multiply(self._ops.xp.matrix_transpose(self._weights), g, total=total)


def axis_matrix(ops: ArrayOps, basis: AxisBasis, mask: Mask, like: Array) -> Array:
    """Return A, shape (M, N), for arrays like `like`."""
    xp = ops.xp
    synthesis, analysis = ops.tables(basis, mask.value)
    matrix = (synthesis * xp.concat([mask.value, mask.value])) @ analysis
    return xp.astype(matrix, ops.compute_dtype(like), copy=False)
