"""Products and memory: what the mathematics does not need to know, and frameworks do faster."""

from __future__ import annotations

from typing import Any, TypeAlias

Array: TypeAlias = Any
"""An array of the framework at hand; the core relies on the array API standard alone."""

BLOCK_ELEMENTS = 2**19
"""How much of a batch to resize at a time: 2 MiB in single precision, near a core's cache."""


class Kernels:
    """Matrix products, and how arrays are taken apart for them, by the array API alone.

    A framework overrides what it does better. None of it changes a result but by rounding.

    Parameters
    ----------
    xp : module
        The array API namespace.
    """

    def __init__(self, xp: Any) -> None:
        self._xp = xp

    def memory_order(self, array: Array) -> tuple[int, ...] | None:
        """Return the permutation of the axes into the order of memory; None for their own."""
        return None

    def can_write(self, array: Array) -> bool:
        """Return whether to write to arrays, and so to take large ones a part at a time."""
        return False

    def matmul(self, a: Array, b: Array, out: Array | None = None) -> Array:
        """Return a @ b, written to `out` if that is given, as only code in blocks does.

        Both are batches of matrices of equal length, or `a` is a batch of one.
        """
        return a @ b

    def add_matmul(self, total: Array, a: Array, b: Array) -> Array:
        """Return total + `matmul` of a and b; the total may be overwritten."""
        return total + a @ b

    def pointwise(self, x: Array, kernel: Array, total: Array | None = None) -> Array:
        """Return x @ kernel, a pointwise convolution, added to a total that may be overwritten.

        Of groups of rows of channels, (groups, rows, inputs) by (groups, inputs, outputs).
        """
        return x @ kernel if total is None else total + x @ kernel

    def pointwise_kernel(self, x: Array, g: Array) -> Array:
        """Return x^T @ g, the gradient of the kernel of `pointwise` for a cotangent `g`."""
        return self._xp.matrix_transpose(x) @ g
