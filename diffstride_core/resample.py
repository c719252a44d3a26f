r"""Applying a plan: the forward pass, its vector-Jacobian product and the matrix engine.

A resize is a sum of separable real operators, y = scale * sum_t (A_t1 x A_t2 x ...) x. Each axis
operator has three uses, whichever engine evaluates it: apply it (A), apply its adjoint (A^T), and
the slope <u, (dA/dS) x> that the stride's gradient is made of.
"""

from __future__ import annotations

import math
from typing import Protocol

from diffstride_core.bases import AxisBasis
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.spectrum import SpectralOperator
from diffstride_core.window import Mask, gather_slopes, spread_strides


class AxisOperator(Protocol):
    """One axis of one term."""

    def apply(self, x: Array) -> Array:
        """Return A x, from N to M samples along the axis."""

    def adjoint(self, g: Array) -> Array:
        """Return A^T g, from M to N samples along the axis."""

    def slope(self, u: Array, x: Array) -> Array:
        """Return <u, (dA/dS) x>, shape (), in the precise dtype."""


def forward(ops: ArrayOps, plan: Plan, x: Array, strides: Array | None = None) -> Array:
    """Resize an array.

    Parameters
    ----------
    ops : ArrayOps
    plan : Plan
    x : array, shape (..., N_1, ..., N_d, ...)
    strides : array, shape (), (1,) or (d,), optional
        The stride parameters, for a window that has strides.

    Returns
    -------
    array, shape (..., M_1, ..., M_d, ...)
        Of the dtype of `x`.
    """
    y = ops.xp.astype(x, ops.compute_dtype(x), copy=False)
    total = None
    for term in _operators(ops, plan, y, strides):
        part = y
        for _, operator in term:
            part = operator.apply(part)
        total = part if total is None else total + part
    return ops.xp.astype(total, x.dtype, copy=False)


def vjp(
    ops: ArrayOps,
    plan: Plan,
    g: Array,
    x: Array,
    strides: Array | None = None,
    needs: tuple[bool, ...] = (True, True),
) -> tuple[Array | None, ...]:
    """Return the vector-Jacobian product of `forward`.

    Parameters
    ----------
    ops, plan, x, strides
        As for `forward`.
    g : array
        Cotangent of the output.
    needs : tuple of bool
        Which of the gradients of `x` and `strides` to compute.

    Returns
    -------
    dx : array or None
        Of the shape and dtype of `x`.
    dstrides : array or None
        Of the shape and dtype of `strides`; only if there are strides.
    """
    xp = ops.xp
    dtype = ops.compute_dtype(x)
    needs_x, needs_strides = needs[0], strides is not None and needs[1]
    wide_x, wide_g = xp.astype(x, dtype, copy=False), xp.astype(g, dtype, copy=False)
    dx = None
    slopes: list[Array | None] = [None] * len(plan.axes)
    for term in _operators(ops, plan, wide_x, strides):
        # Only x was kept: x resized along the first axes is made anew where a slope needs it.
        partial = [wide_x]
        if needs_strides:
            for _, operator in term[:-1]:
                partial.append(operator.apply(partial[-1]))
        u = wide_g
        for step, (index, operator) in reversed(list(enumerate(term))):
            if needs_strides:
                slope, previous = operator.slope(u, partial[step]), slopes[index]
                slopes[index] = slope if previous is None else previous + slope
            if needs_x or step:
                u = operator.adjoint(u)
        if needs_x:
            dx = u if dx is None else dx + u
    gradients = (xp.astype(dx, x.dtype, copy=False) if needs_x else None,)
    if strides is None:
        return gradients
    if not needs_strides:
        return (*gradients, None)
    return (*gradients, gather_slopes(ops, slopes, strides))


def _operators(
    ops: ArrayOps, plan: Plan, x: Array, strides: Array | None
) -> list[list[tuple[int, AxisOperator]]]:
    """Return, per term, the axis operators with their axis's index in the order of application."""
    count = len(plan.axes)
    per_axis = [None] * count if strides is None else spread_strides(ops, strides, count)
    masks = [
        plan.window.mask(ops, axis, plan.smoothness, stride, x)
        for axis, stride in zip(plan.axes, per_axis, strict=True)
    ]
    first = plan.order[0]
    masks[first] = masks[first].scaled(plan.scale)
    return [
        [(i, _axis_operator(ops, plan.axes[i], bases[i], masks[i], x)) for i in plan.order]
        for bases in plan.window.terms(plan.axes)
    ]


def _axis_operator(
    ops: ArrayOps, axis: AxisPlan, basis: AxisBasis, mask: Mask, like: Array
) -> AxisOperator:
    if axis.use_fft:
        return SpectralOperator(ops, axis, mask, like)
    return MatrixOperator(ops, axis, basis, mask, like)


class MatrixOperator:
    """An axis operator as a matrix: A = synthesis @ diag(mu, mu) @ analysis."""

    def __init__(
        self, ops: ArrayOps, axis: AxisPlan, basis: AxisBasis, mask: Mask, like: Array
    ) -> None:
        self._ops, self._axis, self._dtype = ops, axis.axis, like.dtype
        self._synthesis, self._analysis = ops.tables(basis, mask.value)
        self._mask = mask
        self._matrix = self._weighted(mask.value)

    def _weighted(self, weights: Array) -> Array:
        xp = self._ops.xp
        matrix = (self._synthesis * xp.concat([weights, weights])) @ self._analysis
        return xp.astype(matrix, self._dtype, copy=False)

    def apply(self, x: Array) -> Array:
        """Return A x."""
        return _multiply_along(self._ops, self._matrix, x, self._axis)

    def adjoint(self, g: Array) -> Array:
        """Return A^T g."""
        return _multiply_along(
            self._ops, self._ops.xp.matrix_transpose(self._matrix), g, self._axis
        )

    def slope(self, u: Array, x: Array) -> Array:
        """Return <u, (dA/dS) x>."""
        xp = self._ops.xp
        product = _multiply_along(self._ops, self._weighted(self._mask.slope), x, self._axis)
        # Rows first: short sums lose nothing in single precision, their many results would.
        return xp.sum(xp.sum(u * product, axis=-1), dtype=self._mask.value.dtype)


def _multiply_along(ops: ArrayOps, matrix: Array, x: Array, axis: int) -> Array:
    """Multiply every vector along one axis by a matrix, without transposing the array."""
    xp, shape = ops.xp, tuple(x.shape)
    at = len(shape) + axis
    before, after = math.prod(shape[:at]), math.prod(shape[at + 1 :])
    if axis == -1:
        y = xp.reshape(x, (before, shape[at])) @ xp.matrix_transpose(matrix)
    else:
        y = matrix[None, :, :] @ xp.reshape(x, (before, shape[at], after))
    return xp.reshape(y, (*shape[:at], matrix.shape[0], *shape[at + 1 :]))
