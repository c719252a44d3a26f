r"""A convolution and the resize after it, evaluated at the resize's resolution.

Tap :math:`\alpha` of a kernel multiplies the input shifted by it, :math:`Z_\alpha x`. Zeros or the
samples of the other end come in at the border. Along one axis

.. math:: A (w * x) = \sum_\alpha w_\alpha\, A Z_\alpha x,

and :math:`A Z_\alpha` is A with its columns shifted. If there are several axes, each has its own
shift. So the input is resized once per tap, and one pointwise convolution adds up the results: a
plain matrix product over taps and channels. The operator's derivative dA/dS is shifted in the same
way.

Arrays have the layout (groups, batch, N_1, ..., N_d, channels), in which every product is wide.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from diffstride_core.blocks import Part, in_blocks
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.operation import Operation
from diffstride_core.operators import ramp_operators, resize_operators
from diffstride_core.ops import Array, ArrayOps, Factors
from diffstride_core.plan import AxisPlan
from diffstride_core.resample import multiply, stride_gradient
from diffstride_core.window import gather_stride_gradients


def evaluate(
    ops: ArrayOps,
    plan: ConvPlan,
    factors: Factors,
    x: Array,
    weight: Array,
    strides: Array | None = None,
    bias: Array | None = None,
) -> Array:
    """Convolve and resize an array.

    Parameters
    ----------
    ops : ArrayOps
    plan : ConvPlan
    factors : tuple
        From `shifted_operators`.
    x : array, shape (..., C, N_1, ..., N_d)
        Input; channels last if the plan says so.
    weight : array, shape (O, C / groups, k_1, ..., k_d)
        Kernel, in the dtype of `x`.
    strides : array, shape (), (1,) or (d,), optional
        The stride parameters from which the factors were made.
    bias : array, shape (O,), optional

    Returns
    -------
    array, shape (..., O, M_1, ..., M_d)
        Output, in the dtype of the input; channels last if the input is.
    """
    xp, layout = ops.xp, _Layout(ops, plan, x)
    operators, row_sums = factors
    terms = [_taps(plan, own) for own in operators]
    kernels = _kernels(ops, plan, weight)
    can_write = ops.kernels.can_write(layout.x)
    offset = None
    if bias is not None:
        offset = layout.per_group(bias) * _of_constant(xp, row_sums)[..., None]

    def convolve(_: Array | None, x: Array) -> Part:
        made, y = [layout.canonical(x)], None
        for term in terms:
            for kernel, taps in zip(kernels, term, strict=True):
                made = _resized(ops, taps, made, can_write=can_write)
                y = ops.kernels.pointwise(layout.rows(made[-1], kernel.shape[1]), kernel, y)
        assert y is not None
        y = xp.reshape(y, (*made[0].shape[:2], *layout.output_sizes, kernels[0].shape[2]))
        if offset is not None:
            y = y + offset
        return xp.astype(layout.original(y), x.dtype, copy=False), ()

    y, _ = in_blocks(ops, convolve, lambda: layout.output_shape, (layout.x,), layout.elements)
    return layout.restored(y)


def pull_back(
    ops: ArrayOps,
    plan: ConvPlan,
    factors: Factors,
    stride_factors: Factors | None,
    g: Array,
    x: Array,
    weight: Array,
    strides: Array | None = None,
    bias: Array | None = None,
    *,
    needs: tuple[bool, ...],
) -> tuple[Array | None, ...]:
    """Return the vector-Jacobian product of `evaluate`, from its inputs alone.

    Parameters
    ----------
    ops, plan, factors, x, weight, strides, bias
        See `evaluate`.
    stride_factors : tuple or None
        From `shifted_ramps`; None if the gradient of the strides is not needed.
    g : array
        Cotangent of the output.
    needs : tuple of bool
        Which of the gradients of the four arrays to compute.

    Returns
    -------
    tuple of array or None
        Gradients in `x`, `weight`, `strides` and `bias`, each with its array's shape and dtype.
    """
    xp, layout = ops.xp, _Layout(ops, plan, x)
    needs_x, needs_weight, _, needs_bias = needs
    needs_strides, needs_bias = stride_factors is not None, needs_bias and bias is not None
    sums_g = plan.convolution.has_bias and (needs_bias or needs_strides)
    operators, row_sums = factors
    ramps, ramp_sums = ((None,) * len(operators), ()) if stride_factors is None else stride_factors
    terms = [_taps(plan, *own) for own in zip(operators, ramps, strict=True)]
    kernels = _kernels(ops, plan, weight)
    can_write = ops.kernels.can_write(layout.x)

    def pull_back_part(_: Array | None, x: Array, g: Array) -> Part:
        wide_x, wide_g = layout.canonical(x), layout.canonical(g)
        g_rows = layout.rows(wide_g, wide_g.shape[-1])
        places = wide_g.shape[-2] * plan.convolution.kernel[-1]
        u_shape = (*wide_g.shape[:-2], places, wide_x.shape[-1])
        seen, dx = [wide_x], None
        dseen: list[Array | None] = [None] * plan.convolution.rank
        dkernels: list[Array | None] = [None] * len(kernels)
        dstrides: list[Array | None] = [None] * plan.convolution.rank
        for term in terms:
            for tap, axes in enumerate(term):
                if needs_weight or needs_strides:
                    needed = axes if needs_weight else axes[:-1]
                    seen = _resized(ops, needed, seen, can_write=can_write)
                if needs_weight:
                    rows = layout.rows(seen[-1], kernels[tap].shape[1])
                    of_term = ops.kernels.pointwise_kernel(rows, g_rows)
                    dkernels[tap] = _plus(dkernels[tap], of_term)
                if not (needs_x or needs_strides):
                    continue
                u = ops.kernels.pointwise(g_rows, xp.matrix_transpose(kernels[tap]))
                u = xp.reshape(u, u_shape)
                for step, own in reversed(list(enumerate(axes))):
                    if needs_strides:
                        found = own.stride_gradient(ops, u, seen[step])
                        dstrides[step] = _plus(dstrides[step], found)
                    back = xp.matrix_transpose(own.matrix)
                    if step:
                        place = dseen[step] if can_write else None
                        u = dseen[step] = multiply(ops, back, u, own.axis.axis, out=place)
                    elif needs_x:
                        dx = multiply(ops, back, u, own.axis.axis, total=dx)
        return (
            xp.astype(layout.original(dx), x.dtype, copy=False) if needs_x else None,
            (
                *(dkernels if needs_weight else ()),
                *((xp.stack(dstrides),) if needs_strides else ()),
                *((xp.sum(wide_g, axis=1),) if sums_g else ()),
            ),
        )

    shape, arrays = (lambda: layout.x.shape) if needs_x else None, (layout.x, layout.flattened(g))
    dx, sums = in_blocks(ops, pull_back_part, shape, arrays, layout.elements)
    remaining = iter(sums)
    dweight = dbias = None
    if needs_weight:
        dweight = _as_weight(ops, plan, [next(remaining) for _ in kernels], weight)
    dstrides: Array | None = next(remaining) if needs_strides else None
    summed_g = next(remaining) if sums_g else None
    if needs_strides and bias is not None:
        assert summed_g is not None
        g_of_constant = xp.sum(summed_g * layout.per_group(bias)[:, 0, ...], axis=(0, -1))
        dstrides = dstrides + _stride_gradients_of_constant(ops, g_of_constant, row_sums, ramp_sums)
    if dstrides is not None:
        order = plan.spatial_order
        dstrides = xp.stack([dstrides[order.index(i)] for i in range(len(order))])
        dstrides = gather_stride_gradients(ops, dstrides, strides)
    if needs_bias:
        assert summed_g is not None
        assert bias is not None
        weighted = summed_g * _of_constant(xp, row_sums)[..., None]
        dbias = xp.sum(weighted, axis=tuple(range(1, plan.convolution.rank + 1)))
        dbias = xp.astype(xp.reshape(dbias, bias.shape), bias.dtype, copy=False)
    return layout.restored(dx) if needs_x else None, dweight, dstrides, dbias


class _Layout:
    """The layout of a user's array, and the way to the layout of all products and back."""

    def __init__(self, ops: ArrayOps, plan: ConvPlan, x: Array) -> None:
        conv = plan.convolution
        self._ops, self._rank, self._groups = ops, conv.rank, conv.groups
        self._order = None
        if not plan.channels_last and x.ndim == conv.rank + 2:
            # An array that is channels last in memory needs no copy.
            self._order = ops.kernels.memory_order(x)
        self._channels_last = plan.channels_last or self._order is not None
        self._lead = tuple(x.shape[: -conv.rank - 1])
        self.x = self.flattened(x)
        batch = self.x.shape[0]
        sizes = [plan.resize.axes[i].size for i in plan.spatial_order]
        self.output_sizes = tuple(plan.resize.axes[i].output_size for i in plan.spatial_order)
        place = -1 if self._channels_last else 1
        shape: list[int] = [batch, *self.output_sizes]
        shape.insert(len(shape) if place == -1 else place, conv.out_channels)
        self.output_shape = tuple(shape)
        # A quarter of the size of the largest array made for the whole batch. Blocks thus have four
        # times the usual size: each reads the weight again, so larger ones are worth leaving the
        # cache.
        maps = batch * conv.in_channels
        made = [
            math.prod((maps, *self.output_sizes[:step], *sizes[step:]))
            for step in range(1, conv.rank)
        ]
        made.append(maps * conv.kernel[-1] * math.prod(self.output_sizes))
        self.elements = max(made) // 4

    def flattened(self, array: Array) -> Array:
        """Return an array with a single batch axis and its axes in memory order."""
        xp = self._ops.xp
        if self._order is not None:
            return xp.permute_dims(array, self._order)
        # Not -1: for an array without entries, it could stand for any size.
        return xp.reshape(array, (math.prod(self._lead), *array.shape[len(self._lead) :]))

    def restored(self, array: Array) -> Array:
        """Return an array in the layout that `flattened` was given."""
        xp = self._ops.xp
        # Flat in between: a view in another layout becomes an array in this one.
        array = xp.reshape(xp.reshape(array, (math.prod(array.shape),)), array.shape)
        if self._order is not None:
            back = tuple(self._order.index(i) for i in range(len(self._order)))
            return xp.permute_dims(array, back)
        return xp.reshape(array, (*self._lead, *array.shape[1:]))

    def canonical(self, array: Array) -> Array:
        """Return a flattened array as (groups, batch, sizes..., channels), in the wide dtype."""
        xp, rank = self._ops.xp, self._rank
        array = xp.astype(array, self._ops.compute_dtype(array), copy=False)
        at = array.ndim - 1 if self._channels_last else 1
        shape = tuple(array.shape)
        split = (*shape[:at], self._groups, shape[at] // self._groups, *shape[at + 1 :])
        spatial = range(1, rank + 1) if self._channels_last else range(3, rank + 3)
        array = xp.permute_dims(xp.reshape(array, split), (at, 0, *spatial, at + 1))
        # Flat in between: an array that must be copied is copied once, not by every product.
        flat = xp.reshape(array, (*array.shape[:2], math.prod(array.shape[2:])))
        return xp.reshape(flat, array.shape)

    def original(self, array: Array) -> Array:
        """Return an array in the layout that `canonical` was given."""
        xp, rank = self._ops.xp, self._rank
        spatial = range(2, rank + 2)
        order = (1, *spatial, 0, rank + 2) if self._channels_last else (1, 0, rank + 2, *spatial)
        array = xp.permute_dims(array, order)
        at = array.ndim - 2 if self._channels_last else 1
        shape = tuple(array.shape)
        return xp.reshape(array, (*shape[:at], shape[at] * shape[at + 1], *shape[at + 2 :]))

    def rows(self, array: Array, width: int) -> Array:
        """Return a canonical array as (groups, rows, width)."""
        groups, *others = array.shape
        return self._ops.xp.reshape(array, (groups, math.prod(others) // width, width))

    def per_group(self, bias: Array) -> Array:
        """Return a bias in a shape that can be added to canonical arrays."""
        shape = (self._groups, *(1,) * (self._rank + 1), bias.shape[0] // self._groups)
        wide = self._ops.xp.astype(bias, self._ops.compute_dtype(bias), copy=False)
        return self._ops.xp.reshape(wide, shape)


class _ShiftedAxis(NamedTuple):
    """The resize along one axis, shifted by a tap of the kernel, or by all taps of the last axis.

    Attributes
    ----------
    axis : AxisPlan
    matrix : array, shape (M, N) or (M * taps, N)
    ramp : (array, array) or None
        Factors of the derivative of the matrix.
    taps : int
        Number of taps that are evaluated at once.
    """

    axis: AxisPlan
    matrix: Array
    ramp: tuple[Array, Array] | None
    taps: int = 1

    def stride_gradient(self, ops: ArrayOps, u: Array, x: Array) -> Array:
        """Return <u, (dA/dS) x>, summed over the taps."""

        def with_channels(array: Array) -> Array:
            """Treat the taps as channels: dA/dS is the same for all of them except the shift."""
            if self.taps == 1:
                return array
            *before, rows, channels = array.shape
            shape = (*before, rows // self.taps, self.taps * channels)
            return ops.xp.reshape(array, shape)

        return stride_gradient(ops, self.axis, self.ramp, with_channels(u), x, with_channels)


def _resized(
    ops: ArrayOps, axes: Sequence[_ShiftedAxis], before: Sequence[Array], *, can_write: bool
) -> list[Array]:
    """Return an array, and the results of resizing it along each axis in turn.

    Parameters
    ----------
    ops : ArrayOps
    axes : sequence of _ShiftedAxis
    before : sequence of array
        The array, then its results for the previous tap, if any.
    can_write : bool
        Whether these results may be overwritten: new memory would take as long as the products.
    """
    made = [before[0]]
    for step, own in enumerate(axes, start=1):
        out = before[step] if can_write and step < len(before) else None
        made.append(multiply(ops, own.matrix, made[-1], own.axis.axis, out=out))
    return made


def _taps(
    plan: ConvPlan, operators: Factors, ramps: Factors | None = None
) -> list[list[_ShiftedAxis]]:
    """Return the axes of each tap of all axes but the last, whose taps are evaluated at once."""
    resized = plan.by_matrices.axes
    axes = [resized[i] for i in plan.spatial_order]
    found = []
    for taps in itertools.product(*map(range, plan.convolution.kernel[:-1])):
        own: list[_ShiftedAxis] = []
        for step, tap in enumerate(taps):
            ramp = None
            if ramps is not None:
                synthesis, analysis = ramps[step]
                ramp = synthesis, analysis[tap, ...]
            own.append(_ShiftedAxis(axes[step], operators[step][tap, ...], ramp))
        last = None if ramps is None else ramps[-1]
        at_once = plan.convolution.kernel[-1]
        found.append([*own, _ShiftedAxis(axes[-1], operators[-1], last, at_once)])
    return found


def shifted_operators(ops: ArrayOps, plan: ConvPlan, strides: Array | None, like: Array) -> Factors:
    """Return the shifted operators, and the operators' row sums, which resize a constant.

    Returns
    -------
    terms : tuple of tuple of array
        Per term and spatial axis, the matrices of all taps: shape (taps, M, N), or (M * taps, N)
        for the last axis.
    row_sums : tuple of tuple of array, shape (M,)
        Row sums of the matrices without a shift.
    """
    return shifted(ops, plan, resize_operators(ops, plan.by_matrices, strides, like))


def shifted(ops: ArrayOps, plan: ConvPlan, operators: Sequence[Sequence[Array]]) -> Factors:
    """Return `shifted_operators` for the matrices of a resize: per term, one per axis."""
    xp, order = ops.xp, plan.spatial_order
    terms = tuple(
        tuple(_shifted(xp, plan, step, term[i]) for step, i in enumerate(order))
        for term in operators
    )
    return terms, tuple(tuple(xp.sum(term[i], axis=-1) for i in order) for term in operators)


def shifted_ramps(ops: ArrayOps, plan: ConvPlan, strides: Array | None, like: Array) -> Factors:
    """Return the factors of the derivatives of `shifted_operators`, in the same order."""
    xp, order = ops.xp, plan.spatial_order
    ramps = ramp_operators(ops, plan.by_matrices, strides, like)
    terms, row_sums = [], []
    for term in ramps:
        factors, sums = [], []
        for step, i in enumerate(order):
            synthesis, analysis = term[i]
            factors.append((synthesis, _shifted(xp, plan, step, analysis)))
            sums.append(synthesis @ xp.sum(analysis, axis=-1))
        terms.append(tuple(factors))
        row_sums.append(tuple(sums))
    return tuple(terms), tuple(row_sums)


def _shifted(xp: Any, plan: ConvPlan, step: int, matrix: Array) -> Array:
    """Return the product of a matrix (rows, N) with the shift by each tap of a spatial axis.

    The shape is (taps, rows, N), or (rows * taps, N) for the last axis.
    """
    conv, size = plan.convolution, matrix.shape[1]
    made = []
    for offset in conv.offsets[step]:
        # Sample n meets column n - offset: there, this tap of the convolution reads the sample.
        if conv.circular:
            start = (size - offset) % size
            made.append(xp.concat([matrix[:, start:], matrix[:, :start]], axis=1))
            continue
        gap = xp.zeros_like(matrix[:, : min(abs(offset), size)])
        kept = size - gap.shape[1]
        parts = [gap, matrix[:, :kept]] if offset > 0 else [matrix[:, size - kept :], gap]
        made.append(xp.concat(parts, axis=1))
    if step < conv.rank - 1:
        return xp.stack(made)
    return xp.reshape(xp.stack(made, axis=1), (matrix.shape[0] * len(made), size))


def _kernels(ops: ArrayOps, plan: ConvPlan, weight: Array) -> list[Array]:
    """Return the kernel for each tap of all axes but the last.

    Each has the shape (groups, taps of the last axis * channels per group, outputs per group).
    """
    xp, conv = ops.xp, plan.convolution
    wide = xp.astype(weight, ops.compute_dtype(weight), copy=False)
    split = (conv.groups, conv.out_channels // conv.groups, *weight.shape[1:])
    leading, last = range(3, conv.rank + 2), conv.rank + 2
    kernels = xp.permute_dims(xp.reshape(wide, split), (*leading, 0, last, 2, 1))
    width = conv.kernel[-1] * split[2]
    shape = (math.prod(conv.kernel[:-1]), conv.groups, width, split[1])
    kernels = xp.reshape(kernels, shape)
    return [kernels[tap, ...] for tap in range(shape[0])]


def _as_weight(ops: ArrayOps, plan: ConvPlan, kernels: Sequence[Array], weight: Array) -> Array:
    """Return the gradient of the weight from the gradients of the `_kernels`."""
    xp, conv = ops.xp, plan.convolution
    split = (conv.groups, conv.kernel[-1], weight.shape[1], conv.out_channels // conv.groups)
    taps = [xp.permute_dims(xp.reshape(kernel, split), (0, 3, 2, 1)) for kernel in kernels]
    # Assembled in a single copy: in deep networks, weights are larger than maps.
    gradient = xp.reshape(xp.stack(taps, axis=3), weight.shape)
    return xp.astype(gradient, weight.dtype, copy=False)


def _of_constant(xp: Any, row_sums: Sequence[Sequence[Array]]) -> Array:
    """Return the resize of a map of ones, shape (M_1, ..., M_d)."""
    resized = None
    for term in row_sums:
        resized = _plus(resized, _outer(xp, term))
    return resized


def _stride_gradients_of_constant(
    ops: ArrayOps,
    g: Array,
    row_sums: Sequence[Sequence[Array]],
    ramp_sums: Sequence[Sequence[Array]],
) -> Array:
    """Return the gradients in the strides, shape (d,), for the cotangent of `_of_constant`."""
    xp, found = ops.xp, []
    for step in range(g.ndim):
        total = None
        for sums, own in zip(row_sums, ramp_sums, strict=True):
            varied = _outer(xp, [*sums[:step], own[step], *sums[step + 1 :]])
            total = _plus(total, xp.sum(g * varied, dtype=ops.precise_dtype(g)))
        found.append(total)
    return xp.stack(found)


def _outer(xp: Any, vectors: Sequence[Array]) -> Array:
    product = vectors[0]
    for vector in vectors[1:]:
        product = product[..., None] * vector
    return product


def _plus(total: Array | None, summand: Array) -> Array:
    return summand if total is None else total + summand


CONVOLVE = Operation(evaluate, pull_back, shifted_operators, shifted_ramps, strides=2)
