"""DiffStride as a CuPy layer with an explicit backward pass."""

from __future__ import annotations

from typing import Any

from diffstride_backends.cupy_backend import BACKEND, WITH_PULLBACK
from diffstride_backends.eager_layer import EagerLayer


class DiffStride(EagerLayer[Any]):
    """Downsampling with learnt strides on the GPU, its forward and backward pass spelt out.

    The input and the gradients are CuPy arrays, the strides stay on the host: the output's sizes
    follow from them without waiting for the GPU. Only moving their gradient there waits.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis or one for all.
    shared : bool
        Learn one stride for all axes instead of one per axis.
    axes, smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Added to the output size that follows from a stride, within 1 to N: one per axis or one for
        all.

    Attributes
    ----------
    strides : numpy.ndarray, shape (d,) or (1,)
        The stride parameters, float64; change them as you like between calls.

    Raises
    ------
    TypeError, ValueError
        As for `diff_stride`, and for a stride below 1.
    RuntimeError
        Without CuPy or without a GPU.

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
