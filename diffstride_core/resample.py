r"""Resizing an array by the operators of a plan: the forward pass and its derivative.

A resize is a sum of separable real operators, y = scale * sum_t (A_t1 x A_t2 x ...) x. Each axis
needs three operations, whichever engine evaluates them: the resize along it (A), the resize back
(A^T), and the product <u, (dA/dS) x>, from which the stride's gradient is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from diffstride_core import kernels, spectrum
from diffstride_core.blocks import Part, in_blocks
from diffstride_core.operation import Operation
from diffstride_core.operators import ramp_operators, resize_operators
from diffstride_core.ops import Array, ArrayOps, Factors
from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.window import gather_stride_gradients

Others: TypeAlias = Callable[[Array], Array]
"""Applies the operators of other axes."""


def evaluate(
    ops: ArrayOps, plan: Plan, factors: Factors, x: Array, strides: Array | None = None
) -> Array:
    """Resize an array.

    Parameters
    ----------
    ops : ArrayOps
    plan : Plan
    factors : tuple
        From `resize_operators`.
    x : array, shape (..., N_1, ..., N_d, ...)
    strides : array, shape (), (1,) or (d,), optional
        The stride parameters from which the factors were made.

    Returns
    -------
    array, shape (..., M_1, ..., M_d, ...)
        Output, in the dtype of `x`.
    """
    if (memory := ops.kernels.memory_order(x)) is not None:
        # In memory order, no product has to copy its input, whether channels come first or last.
        permute = ops.xp.permute_dims
        y = evaluate(ops, plan.permuted(memory), factors, permute(x, memory), strides)
        return permute(y, _inverse(memory))

    def resize(out: Array | None, x: Array) -> Part:
        dtype = ops.compute_dtype(x)
        is_wide = dtype == x.dtype
        wide_x = x if is_wide else ops.xp.astype(x, dtype)
        if len(factors) > 1 or not is_wide:
            out = None
        y = None
        for operators in factors:
            part = _resize_axes(ops, plan, operators, plan.steps, wide_x, out)
            y = part if y is None else y + part
        return y if is_wide else ops.xp.astype(y, x.dtype), ()

    y, _ = _in_blocks(ops, plan, resize, partial(plan.output_shape, x.shape), x)
    return y


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
        See `evaluate`.
    stride_factors : tuple or None
        From `ramp_operators`; None if the gradient of the strides is not needed.
    g : array
        Cotangent of the output.
    needs : tuple of bool
        Which of the gradients of `x` and `strides` to compute.

    Returns
    -------
    dx : array or None
        Gradient in `x`, with its shape and dtype.
    dstrides : array or None
        Gradient in `strides`, with their shape and dtype.
    """
    xp, needs_x = ops.xp, needs[0]
    if (memory := ops.kernels.memory_order(x)) is not None:
        x, g = (xp.permute_dims(array, memory) for array in (x, g))
        permuted = plan.permuted(memory)
        dx, dstrides = pull_back(ops, permuted, factors, stride_factors, g, x, strides, needs=needs)
        return None if dx is None else xp.permute_dims(dx, _inverse(memory)), dstrides

    def pull_back_part(out: Array | None, x: Array, g: Array) -> Part:
        dtype = ops.compute_dtype(x)
        is_wide = dtype == x.dtype
        wide_x, wide_g = (x, g) if is_wide else (xp.astype(x, dtype), xp.astype(g, dtype))
        if len(factors) > 1 or not is_wide:
            out = None
        dx = None
        dstrides: list[Array | None] = [None] * len(plan.axes)
        for term, operators in enumerate(factors):
            u = wide_g
            for number, step in reversed(list(enumerate(plan.steps))):
                axes, own = [plan.axes[i] for i in step], [operators[i] for i in step]
                ramps = None if stride_factors is None else [stride_factors[term][i] for i in step]
                before = partial(_resize_axes, ops, plan, operators, plan.steps[:number])
                back = _Back(needs_x or number > 0, None if number else out)
                gradients, u = _pull_back_step(ops, axes, own, ramps, u, wide_x, before, back)
                for i, gradient in zip(step, gradients, strict=False):
                    total = dstrides[i]
                    dstrides[i] = gradient if total is None else total + gradient
            if needs_x:
                dx = u if dx is None else dx + u
        return (
            dx if is_wide or not needs_x else xp.astype(dx, x.dtype),
            () if stride_factors is None else (xp.stack(dstrides),),
        )

    shape = (lambda: x.shape) if needs_x else None
    dx, sums = _in_blocks(ops, plan, pull_back_part, shape, x, g)
    return (
        dx,
        None if stride_factors is None else gather_stride_gradients(ops, sums[0], strides),
    )


def _inverse(order: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(map(order.index, range(len(order))))


def _in_blocks(
    ops: ArrayOps,
    plan: Plan,
    function: Callable[..., Part],
    shape: Callable[[], tuple[int, ...]] | None,
    *arrays: Array,
) -> Part:
    """Call `in_blocks`, except for small arrays and for those whose first axis is resized."""
    # Compilers must not go further: they would turn each question about sizes into a condition.
    if not ops.kernels.can_write(arrays[0]):
        return function(None, *arrays)
    if math.prod(arrays[0].shape) <= kernels.BLOCK_ELEMENTS >= math.prod(arrays[-1].shape):
        return function(None, *arrays)
    for axis in plan.axes:
        if axis.axis == -arrays[0].ndim:
            return function(None, *arrays)
    if arrays[0].shape[0] == 1:
        # A single image is resized in blocks of its channels.
        of_image = None if shape is None else (lambda: shape()[1:])
        result, sums = _in_blocks(ops, plan, function, of_image, *(array[0] for array in arrays))
        return None if result is None else result[None], sums
    return in_blocks(ops, function, shape, arrays)


def _resize_axes(
    ops: ArrayOps,
    plan: Plan,
    operators: Sequence[Array],
    steps: Sequence[tuple[int, ...]],
    x: Array,
    out: Array | None = None,
) -> Array:
    """Resize an array in the given steps; write the result to `out` if possible."""
    for number, step in enumerate(steps, start=1):
        first = plan.axes[step[0]]
        if first.use_fft:
            axes, masks = [plan.axes[i] for i in step], [operators[i] for i in step]
            x = spectrum.resized(ops, axes, masks, spectrum.analysed(ops, axes, x))
        else:
            place = out if number == len(steps) else None
            x = multiply(ops, operators[step[0]], x, first.axis, out=place)
    return x


class _Back(NamedTuple):
    """Whether a step makes the cotangent of its input, and where to."""

    is_needed: bool
    out: Array | None


def _pull_back_step(
    ops: ArrayOps,
    axes: Sequence[AxisPlan],
    operators: Sequence[Array],
    ramps: Sequence[Any] | None,
    u: Array,
    x: Array,
    before: Others,
    back: _Back,
) -> tuple[Sequence[Array], Array]:
    """Return the gradient of the stride of each axis, and the cotangent of the step's input.

    There are no gradients if there are no `ramps`. If the way back is not needed, `u` is returned.
    """
    gradients: Sequence[Array] = ()
    first = axes[0]
    if first.use_fft:
        # One transform serves the gradients and the way back.
        of_u = spectrum.analysed(ops, axes, u)
        if ramps is not None:
            of_x = spectrum.analysed(ops, axes, before(x))
            gradients = spectrum.stride_gradients(ops, axes, operators, ramps, of_u, of_x)
        if back.is_needed:
            u = spectrum.resized_back(ops, axes, operators, of_u)
        return gradients, u
    if ramps is not None:
        gradients = (stride_gradient(ops, first, ramps[0], u, x, before),)
    if back.is_needed:
        u = multiply(ops, ops.xp.matrix_transpose(operators[0]), u, first.axis, out=back.out)
    return gradients, u


def stride_gradient(
    ops: ArrayOps, axis: AxisPlan, ramp: Any, u: Array, x: Array, others: Others
) -> Array:
    """Return <u, (dA/dS) B x>, shape (), in the precise dtype, where B is `others`.

    Parameters
    ----------
    ops : ArrayOps
    axis : AxisPlan
        Resized by its matrix.
    ramp : (array, array)
        The axis's entry of `operators.ramp_operators`.
    u : array
        Cotangent of the array that is resized along the axis.
    x : array
    others : callable
        Applies the operators of other axes.
    """
    xp, (synthesis, analysis) = ops.xp, ramp
    # Project first: the projected x is thin, so the other axes cost little.
    of_x = others(multiply(ops, analysis, x, axis.axis))
    of_u = multiply(ops, xp.matrix_transpose(synthesis), u, axis.axis)
    # Two steps: short sums lose nothing in single precision, but the sum of their many results
    # would.
    is_short = math.prod(of_u.shape[-2:]) <= _SHORT
    parts = xp.sum(of_u * of_x, axis=(-2, -1) if is_short and x.ndim > 1 else -1)
    return xp.sum(parts, dtype=ops.precise_dtype(x))


_SHORT = 2048


def multiply(
    ops: ArrayOps,
    matrix: Array,
    x: Array,
    axis: int,
    *,
    out: Array | None = None,
    total: Array | None = None,
) -> Array:
    """Multiply every vector along an axis by a matrix, without transposing the array.

    Parameters
    ----------
    ops : ArrayOps
    matrix : array, shape (M, N)
    x : array, shape (..., N, ...)
    axis : int
        Counted from the end.
    out : array, shape (..., M, ...), optional
        Array to write the result to.
    total : array, shape (..., M, ...), optional
        Array to add the result to. It may be overwritten.

    Returns
    -------
    array, shape (..., M, ...)
    """
    if out is None and total is None:
        product = ops.kernels.product(matrix, x, axis)
        if product is not None:
            return product
    xp, shape = ops.xp, tuple(x.shape)
    at = len(shape) + axis
    before, after = math.prod(shape[:at]), math.prod(shape[at + 1 :])
    # One large product along the last axis; one small product per entry of the batch along others.
    rest = () if after == 1 else (after,)
    vectors = xp.reshape(x, (before, shape[at], *rest))
    a, b = (vectors, xp.matrix_transpose(matrix)) if after == 1 else (matrix, vectors)
    made = (before, matrix.shape[0], *rest)
    if out is not None:
        ops.kernels.matmul(a, b, xp.reshape(out, made))
        return out
    if total is not None:
        y = ops.kernels.add_matmul(xp.reshape(total, made), a, b)
    else:
        y = ops.kernels.matmul(a, b)
    return xp.reshape(y, (*shape[:at], matrix.shape[0], *shape[at + 1 :]))


RESAMPLE = Operation(evaluate, pull_back, resize_operators, ramp_operators, strides=1)
