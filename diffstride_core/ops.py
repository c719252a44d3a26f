"""What the core asks of an array framework."""

from __future__ import annotations

from typing import Any, Protocol, TypeAlias

from diffstride_core.bases import AxisBasis

Array: TypeAlias = Any
"""An array of the framework at hand; the core relies on the array API standard alone."""


class ArrayOps(Protocol):
    """The array operations of one framework, handed to every function that touches arrays.

    Everything else comes from ``xp``, the framework's array API namespace.
    """

    @property
    def xp(self) -> Any:
        """The array API namespace."""

    def precise_dtype(self, array: Array) -> Any:
        """Return the most precise real dtype of the array's device: float64 where it exists."""

    def frequencies(self, count: int, like: Array) -> Array:
        """Return 0, 1, ..., count - 1 in the precise dtype on the device of `like`."""

    def compute_dtype(self, array: Array) -> Any:
        """Return the dtype in which to resize an array: float32 for half precision, or its own."""

    def tables(self, basis: AxisBasis, like: Array) -> tuple[Array, Array]:
        """Return `bases.tables` with the dtype and device of `like`."""

    def stop_gradient(self, array: Array) -> Array:
        """Return the array, constant to automatic differentiation."""

    def rfft(self, array: Array, axis: int) -> Array:
        """Transform a real array along one axis, unnormalised."""

    def irfft(self, array: Array, size: int, axis: int) -> Array:
        """Invert `rfft` to a real axis of `size` samples, normalised by 1/size."""
