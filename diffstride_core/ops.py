"""The array operations that the core needs from a framework."""

from __future__ import annotations

from typing import Any, TypeAlias

from diffstride_core import bases
from diffstride_core._namespace import device_of
from diffstride_core.kernels import Array as Array
from diffstride_core.kernels import Kernels

Factors: TypeAlias = tuple[Any, ...]
"""Arrays in nested tuples, by which operators are applied."""


class ArrayOps:
    """The array operations of one framework, handed to every function that touches arrays.

    Here they use the array API alone. A framework overrides those that it does differently or
    better. All other operations come from `xp`.

    Parameters
    ----------
    xp : module
        The array API namespace.
    kernels : type
        Class of the matrix products.

    Attributes
    ----------
    xp : module
        The array API namespace.
    kernels : Kernels
    reads_values : bool
        Whether the values of arrays may decide sizes while operators are made.
    """

    reads_values = False

    def __init__(self, xp: Any, kernels: type[Kernels] = Kernels) -> None:
        self.xp = xp
        self.kernels = kernels(self.xp)
        self._precise: dict[Any, Any] = {}

    def precise_dtype(self, array: Array) -> Any:
        """Return the most precise real dtype of the array's device: float64 if it exists there."""
        device = device_of(array)
        if device not in self._precise:
            info = self.xp.__array_namespace_info__()
            floats = info.dtypes(device=device, kind="real floating")
            self._precise[device] = floats.get("float64", self.xp.float32)
        return self._precise[device]

    def compute_dtype(self, array: Array) -> Any:
        """Return the dtype in which to resize an array: float32 for half precision, or its own."""
        return array.dtype if array.dtype == self.xp.float64 else self.xp.float32

    def frequencies(self, count: int, like: Array) -> Array:
        """Return 0, 1, ..., count - 1 in the precise dtype on the device of `like`."""
        return self.xp.arange(count, dtype=self.precise_dtype(like), device=device_of(like))

    def tables(self, basis: bases.AxisBasis, like: Array) -> tuple[Array, Array]:
        """Return ``bases.tables`` with the dtype and device of `like`."""
        synthesis, analysis = bases.tables(basis)
        device = device_of(like)
        return (
            self.xp.asarray(synthesis, dtype=like.dtype, device=device),
            self.xp.asarray(analysis, dtype=like.dtype, device=device),
        )

    def zeros(self, shape: tuple[int, ...], like: Array) -> Array:
        """Return zeros with the dtype and device of `like`."""
        return self.xp.zeros(shape, dtype=like.dtype, device=device_of(like))

    def concat(self, arrays: list[Array], axis: int = 0) -> Array:
        """Join arrays along an axis."""
        return self.xp.concat(arrays, axis=axis)

    def stop_gradient(self, array: Array) -> Array:
        """Return the array as a constant for automatic differentiation."""
        return array

    def rfft(self, array: Array, axis: int) -> Array:
        """Transform a real array along one axis, unnormalised."""
        return self.xp.fft.rfft(array, axis=axis)

    def irfft(self, array: Array, size: int, axis: int) -> Array:
        """Invert `rfft` to a real axis of `size` samples, normalised by 1/size.

        Frequencies that the array lacks are zero.
        """
        return self.xp.fft.irfft(array, n=size, axis=axis)

    def fft(self, array: Array, axis: int) -> Array:
        """Transform a complex array along one axis, unnormalised."""
        return self.xp.fft.fft(array, axis=axis)

    def ifft(self, array: Array, axis: int) -> Array:
        """Invert `fft`, normalised by 1/size."""
        return self.xp.fft.ifft(array, axis=axis)
