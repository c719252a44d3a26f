"""The FFT engine: one step resizes the axes that are too long for matrices.

The operator is separable and real, but the spectrum of a joint transform is complex. Once cropped,
its entries at the unpaired frequency of an axis no longer have their mirror images. `analysed`
therefore keeps only what the operator lets pass there: the cosine along that axis.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeAlias

from diffstride_core.bases import bin_counts
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan

Axes: TypeAlias = Sequence[AxisPlan]
"""The axes of one step: full axes, then the half axis, of which a real transform has 0..lo//2."""


def analysed(ops: ArrayOps, axes: Axes, x: Array) -> Array:
    """Return the spectrum of an array along some axes, at the frequencies that both sizes hold.

    Returns
    -------
    array
        Per full axis lo = min(N, M) frequencies, 0, 1, ..., lo//2, ..., -2, -1; on the half axis
        0..lo//2.
    """
    xp, (*full, half) = ops.xp, axes
    lo = _least(half)
    # Crop before the next transform: what is cropped need not be transformed.
    spectrum = _slice(ops.rfft(x, half.axis), half.axis, 0, lo // 2 + 1)
    for axis in full:
        spectrum = _cropped(ops, axis, ops.fft(spectrum, axis.axis))
    if lo % 2 or lo == x.shape[half.axis]:
        return spectrum
    # The cosine is the mean of the entries at lo/2 and -lo/2. The latter are not stored: they are
    # the mirror image of the former.
    at_half = _slice(spectrum, half.axis, lo // 2, lo // 2 + 1)
    mirrored = xp.conj(at_half)
    for axis in full:
        zero, others = _slice(mirrored, axis.axis, 0, 1), _slice(mirrored, axis.axis, 1, None)
        mirrored = ops.concat([zero, xp.flip(others, axis=axis.axis)], axis=axis.axis)
    cosine = (at_half + mirrored) / 2
    if ops.kernels.can_write(spectrum):
        at_half[...] = cosine
        return spectrum
    return ops.concat([_slice(spectrum, half.axis, 0, lo // 2), cosine], axis=half.axis)


def resized(ops: ArrayOps, axes: Axes, masks: Sequence[Array], spectrum: Array) -> Array:
    """Return A x, from N to M samples along each axis: weight and invert.

    Parameters
    ----------
    ops : ArrayOps
    axes : sequence of AxisPlan
    masks : sequence of array, each of shape (lo//2 + 1,)
    spectrum : array
        `analysed` x.
    """
    return _synthesised(ops, axes, masks, spectrum, [axis.output_size for axis in axes])


def resized_back(ops: ArrayOps, axes: Axes, masks: Sequence[Array], spectrum: Array) -> Array:
    """Return A^T g, from M to N samples along each axis, from `analysed` g."""
    return _synthesised(ops, axes, masks, spectrum, [axis.size for axis in axes])


def stride_gradients(
    ops: ArrayOps,
    axes: Axes,
    masks: Sequence[Array],
    dmasks: Sequence[Array],
    of_u: Array,
    of_x: Array,
) -> list[Array]:
    """Return <u, (dA/dS) x> for the stride of each axis, of shape (), in the dtype of the masks.

    Parameters
    ----------
    ops : ArrayOps
    axes : sequence of AxisPlan
    masks, dmasks : sequence of array, each of shape (lo//2 + 1,)
        mu and dmu/dS.
    of_u, of_x : array
        `analysed` u and x.
    """
    xp, half = ops.xp, axes[-1]
    product = xp.real(of_u) * xp.real(of_x) + xp.imag(of_u) * xp.imag(of_x)
    own = {product.ndim + axis.axis for axis in axes}
    but_own = tuple(i for i in range(product.ndim) if i not in own)
    per_bin = xp.sum(product, axis=but_own, keepdims=True, dtype=masks[0].dtype)
    counts = bin_counts(xp, ops.frequencies(_least(half) // 2 + 1, product), _least(half))
    per_bin = per_bin * _along(xp, counts / math.prod([axis.size for axis in axes]), per_bin, half)
    still = [_weights(ops, axes, i, mask, per_bin) for i, mask in enumerate(masks)]
    moving = [_weights(ops, axes, i, dmask, per_bin) for i, dmask in enumerate(dmasks)]
    gradients = []
    for i in range(len(axes)):
        weighted = per_bin
        for j in range(len(axes)):
            weighted = weighted * (moving if i == j else still)[j]
        gradients.append(xp.sum(weighted))
    return gradients


def _synthesised(
    ops: ArrayOps, axes: Axes, masks: Sequence[Array], spectrum: Array, sizes: Sequence[int]
) -> Array:
    xp = ops.xp
    weights: Array = 1.0
    for i, (axis, size) in enumerate(zip(axes, sizes, strict=True)):
        lo, mask = _least(axis), masks[i] * (size / axis.size)
        if lo % 2 == 0 and lo < size:
            # In the longer output, the frequency lo/2 has a mirror image, and each gets a half.
            mask = ops.concat([mask[:-1], mask[-1:] / 2])
        weights = weights * _weights(ops, axes, i, mask, spectrum)
    spectrum = spectrum * xp.astype(weights, xp.real(spectrum).dtype, copy=False)
    for axis, size in zip(axes[:-1], sizes[:-1], strict=True):
        spectrum = ops.ifft(_padded(ops, axis, spectrum, size), axis.axis)
    return ops.irfft(spectrum, sizes[-1], axes[-1].axis)


def _cropped(ops: ArrayOps, axis: AxisPlan, spectrum: Array) -> Array:
    """Return the frequencies of a full axis that both sizes hold."""
    lo, size = _least(axis), spectrum.shape[axis.axis]
    if lo == size:
        return spectrum
    middle = (lo + 1) // 2
    parts = [_slice(spectrum, axis.axis, 0, middle)]
    if lo % 2 == 0:
        positive = _slice(spectrum, axis.axis, middle, middle + 1)
        negative = _slice(spectrum, axis.axis, size - middle, size - middle + 1)
        parts.append((positive + negative) / 2)
    if lo > 2:
        parts.append(_slice(spectrum, axis.axis, size - (lo - 1) // 2, size))
    return ops.concat(parts, axis=axis.axis)


def _padded(ops: ArrayOps, axis: AxisPlan, spectrum: Array, size: int) -> Array:
    """Return the spectrum of a full axis with zeros at the frequencies that it lacks."""
    lo = _least(axis)
    if lo == size:
        return spectrum
    negative = lo // 2
    shape = list(spectrum.shape)
    shape[axis.axis] = size - (lo // 2 + 1) - negative
    parts = [_slice(spectrum, axis.axis, 0, lo // 2 + 1)]
    if shape[axis.axis]:
        parts.append(ops.zeros(tuple(shape), spectrum))
    if negative:
        parts.append(_slice(spectrum, axis.axis, lo - negative, lo))
    return ops.concat(parts, axis=axis.axis)


def _weights(ops: ArrayOps, axes: Axes, i: int, mask: Array, like: Array) -> Array:
    """Return a mask along its axis of a spectrum, of both signs unless it is the half axis."""
    lo = _least(axes[i])
    if i < len(axes) - 1 and lo >= 3:
        mask = ops.concat([mask, ops.xp.flip(mask[1 : (lo + 1) // 2])])
    return _along(ops.xp, mask, like, axes[i])


def _least(axis: AxisPlan) -> int:
    return min(axis.size, axis.output_size)


def _along(xp: Array, per_bin: Array, like: Array, axis: AxisPlan) -> Array:
    shape = [1] * like.ndim
    shape[axis.axis] = -1
    return xp.reshape(per_bin, tuple(shape))


def _slice(array: Array, axis: int, start: int, stop: int | None) -> Array:
    if start == 0 and stop == array.shape[axis]:
        # PyTorch has no rule for an index that takes everything when cotangents are batched.
        return array
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]
