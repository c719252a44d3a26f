"""Frameworks without automatic differentiation: one backend, values and pullbacks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from diffstride_backends.protocol import HostArray, HostStrides, Pullback
from diffstride_core import bases
from diffstride_core._namespace import device_of, namespace_of
from diffstride_core.arguments import check_float, check_plain
from diffstride_core.ops import Factors

# The standard knows no half precision; some frameworks do.
_FLOATS = ("float16", "float32", "float64")
_DTYPES = (
    *_FLOATS,
    "bool",
    *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)),
    *("complex64", "complex128"),
)


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
        self._names = [name for name in _DTYPES if hasattr(self.xp, name)]
        self._floats = tuple(name for name in _FLOATS if name in self._names)
        self._precise: dict[Any, Any] = {}

    def precise_dtype(self, array: Any) -> Any:  # noqa: D102
        device = device_of(array)
        if device not in self._precise:
            info = self.xp.__array_namespace_info__()
            floats = info.dtypes(device=device, kind="real floating")
            self._precise[device] = floats.get("float64", self.xp.float32)
        return self._precise[device]

    def frequencies(self, count: int, like: Any) -> Any:  # noqa: D102
        return self.xp.arange(count, dtype=self.precise_dtype(like), device=device_of(like))

    def compute_dtype(self, array: Any) -> Any:  # noqa: D102
        return array.dtype if array.dtype == self.xp.float64 else self.xp.float32

    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:  # noqa: D102
        synthesis, analysis = bases.tables(basis)
        device = device_of(like)
        return (
            self.xp.asarray(synthesis, dtype=like.dtype, device=device),
            self.xp.asarray(analysis, dtype=like.dtype, device=device),
        )

    def kept(  # noqa: D102
        self, make: Callable[..., Factors], plan: Hashable, strides: Any, like: Any
    ) -> Factors:
        return make(self, plan, strides, like)

    def bins_with_slope(self, slope: Any, most: int) -> int:  # noqa: D102
        return most

    def memory_order(self, array: Any) -> None:  # noqa: D102
        return None

    def block_elements(self, array: Any) -> int | None:  # noqa: D102
        return None

    def matmul(self, a: Any, b: Any, out: None = None) -> Any:  # noqa: D102
        return a @ b

    def add_matmul(self, total: Any, a: Any, b: Any) -> Any:  # noqa: D102
        return total + a @ b

    def pointwise(self, x: Any, kernel: Any, total: Any = None) -> Any:  # noqa: D102
        return x @ kernel if total is None else total + x @ kernel

    def pointwise_kernel(self, x: Any, g: Any) -> Any:  # noqa: D102
        return self.xp.matrix_transpose(x) @ g

    def stop_gradient(self, array: Any) -> Any:  # noqa: D102
        return array

    def rfft(self, array: Any, axis: int) -> Any:  # noqa: D102
        return self.xp.fft.rfft(array, axis=axis)

    def irfft(self, array: Any, size: int, axis: int) -> Any:  # noqa: D102
        return self.xp.fft.irfft(array, n=size, axis=axis)

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
        """Return an array as the framework computes with it, a view if it can be."""
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


def value(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]] | None,
    plan: Any,
    *arrays: Any,
) -> Any:
    """Evaluate the forward pass alone."""
    return backend.native(forward(backend, plan, *map(backend.native, arrays)))


def value_and_pullback(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]] | None,
    plan: Any,
    *arrays: Any,
) -> tuple[Any, Pullback[Any]]:
    """Evaluate the forward pass and return it with its pullback, which keeps the inputs alone."""
    assert vjp is not None  # The framework differentiates nothing itself.
    arrays = tuple(map(backend.native, arrays))
    y = backend.native(forward(backend, plan, *arrays))
    shape, dtype = tuple(y.shape), backend.dtype_name(y)

    def pullback(g: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        if isinstance(g, np.generic):  # which NumPy makes of arrays without dimensions
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
        gradients = vjp(backend, plan, backend.native(g), *arrays, needs=(True,) * len(arrays))
        return tuple(map(backend.native, gradients))

    return y, pullback
