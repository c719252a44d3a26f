r"""Applying a plan: the forward pass and its vector-Jacobian product.

A resize is a sum of separable real operators, y = scale * sum_t (A_t1 x A_t2 x ...) x. An axis
operator has three uses, whichever engine evaluates it: apply it (A), apply its adjoint (A^T), and
the slope <u, (dA/dS) x> that the stride's gradient is made of.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

from diffstride_core.axis_operator import AxisOperator, Others
from diffstride_core.bases import AxisBasis
from diffstride_core.blocks import Part, in_blocks
from diffstride_core.matrix import MatrixOperator, axis_matrix
from diffstride_core.operation import Operation
from diffstride_core.ops import Array, ArrayOps, Factors
from diffstride_core.plan import Plan
from diffstride_core.ramp import ramp_factors
from diffstride_core.spectrum import SpectralOperator
from diffstride_core.window import Mask, gather_slopes, spread_strides

Term: TypeAlias = list[tuple[int, AxisOperator]]


def evaluate(
    ops: ArrayOps, plan: Plan, factors: Factors, x: Array, strides: Array | None = None
) -> Array:
    """Resize an array.

    Parameters
    ----------
    ops : ArrayOps
    plan : Plan
    factors : tuple
        From `operator_weights`.
    x : array, shape (..., N_1, ..., N_d, ...)
    strides : array, shape (), (1,) or (d,), optional
        The stride parameters, which the factors have been made of.

    Returns
    -------
    array, shape (..., M_1, ..., M_d, ...)
        Of the dtype of `x`.
    """
    plan, (x,), restore = _as_in_memory(ops, plan, x)
    terms = _operators(ops, plan, factors)

    def resize(out: Array | None, x: Array) -> Part:
        wide_x = ops.xp.astype(x, ops.compute_dtype(x), copy=False)
        if len(terms) > 1 or wide_x.dtype != x.dtype:
            out = None
        y = _apply_all(terms[0], wide_x, out)
        for term in terms[1:]:
            y = y + _apply_all(term, wide_x)
        return ops.xp.astype(y, x.dtype, copy=False), ()

    y, _ = _in_blocks(ops, plan, resize, plan.output_shape(x.shape), x)
    return restore(y)


def pull_back(
    ops: ArrayOps,
    plan: Plan,
    factors: Factors,
    stride_factors: Factors | None,
    g: Array,
    x: Array,
    strides: Array | None = None,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, Array | None]:
    """Return the vector-Jacobian product of `evaluate`.

    Parameters
    ----------
    ops, plan, factors, x, strides
        As for `evaluate`.
    stride_factors : tuple or None
        From `operator_slopes`; None where the gradient of the strides is not needed.
    g : array
        Cotangent of the output.
    needs : tuple of bool
        Which of the gradients of `x` and `strides` to compute.

    Returns
    -------
    dx : array or None
        Of the shape and dtype of `x`.
    dstrides : array or None
        Of the shape and dtype of `strides`.
    """
    xp = ops.xp
    needs_x, needs_strides = needs[0], stride_factors is not None
    plan, (x, g), restore = _as_in_memory(ops, plan, x, g)
    terms = _operators(ops, plan, factors, stride_factors)

    def pull_back_part(out: Array | None, x: Array, g: Array) -> Part:
        dtype = ops.compute_dtype(x)
        wide_x, wide_g = xp.astype(x, dtype, copy=False), xp.astype(g, dtype, copy=False)
        if len(terms) > 1 or dtype != x.dtype:
            out = None
        dx = None
        slopes: list[Array | None] = [None] * len(plan.axes)
        for term in terms:
            u = wide_g
            for step, (index, operator) in reversed(list(enumerate(term))):
                if needs_strides:
                    before = _applying(term[:step])
                    slope, previous = operator.slope(u, wide_x, before), slopes[index]
                    slopes[index] = slope if previous is None else previous + slope
                if needs_x or step:
                    u = operator.adjoint(u, None if step else out)
            if needs_x:
                dx = u if dx is None else dx + u
        return (
            xp.astype(dx, x.dtype, copy=False) if needs_x else None,
            (xp.stack(slopes),) if needs_strides else (),
        )

    dx, sums = _in_blocks(ops, plan, pull_back_part, x.shape if needs_x else None, x, g)
    return (
        restore(dx) if needs_x else None,
        gather_slopes(ops, sums[0], strides) if needs_strides else None,
    )


def _as_in_memory(
    ops: ArrayOps, plan: Plan, *arrays: Array
) -> tuple[Plan, tuple[Array, ...], Callable[[Array], Array]]:
    """Return plan and arrays with the axes in the order they have in memory, and the way back.

    So that, channels first or last, no product has to copy its input.
    """
    order = ops.kernels.memory_order(arrays[0])
    if order is None:
        return plan, arrays, lambda array: array
    back = tuple(order.index(i) for i in range(len(order)))
    permute = ops.xp.permute_dims
    return (
        plan.permuted(order),
        tuple(permute(array, order) for array in arrays),
        lambda array: permute(array, back),
    )


def _in_blocks(
    ops: ArrayOps,
    plan: Plan,
    function: Callable[..., Part],
    shape: tuple[int, ...] | None,
    *arrays: Array,
) -> Part:
    """Call `in_blocks`, but for arrays whose first axis is resized, which have no batch."""
    if arrays[0].ndim <= max(-axis.axis for axis in plan.axes):
        return function(None, *arrays)
    return in_blocks(ops, function, shape, arrays)


def _applying(term: Term) -> Others:
    return lambda x: _apply_all(term, x)


def _apply_all(term: Term, x: Array, out: Array | None = None) -> Array:
    for step, (_, operator) in enumerate(term, start=1):
        x = operator.apply(x, out if step == len(term) else None)
    return x


def _operators(
    ops: ArrayOps, plan: Plan, factors: Factors, stride_factors: Factors | None = None
) -> list[Term]:
    """Return, per term, the axis operators with their axis's index in the order of application."""
    terms: list[Term] = []
    for t, of_axes in enumerate(factors):
        term: Term = []
        for i in plan.order:
            engine = SpectralOperator if plan.axes[i].use_fft else MatrixOperator
            slope = None if stride_factors is None else stride_factors[t][i]
            term.append((i, engine(ops, plan.axes[i], of_axes[i], slope)))
        terms.append(term)
    return terms


def operator_weights(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> Factors:
    """Return what each axis operator of each term is applied with."""
    masks = _masks(ops, plan, strides, like)

    def of_axis(i: int, basis: AxisBasis) -> Array:
        if plan.axes[i].use_fft:
            return masks[i].value
        return axis_matrix(ops, basis, masks[i], like)

    return _of_all_axes(plan, of_axis)


def operator_slopes(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> Factors:
    """Return what the slope of each axis operator of each term is taken with."""
    masks = _masks(ops, plan, strides, like)

    def of_axis(i: int, basis: AxisBasis) -> Array | tuple[Array, Array]:
        if not plan.axes[i].has_thin_ramp:
            return masks[i].slope
        return ramp_factors(ops, plan.axes[i], basis, masks[i], like)

    return _of_all_axes(plan, of_axis)


def _masks(ops: ArrayOps, plan: Plan, strides: Array | None, like: Array) -> list[Mask]:
    count = len(plan.axes)
    per_axis = [None] * count if strides is None else spread_strides(ops, strides, count)
    masks = [
        plan.window.mask(ops, axis, plan.smoothness, stride, like)
        for axis, stride in zip(plan.axes, per_axis, strict=True)
    ]
    first = plan.order[0]
    masks[first] = masks[first].scaled(plan.scale)
    return masks


def _of_all_axes(plan: Plan, of_axis: Callable[[int, AxisBasis], Any]) -> Factors:
    return tuple(
        tuple(of_axis(i, basis) for i, basis in enumerate(bases))
        for bases in plan.window.terms(plan.axes)
    )


RESIZE = Operation(evaluate, pull_back, operator_weights, operator_slopes, strides=1)
