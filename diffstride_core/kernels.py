"""Matrix products and memory layout: details that frameworks handle faster than the array API."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of the framework in use; the core relies on the array API standard alone."""

BLOCK_ELEMENTS = 2**19
"""Elements of a batch to resize at a time: 2 MiB in single precision, about a core's cache."""


class Kernels:
    """Matrix products, and the layout of arrays for them, in the array API alone.

    A framework overrides what it does better. An override changes results by rounding only.

    Parameters
    ----------
    xp : module
        The array API namespace.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def memory_order(self, array: Array) -> tuple[int, ...] | None:
        """Return the permutation of the axes into memory order; None to keep their order."""
        return None

    def can_write(self, array: Array) -> bool:
        """Return whether to write to arrays, and so to resize large arrays in blocks."""
        return False

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return a @ b, written to `out` if it is given.

        `a` is a matrix; `b` is a matrix or a batch of matrices. `out` is given only if `can_write`
        is true.
        """
        return (a if b.ndim == 2 else a[None, :, :]) @ b

    def product(self, matrix: Array, x: Array, axis: int) -> Array | None:
        """Return an array with every vector along an axis multiplied by a matrix.

        None if the framework has no product that is faster than `matmul` on reshaped arrays.
        """
        return None

    def add_matmul(self, total: Array, a: Array, b: Array) -> Array:
        """Return total + a @ b; `total` may be overwritten."""
        return total + self.matmul(a, b)

    def pointwise(self, x: Array, kernel: Array, total: Array | None = None) -> Array:
        """Return x @ kernel, a pointwise convolution, plus a total that may be overwritten.

        `x` has the shape (groups, rows, inputs), `kernel` (groups, inputs, outputs).
        """
        return x @ kernel if total is None else total + x @ kernel

    def pointwise_kernel(self, x: Array, g: Array) -> Array:
        """Return x^T @ g, the gradient of the kernel of `pointwise` for a cotangent `g`."""
        return self._xp.matrix_transpose(x) @ g
