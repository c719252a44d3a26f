"""The FFT engine: an axis operator for axes too long for a matrix."""

from __future__ import annotations

from diffstride_core.axis_operator import AxisOperator, Others
from diffstride_core.bases import bin_counts
from diffstride_core.ops import Array


class SpectralOperator(AxisOperator):
    """An axis operator by real transforms along its own axis: transform, crop, weight, invert.

    The operator is separable and real, so axis after axis is exact, and no axis ever sees the
    complex spectrum of another: the trap of a joint transform, whose unpaired rows and columns are
    not Hermitian once cropped.
    """

    def apply(self, x: Array, out: Array | None = None) -> Array:
        """Return A x."""
        return self._resize(x, self._plan.size, self._plan.output_size, 1.0)

    def adjoint(self, g: Array, out: Array | None = None) -> Array:
        """Return A^T g: the resize back, which differs by the 1/N of the definition."""
        size, output_size = self._plan.size, self._plan.output_size
        return self._resize(g, output_size, size, output_size / size)

    def _resize(self, x: Array, size: int, output_size: int, scale: float) -> Array:
        xp, axis = self._ops.xp, self._plan.axis
        lo = min(size, output_size)
        weights = self._weights * (scale * output_size / size)
        if lo % 2 == 0 and lo < output_size:
            # The inverse transform counts the bin lo/2 twice, as it does every bin that has a
            # mirror image in the longer output; this one had none in the shorter input.
            weights = xp.concat([weights[:-1], weights[-1:] / 2])
        weights = xp.astype(weights, x.dtype, copy=False)
        spectrum = self._half_spectrum(x) * self._along_axis(weights, x)
        if lo % 2 == 0 and lo == output_size:
            # The output sees the cosine of its Nyquist frequency alone, and libraries differ in
            # what they do with a sine left there.
            cosine = xp.real(_slice(spectrum, axis, lo // 2, lo // 2 + 1))
            at_nyquist = self._ops.frequencies(lo // 2 + 1, x) == lo // 2
            # No concatenation, for which PyTorch has no rule where cotangents are batched.
            spectrum = xp.where(
                self._along_axis(at_nyquist, x), xp.astype(cosine, spectrum.dtype), spectrum
            )
        return self._ops.irfft(spectrum, output_size, axis)

    def slope(self, u: Array, x: Array, others: Others) -> Array:
        """Return <u, (dA/dS) B x>, where B applies the operators of other axes."""
        if self._plan.has_thin_ramp:
            return super().slope(u, x, others)
        xp, size = self._ops.xp, self._plan.size
        lo, precise = min(size, self._plan.output_size), self._slope.dtype
        of_x, of_u = self._half_spectrum(others(x)), self._half_spectrum(u)
        # At the unpaired bin lo/2 the operator has no sine; nor has the spectrum of the shorter
        # array, so the second product is 0 there.
        product = xp.real(of_u) * xp.real(of_x) + xp.imag(of_u) * xp.imag(of_x)
        but_own = tuple(i for i in range(x.ndim) if i != x.ndim + self._plan.axis)
        per_bin = xp.sum(product, axis=but_own, dtype=precise)
        counts = bin_counts(xp, self._ops.frequencies(lo // 2 + 1, x), lo)
        return xp.sum(self._slope * counts * per_bin) / size

    def _half_spectrum(self, x: Array) -> Array:
        """Return the bins 0..lo//2 of the transform along the axis."""
        lo = min(self._plan.size, self._plan.output_size)
        return _slice(self._ops.rfft(x, self._plan.axis), self._plan.axis, 0, lo // 2 + 1)

    def _along_axis(self, per_bin: Array, like: Array) -> Array:
        shape = [1] * like.ndim
        shape[self._plan.axis] = -1
        return self._ops.xp.reshape(per_bin, tuple(shape))


def _slice(array: Array, axis: int, start: int, stop: int) -> Array:
    if stop - start == array.shape[axis]:
        # PyTorch has no rule for an index that takes all where cotangents are batched.
        return array
    index = [slice(None)] * array.ndim
    index[axis] = slice(start, stop)
    return array[tuple(index)]
