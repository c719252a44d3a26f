"""What both engines share: the product along an axis, and the slope over a narrow ramp."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TypeAlias

from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan

Others: TypeAlias = Callable[[Array], Array]
"""Applies the operators of other axes."""


_SHORT = 2048


class AxisOperator(ABC):
    """One axis of one term, A = synthesis @ diag(mu, mu) @ analysis.

    Parameters
    ----------
    ops : ArrayOps
    plan : AxisPlan
    weights : array
        What the engine applies: the matrix A, shape (M, N), or the mask, shape (K,).
    slope : (array, array) or array, shape (K,), optional
        The two factors of dA/dS from `ramp.ramp_factors`, or the mask's slope where the plan has no
        thin ramp.
    """

    def __init__(self, ops: ArrayOps, plan: AxisPlan, weights: Array, slope: Any = None) -> None:
        self._ops, self._plan, self._weights, self._slope = ops, plan, weights, slope

    @abstractmethod
    def apply(self, x: Array, out: Array | None = None) -> Array:
        """Return A x, from N to M samples along the axis; in `out`, if that was possible."""

    @abstractmethod
    def adjoint(self, g: Array, out: Array | None = None) -> Array:
        """Return A^T g, from M to N samples along the axis; in `out`, if that was possible."""

    def slope(self, u: Array, x: Array, others: Others) -> Array:
        """Return <u, (dA/dS) B x>, shape (), in the precise dtype, where B is `others`.

        dA/dS has a rank of two per bin in the ramp, which is far less than its size.
        """
        xp, (synthesis, analysis) = self._ops.xp, self._slope
        # The projection first: what is left of x is thin, and the other axes cost little.
        of_x = others(self._multiply(analysis, x))
        of_u = self._multiply(xp.matrix_transpose(synthesis), u)
        # In parts: short sums lose nothing in single precision, their many results would.
        is_short = math.prod(of_u.shape[-2:]) <= _SHORT
        parts = xp.sum(of_u * of_x, axis=(-2, -1) if is_short and x.ndim > 1 else -1)
        return xp.sum(parts, dtype=self._ops.precise_dtype(x))

    def _multiply(
        self, matrix: Array, x: Array, out: Array | None = None, total: Array | None = None
    ) -> Array:
        """Multiply every vector along the axis by a matrix, without transposing the array.

        What comes of it is written to `out`, or added to the total, which may be overwritten.
        """
        xp, shape = self._ops.xp, tuple(x.shape)
        at = len(shape) + self._plan.axis
        before, after = math.prod(shape[:at]), math.prod(shape[at + 1 :])
        # One large product along the last axis; a small one per entry of the batch elsewhere.
        rest = () if after == 1 else (after,)
        place = None if out is None else xp.reshape(out, (before, matrix.shape[0], *rest))
        vectors = xp.reshape(x, (before, shape[at], *rest))
        if after == 1:
            a, b = vectors, xp.matrix_transpose(matrix)
        else:
            a, b = matrix[None, :, :], vectors
        if total is None:
            y = self._ops.kernels.matmul(a, b, place)
        else:
            total = xp.reshape(total, (before, matrix.shape[0], *rest))
            y = self._ops.kernels.add_matmul(total, a, b)
        if out is not None:
            return out
        return xp.reshape(y, (*shape[:at], matrix.shape[0], *shape[at + 1 :]))
