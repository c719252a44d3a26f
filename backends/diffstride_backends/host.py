"""The factors of the operators, made on the host and kept while the strides stay the same.

They are a few small arrays, but take dozens of operations to make: dispatched one by one in a
framework, these would cost as much as a small resize itself. In NumPy they cost a fraction, and
nothing at all where the values of the strides, compared themselves, have not changed.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffstride_backends.eager import EagerBackend
from diffstride_core import bases
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.ops import Factors
from diffstride_core.plan import Plan
from diffstride_core.resample import operator_weights

BLOCK_ELEMENTS = 2**19
"""How much of a batch to resize at a time: 2 MiB in single precision, near a core's cache."""


class _Host(EagerBackend):
    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:
        return bases.tables(basis)

    def bins_with_slope(self, slope: Any, most: int) -> int:
        # The bound is that of the widest ramp of all strides.
        found = np.flatnonzero(slope)
        return int(found[-1] - found[0]) + 1 if found.size else min(most, 1)


_HOST = _Host(np.empty(0))


@ByteBoundCache
def factors(
    make: Callable[..., Factors],
    plan: Hashable,
    strides: tuple[float, ...] | None,
    dtype: str,
) -> Factors:
    """Return ``make(ops, plan, strides, like)`` in NumPy arrays.

    Parameters
    ----------
    make : callable
        As for `ArrayOps.kept`.
    plan : hashable
    strides : tuple of float, or None
    dtype : str
        Of the arrays to resize.
    """
    values = None if strides is None else np.asarray(strides)
    return make(_HOST, plan, values, np.empty(0, dtype=dtype))


def matrices(
    plan: Plan, strides: tuple[float, ...] | None, dtype: str
) -> tuple[tuple[NDArray[np.floating], ...], ...]:
    """Return the matrices of a resize, the norm's factor included: per term, one per axis.

    Parameters
    ----------
    plan : Plan
    strides : tuple of float, or None
    dtype : str
        Of the matrices.

    Returns
    -------
    tuple of tuple of ndarray, shape (M, N)
    """
    axes = tuple(replace(axis, use_fft=False) for axis in plan.axes)
    found: tuple[tuple[NDArray[np.floating], ...], ...] = factors(
        operator_weights, replace(plan, axes=axes), strides, dtype
    )
    return found
