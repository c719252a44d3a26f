"""Frameworks without automatic differentiation: one backend, values and pullbacks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffstride_backends.protocol import HostArray, Pullback
from diffstride_core import bases
from diffstride_core._namespace import device_of, namespace_of


class EagerBackend:
    """A framework through its array API namespace alone.

    Parameters
    ----------
    example : array
        Any array of the framework; gives its type and its namespace.
    """

    def __init__(self, example: Any) -> None:
        self.xp: Any = namespace_of(example)
        self._type: type = type(example)
        # The standard knows no half precision; some frameworks do.
        names = ("float16", "float32", "float64")
        self._floats = {name: getattr(self.xp, name) for name in names if hasattr(self.xp, name)}

    def precise_dtype(self, array: Any) -> Any:  # noqa: D102
        return self.xp.float64

    def frequencies(self, count: int, like: Any) -> Any:  # noqa: D102
        return self.xp.arange(count, dtype=self.xp.float64, device=device_of(like))

    def compute_dtype(self, array: Any) -> Any:  # noqa: D102
        return array.dtype if array.dtype == self.xp.float64 else self.xp.float32

    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:  # noqa: D102
        synthesis, analysis = bases.tables(basis)
        device = device_of(like)
        return (
            self.xp.asarray(synthesis, dtype=like.dtype, device=device),
            self.xp.asarray(analysis, dtype=like.dtype, device=device),
        )

    def stop_gradient(self, array: Any) -> Any:  # noqa: D102
        return array

    def rfft(self, array: Any, axis: int) -> Any:  # noqa: D102
        return self.xp.fft.rfft(array, axis=axis)

    def irfft(self, array: Any, size: int, axis: int) -> Any:  # noqa: D102
        return self.xp.fft.irfft(array, n=size, axis=axis)

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, self._type)

    def check_input(self, x: Any) -> None:  # noqa: D102
        if not self.is_array(x):
            expected = f"{self._type.__module__.partition('.')[0]}.{self._type.__name__}"
            raise TypeError(f"x must be a {expected}, got {type(x).__name__}")
        if not any(x.dtype == dtype for dtype in self._floats.values()):
            raise TypeError(f"x must be real floating point, got dtype {x.dtype}")

    def check_strides(self, strides: Any, like: Any) -> None:  # noqa: D102
        if not any(strides.dtype == dtype for dtype in (self.xp.float32, self.xp.float64)):
            raise TypeError(f"strides must be float32 or float64, got dtype {strides.dtype}")
        if like is not None and device_of(strides) != device_of(like):
            raise ValueError(
                f"strides must be on the device of x, {device_of(like)}, got {device_of(strides)}"
            )

    def strides_from_host(self, strides: NDArray[np.floating], like: Any) -> Any:  # noqa: D102
        return self.from_host(
            strides, strides.dtype.name, None if like is None else device_of(like)
        )

    def host_values(self, strides: Any) -> tuple[float, ...]:  # noqa: D102
        return tuple(np.ravel(self.to_host(strides)).tolist())

    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:  # noqa: D102
        return self.xp.asarray(array, dtype=getattr(self.xp, dtype), device=device, copy=True)

    def to_host(self, array: Any) -> HostArray:  # noqa: D102
        return np.asarray(array)

    def dtype_name(self, array: Any) -> str:  # noqa: D102
        return next(
            (name for name, dtype in self._floats.items() if dtype == array.dtype),
            str(array.dtype),
        )

    def device_of(self, array: Any) -> Any:  # noqa: D102
        return device_of(array)

    def devices(self) -> Sequence[Any]:  # noqa: D102
        return (None,)


def value(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]],
    plan: Any,
    *arrays: Any,
) -> Any:
    """Evaluate the forward pass alone."""
    return forward(backend, plan, *arrays)


def value_and_pullback(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]],
    plan: Any,
    *arrays: Any,
) -> tuple[Any, Pullback[Any]]:
    """Evaluate the forward pass and return it with its pullback, which keeps the inputs alone."""
    y = forward(backend, plan, *arrays)
    shape, dtype = y.shape, y.dtype

    def pullback(g: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        if not hasattr(g, "shape") or tuple(g.shape) != tuple(shape) or g.dtype != dtype:
            raise ValueError(
                f"g must have the output's shape {tuple(shape)} and dtype {dtype}, got "
                f"{getattr(g, 'shape', type(g).__name__)} and {getattr(g, 'dtype', None)}"
            )
        return vjp(backend, plan, g, *arrays, needs=(True,) * len(arrays))

    return y, pullback
