"""DiffStride as a CuPy layer with an explicit backward pass."""

from __future__ import annotations

from typing import Any

from diffstride_backends.cupy_backend import BACKEND, WITH_PULLBACK
from diffstride_backends.eager_layer import EagerLayer


class DiffStride(EagerLayer[Any]):
    """Downsampling layer with learnt strides on the GPU, and an explicit backward pass.

    The input and the gradients are CuPy arrays. The strides stay on the host, so the output size is
    known without waiting for the GPU. Only copying their gradient to the host waits.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis, or one for all axes.
    shared : bool
        Whether all axes share one learnt stride. By default each axis has its own.
    axes, smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Number to add to the output size that follows from the stride: one per axis, or one for all.
        The result is kept between 1 and the input's size.

    Attributes
    ----------
    strides : numpy.ndarray, shape (d,) or (1,)
        The stride parameters, in float64. They may be changed between calls.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or a stride is below 1.
    RuntimeError
        If CuPy or a GPU is missing.

    Examples
    --------
    >>> import cupy
    >>> from diffstride_cupy import DiffStride
    >>> layer = DiffStride([2.0, 2.0])
    >>> y = layer.forward(cupy.ones((3, 32, 32), dtype=cupy.float32))
    >>> y.shape
    (3, 16, 16)
    >>> dx, dstrides = layer.backward(y)
    >>> layer.strides -= 0.1 * cupy.asnumpy(dstrides)
    >>> layer.project()
    """

    _backend = BACKEND
    _with_pullback = WITH_PULLBACK
