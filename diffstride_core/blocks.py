"""Arrays taken a part of their batch at a time, so that caches hold what is made of it."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TypeAlias

from diffstride_core import kernels
from diffstride_core.ops import Array, ArrayOps

Part: TypeAlias = tuple[Array | None, tuple[Array, ...]]
"""What is computed of a part: that part of the result, and contributions to sums."""


_shape = operator.attrgetter("shape")


def in_blocks(
    ops: ArrayOps,
    function: Callable[..., Part],
    shape: Callable[[], tuple[int, ...]] | None,
    arrays: tuple[Array, ...],
    elements: int | None = None,
) -> Part:
    """Call a function on one part of a batch after the other.

    Parameters
    ----------
    ops : ArrayOps
    function : callable
        Maps where a part of the result may be written, which it may ignore, and parts of the
        arrays to a `Part`.
    shape : callable or None
        Returns that of the result; None if there is none.
    arrays : tuple of array
        Taken apart along their first axis.
    elements : int, optional
        Of the largest array that the whole batch leads to; by default that of `arrays`.

    Returns
    -------
    result : array or None
    sums : tuple of array
    """
    # Compilers come no further: they would make a condition of what is asked of sizes.
    if not ops.kernels.can_write(arrays[0]):
        return function(None, *arrays)
    count, limit = arrays[0].shape[0], kernels.BLOCK_ELEMENTS
    if elements is None:
        elements = max(map(math.prod, map(_shape, arrays)))
    if count < 2 or elements <= limit:
        return function(None, *arrays)
    # Equal parts: a small last one would be as slow as a large one.
    step = -(-count // min(count, -(-elements // limit)))
    result: Array | None = None
    sums: tuple[Array, ...] = ()
    if shape is not None:
        result = ops.xp.empty(shape(), dtype=arrays[0].dtype)
    for start in range(0, count, step):
        block = slice(start, start + step)
        out = None if result is None else result[block]
        part, summands = function(out, *(array[block] for array in arrays))
        if result is not None and part is not out:
            result[block] = part
        sums = tuple(map(operator.iadd, sums, summands)) if sums else summands
    return result, sums
