"""Frameworks without automatic differentiation: one backend, values and pullbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffstride_backends.protocol import (
    Backend,
    HostArray,
    HostStrides,
    Pullback,
    evaluate,
    pull_back,
)
from diffstride_core._namespace import device_of, namespace_of
from diffstride_core.arguments import check_float, check_plain
from diffstride_core.kernels import Kernels
from diffstride_core.operation import Operation

# The standard has no half precision, but some frameworks do.
_FLOATS = ("float16", "float32", "float64")
_DTYPES = (
    *_FLOATS,
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("complex64", "complex128"),
)


class EagerBackend(Backend[Any]):
    """A framework that is used through its array API namespace alone.

    Parameters
    ----------
    example : array
        Any array of the framework. It gives the array type and the namespace.
    """

    def __init__(self, example: Any, kernels: type[Kernels] = Kernels) -> None:
        super().__init__(namespace_of(example), kernels)
        self._type: type = type(example)
        self._names = [name for name in _DTYPES if hasattr(self.xp, name)]
        self._floats = tuple(name for name in _FLOATS if name in self._names)

    @property
    def array_type(self) -> str:
        """The name of the framework's array, as its users know it."""
        return f"{self._type.__module__.partition('.')[0]}.{self._type.__name__}"

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, self._type)

    def check_input(self, x: Any, name: str = "x", like: Any = None) -> None:  # noqa: D102
        if not self.is_array(x):
            raise TypeError(f"{name} must be a {self.array_type}, got {type(x).__name__}")
        check_plain(name, x)
        check_float(name, self.dtype_name(x), self._floats)
        if like is None:
            return
        if (dtype := self.dtype_name(x)) != (other := self.dtype_name(like)):
            raise TypeError(f"{name} must have the dtype of x, {other}, got {dtype}")
        if device_of(x) != device_of(like):
            raise ValueError(
                f"{name} must be on the device of x, {device_of(like)}, got {device_of(x)}"
            )

    def as_convolved(self, *arrays: Any) -> tuple[Any, ...]:  # noqa: D102
        return arrays

    def check_strides(self, strides: Any, like: Any) -> None:  # noqa: D102
        check_plain("strides", strides)
        if (name := self.dtype_name(strides)) not in ("float32", "float64"):
            raise TypeError(f"strides must be float32 or float64, got dtype {name}")
        if like is not None and device_of(strides) != device_of(like):
            raise ValueError(
                f"strides must be on the device of x, {device_of(like)}, got {device_of(strides)}"
            )

    def strides_from_host(self, strides: HostStrides, like: Any) -> Any:  # noqa: D102
        if like is None:
            return self.from_host(strides.array(), strides.dtype)
        is_single = self.precise_dtype(like) == self.xp.float32
        dtype = "float32" if is_single else strides.dtype
        return self.from_host(strides.array(), dtype, device_of(like))

    def unshared(self, strides: Any) -> Any:  # noqa: D102
        return self.xp.asarray(strides, copy=True, device=device_of(strides))

    def native(self, array: Any) -> Any:
        """Return an array in the form that the framework computes with, as a view if possible."""
        return array

    def host_values(self, strides: Any) -> tuple[float, ...]:  # noqa: D102
        return tuple(np.ravel(self.to_host(strides)).tolist())

    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:  # noqa: D102
        return self.xp.asarray(array, dtype=getattr(self.xp, dtype), device=device, copy=True)

    def to_host(self, array: Any) -> HostArray:  # noqa: D102
        return np.asarray(array)

    def dtype_name(self, array: Any) -> str:  # noqa: D102
        return next(
            (name for name in self._names if getattr(self.xp, name) == array.dtype),
            str(array.dtype),
        )

    def device_of(self, array: Any) -> Any:  # noqa: D102
        return device_of(array)

    def devices(self) -> Sequence[Any]:  # noqa: D102
        return (None,)


def value(backend: Any, operation: Operation, plan: Any, *arrays: Any) -> Any:
    """Evaluate the forward pass alone."""
    return backend.native(evaluate(backend, operation, plan, _native(backend, arrays)))


def value_and_pullback(
    backend: Any, operation: Operation, plan: Any, *arrays: Any
) -> tuple[Any, Pullback[Any]]:
    """Return the value of the forward pass and its pullback, which keeps only the inputs."""
    arrays = _native(backend, arrays)
    y = backend.native(evaluate(backend, operation, plan, arrays))
    shape, dtype = tuple(y.shape), backend.dtype_name(y)

    def pullback(g: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        if isinstance(g, np.generic):  # NumPy makes these from arrays without dimensions
            g = np.asarray(g)
        is_array = backend.is_array(g)
        if is_array:
            check_plain("g", g)
        given = backend.dtype_name(g) if is_array else str(getattr(g, "dtype", None))
        if not hasattr(g, "shape") or (tuple(g.shape), given) != (shape, dtype):
            raise ValueError(
                f"g must have the output's shape {shape} and dtype {dtype}, got "
                f"{getattr(g, 'shape', type(g).__name__)} and {given}"
            )
        if not is_array:
            raise TypeError(f"g must be a {backend.array_type}, got {type(g).__name__}")
        needs = tuple(array is not None for array in arrays)
        gradients = pull_back(backend, operation, plan, backend.native(g), arrays, needs)
        return tuple(backend.native(gradient) for gradient in gradients if gradient is not None)

    return y, pullback


def _native(backend: Any, arrays: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(None if array is None else backend.native(array) for array in arrays)
