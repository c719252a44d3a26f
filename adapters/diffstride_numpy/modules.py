"""DiffStride as a NumPy layer with an explicit backward pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from diffstride_backends.numpy_backend import BACKEND, WITH_PULLBACK
from diffstride_backends.protocol import Pullback
from numpy.typing import NDArray

from diffstride_core.arguments import Limits, initial_strides
from diffstride_core.plan_cache import PlanCache
from diffstride_core.settings import make_settings


class DiffStride:
    """Downsampling with learnt strides, its forward and backward pass spelt out.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis or one for all.
    shared : bool
        Learn one stride for all axes instead of one per axis.
    axes, smoothness, limits, cropping, norm, convention, method
        See `diff_stride`.

    Attributes
    ----------
    strides : ndarray, shape (d,) or (1,)
        The stride parameters, float64; change them as you like between calls.

    Raises
    ------
    TypeError, ValueError
        As for `diff_stride`, and for a stride below 1.

    Examples
    --------
    >>> import numpy as np
    >>> from diffstride_numpy import DiffStride
    >>> layer = DiffStride([2.0, 2.0], convention="relative")
    >>> y = layer.forward(np.ones((3, 32, 32)))
    >>> y.shape
    (3, 20, 20)
    >>> dx, dstrides = layer.backward(y)
    >>> layer.strides -= 0.1 * dstrides
    >>> layer.project()
    """

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        shared: bool = False,
        axes: int | Sequence[int] = (-2, -1),
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        norm: str | None = None,
        convention: str = "paper",
        method: str = "auto",
    ) -> None:
        self.settings = make_settings(
            axes=axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            norm=norm,
            convention=convention,
            method=method,
        )
        self.strides = np.array(initial_strides(stride, len(self.settings.axes), shared))
        self._plans = PlanCache(self.settings, len(self.strides))
        self._pullback: Pullback[NDArray[Any]] | None = None

    def forward(self, x: NDArray[Any]) -> NDArray[Any]:
        """Downsample an array and keep what `backward` needs: the input, nothing else."""
        BACKEND.check_input(x)
        self._refresh()
        # A copy: the strides of this pass, whatever becomes of the parameter before `backward`.
        y, self._pullback = WITH_PULLBACK.resample(
            self._plans.plan(x.shape), x, self.strides.copy()
        )
        return y

    def backward(self, g: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
        """Return the gradients of the last forward pass.

        Parameters
        ----------
        g : ndarray
            Gradient of the loss in the output, of its shape and dtype.

        Returns
        -------
        dx : ndarray
            Gradient in the input.
        dstrides : ndarray
            Gradient in `strides`.

        Raises
        ------
        RuntimeError
            Before the first forward pass.
        ValueError
            If `g` does not match the output.
        """
        if self._pullback is None:
            raise RuntimeError("backward was called before forward")
        dx, dstrides = self._pullback(g)
        assert dx is not None
        assert dstrides is not None
        return dx, dstrides

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        self._refresh()
        return self._plans.plan(shape).output_sizes

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments with its strides as they are now, as plain values.

        They can be written as JSON and make the same layer in every framework:
        ``DiffStride(**layer.to_dict())``. Strides below 1, which count as 1, are given as 1.
        """
        strides = [max(1.0, stride) for stride in self.strides.tolist()]
        shared = len(strides) < len(self.settings.axes)
        return {"stride": strides, "shared": shared, **self.settings.arguments()}

    def project(self) -> None:
        """Put the strides back within their bounds for the sizes seen; call it after a step."""
        self._refresh()
        self.strides[:] = self._plans.project(tuple(self.strides.tolist()))

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.4g}" for value in self.strides.tolist())
        return (
            f"DiffStride([{values}], convention={self.settings.convention.name!r}, "
            f"smoothness={self.settings.smoothness:g})"
        )

    def _refresh(self) -> None:
        strides = self.strides
        if not isinstance(strides, np.ndarray) or strides.dtype != np.float64 or strides.ndim != 1:
            raise TypeError(f"strides must be a float64 array of one dimension, got {strides!r}")
        values = BACKEND.host_values(strides)
        self._plans.refresh(values, lambda: values)
