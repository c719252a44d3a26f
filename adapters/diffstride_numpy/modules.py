"""DiffStride as a NumPy layer with an explicit backward pass."""

from __future__ import annotations

from typing import Any

from diffstride_backends.eager_layer import EagerLayer
from diffstride_backends.numpy_backend import BACKEND, WITH_PULLBACK
from numpy.typing import NDArray


class DiffStride(EagerLayer[NDArray[Any]]):
    """Downsampling layer with learnt strides and an explicit backward pass.

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
    strides : ndarray, shape (d,) or (1,)
        The stride parameters, in float64. They may be changed between calls.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or a stride is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from diffstride_numpy import DiffStride
    >>> layer = DiffStride([2.0, 2.0])
    >>> y = layer.forward(np.ones((3, 32, 32)))
    >>> y.shape
    (3, 16, 16)
    >>> dx, dstrides = layer.backward(y)
    >>> layer.strides -= 0.1 * dstrides
    >>> layer.project()
    """

    _backend = BACKEND
    _with_pullback = WITH_PULLBACK
