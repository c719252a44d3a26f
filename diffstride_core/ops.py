"""What the core asks of an array framework."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any, Protocol, TypeAlias, TypeVar

from diffstride_core.bases import AxisBasis

Array: TypeAlias = Any
"""An array of the framework at hand; the core relies on the array API standard alone."""

Factors: TypeAlias = tuple[Any, ...]
"""Arrays in nested tuples."""


PlanT = TypeVar("PlanT", bound=Hashable)


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

    def kept(
        self,
        make: Callable[[ArrayOps, PlanT, Array | None, Array], Factors],
        plan: PlanT,
        strides: Array | None,
        like: Array,
    ) -> Factors:
        """Return ``make(self, plan, strides, like)``, kept from an earlier call where possible.

        `like` gives dtype and device alone.
        """

    def bins_with_slope(self, slope: Array, most: int) -> int:
        """Return how many neighbouring bins have all slopes, or `most` where values are not read.

        `most` is an upper bound.
        """

    def memory_order(self, array: Array) -> tuple[int, ...] | None:
        """Return the permutation of the axes into the order of memory; None for their own."""

    def block_elements(self, array: Array) -> int | None:
        """Return of how many elements to take at a time, so that caches hold what is made of them.

        None for all at once, where arrays cannot be assigned to or gain nothing.
        """

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return a @ b, written to `out` if that is given, as only code in blocks does.

        Both are batches of matrices of equal length, or `a` is a batch of one.
        """

    def add_matmul(self, total: Array, a: Array, b: Array) -> Array:
        """Return total + `matmul` of a and b; the total may be overwritten."""

    def pointwise(self, x: Array, kernel: Array, total: Array | None = None) -> Array:
        """Return x @ kernel, a pointwise convolution, added to a total that may be overwritten.

        Of groups of rows of channels, (groups, rows, inputs) by (groups, inputs, outputs).
        """

    def pointwise_kernel(self, x: Array, g: Array) -> Array:
        """Return x^T @ g, the gradient of the kernel of `pointwise` for a cotangent `g`."""

    def stop_gradient(self, array: Array) -> Array:
        """Return the array, constant to automatic differentiation."""

    def rfft(self, array: Array, axis: int) -> Array:
        """Transform a real array along one axis, unnormalised."""

    def irfft(self, array: Array, size: int, axis: int) -> Array:
        """Invert `rfft` to a real axis of `size` samples, normalised by 1/size."""
