"""Evaluation of a batch in blocks, so that intermediate results fit in the processor's caches."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import TypeAlias

from diffstride_core import kernels
from diffstride_core.ops import Array, ArrayOps

Part: TypeAlias = tuple[Array | None, tuple[Array, ...]]
"""The output for one block: its part of the result, and its contributions to sums."""


_shape = operator.attrgetter("shape")


def in_blocks(
    ops: ArrayOps,
    function: Callable[..., Part],
    shape: Callable[[], tuple[int, ...]] | None,
    arrays: tuple[Array, ...],
    elements: int | None = None,
) -> Part:
    """Call a function on one block of a batch after the other.

    Parameters
    ----------
    ops : ArrayOps
    function : callable
        Called with the place for its part of the result, or None, and with a block of each array.
        It may ignore the place. Returns a `Part`.
    shape : callable or None
        Returns the shape of the result; None if there is no result.
    arrays : tuple of array
        Split into blocks along their first axis.
    elements : int, optional
        Size of the largest array made for the whole batch; by default the largest of `arrays`.

    Returns
    -------
    result : array or None
    sums : tuple of array
    """
    # Compilers must not go further: they would turn each question about sizes into a condition.
    if not ops.kernels.can_write(arrays[0]):
        return function(None, *arrays)
    count, limit = arrays[0].shape[0], kernels.BLOCK_ELEMENTS
    if elements is None:
        elements = max(map(math.prod, map(_shape, arrays)))
    if count < 2 or elements <= limit:
        return function(None, *arrays)
    # Equal blocks: a small last one would be as slow as a large one.
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
