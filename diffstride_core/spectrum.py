"""The FFT engine: transforms resize an axis that is too long for a matrix.

The operator is separable and real, so resizing axis after axis is exact, and no axis ever sees the
complex spectrum of another. This avoids the trap of a joint transform: its unpaired rows and
columns are not Hermitian once cropped.
"""

from __future__ import annotations

from diffstride_core.bases import bin_counts
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan


def resized(ops: ArrayOps, axis: AxisPlan, mask: Array, x: Array) -> Array:
    """Return A x, from N to M samples along an axis: transform, crop, weight, invert.

    Parameters
    ----------
    ops : ArrayOps
    axis : AxisPlan
    mask : array, shape (K,)
    x : array
    """
    return _resized(ops, axis.axis, mask, x, axis.size, axis.output_size, 1.0)


def resized_back(ops: ArrayOps, axis: AxisPlan, mask: Array, g: Array) -> Array:
    """Return A^T g: the resize from M back to N samples with the same mask, times M/N."""
    size, output_size = axis.size, axis.output_size
    return _resized(ops, axis.axis, mask, g, output_size, size, output_size / size)


def stride_gradient(ops: ArrayOps, axis: AxisPlan, dmask: Array, u: Array, x: Array) -> Array:
    """Return <u, (dA/dS) x>, shape (), in the dtype of `dmask`, which has the shape (K,)."""
    xp, size = ops.xp, axis.size
    lo = min(size, axis.output_size)
    of_x, of_u = (_half_spectrum(ops, array, axis.axis, lo) for array in (x, u))
    # At the unpaired bin lo/2 the operator has no sine. The spectrum of the shorter array has none
    # either, so the second product is 0 there.
    product = xp.real(of_u) * xp.real(of_x) + xp.imag(of_u) * xp.imag(of_x)
    but_own = tuple(i for i in range(x.ndim) if i != x.ndim + axis.axis)
    per_bin = xp.sum(product, axis=but_own, dtype=dmask.dtype)
    counts = bin_counts(xp, ops.frequencies(lo // 2 + 1, x), lo)
    return xp.sum(dmask * counts * per_bin) / size


def _resized(
    ops: ArrayOps, axis: int, mask: Array, x: Array, size: int, output_size: int, scale: float
) -> Array:
    xp, lo = ops.xp, min(size, output_size)
    weights = mask * (scale * output_size / size)
    if lo % 2 == 0 and lo < output_size:
        # The inverse transform counts the bin lo/2 twice, like every bin with a mirror image in the
        # longer output. In the shorter input, this bin had no mirror image.
        weights = xp.concat([weights[:-1], weights[-1:] / 2])
    weights = xp.astype(weights, x.dtype, copy=False)
    spectrum = _half_spectrum(ops, x, axis, lo) * _along(xp, weights, x, axis)
    if lo % 2 == 0 and lo == output_size:
        # At its Nyquist frequency, the output sees the cosine alone. Libraries differ in what they
        # do with a sine left there.
        cosine = xp.real(_slice(spectrum, axis, lo // 2, lo // 2 + 1))
        at_nyquist = ops.frequencies(lo // 2 + 1, x) == lo // 2
        # Not a concatenation: PyTorch has no rule for it when cotangents are batched.
        spectrum = xp.where(
            _along(xp, at_nyquist, x, axis), xp.astype(cosine, spectrum.dtype), spectrum
        )
    return ops.irfft(spectrum, output_size, axis)


def _half_spectrum(ops: ArrayOps, x: Array, axis: int, lo: int) -> Array:
    """Return the bins 0..lo//2 of the transform along an axis."""
    return _slice(ops.rfft(x, axis), axis, 0, lo // 2 + 1)


def _along(xp: Array, per_bin: Array, like: Array, axis: int) -> Array:
    shape = [1] * like.ndim
    shape[axis] = -1
    return xp.reshape(per_bin, tuple(shape))


def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
    if stop - start == array.shape[axis]:
        # PyTorch has no rule for an index that takes everything when cotangents are batched.
        return array
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]
