"""The factors of the operators, made on the host and kept while the strides stay the same.

They are a few small arrays, but take dozens of operations to make: dispatched one by one in a
framework, these would cost as much as a small resize itself. In NumPy they cost a fraction, and
nothing at all where the values of the strides, compared themselves, have not changed.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffstride_core import bases
from diffstride_core._namespace import namespace_of
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.operation import MakeFactors
from diffstride_core.operators import resize_operators
from diffstride_core.ops import ArrayOps, Factors
from diffstride_core.plan import Plan


class _HostOps(ArrayOps):
    def __init__(self, *, reads_values: bool) -> None:
        super().__init__(namespace_of(np.empty(0)))
        self.reads_values = reads_values

    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:
        return bases.tables(basis)


# Of a ramp, the bins that hold it at these strides, or those of the widest one, which a plan knows.
_OWN_SHAPES = _HostOps(reads_values=True)
_SAME_SHAPES = _HostOps(reads_values=False)


@ByteBoundCache
def factors(
    make: MakeFactors,
    plan: Hashable,
    strides: tuple[float, ...] | None,
    dtype: str,
    same_shapes: bool = False,
) -> Factors:
    """Return ``make(ops, plan, strides, like)`` in NumPy arrays.

    Parameters
    ----------
    make : callable
        Of an `Operation`.
    plan : hashable
    strides : tuple of float, or None
    dtype : str
        Of the arrays to resize.
    same_shapes : bool
        Give the arrays the shapes that they have at any strides of the plan: for frameworks that
        compile for shapes.
    """
    values = None if strides is None else np.asarray(strides)
    ops = _SAME_SHAPES if same_shapes else _OWN_SHAPES
    return make(ops, plan, values, np.empty(0, dtype=dtype))


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
    found: tuple[tuple[NDArray[np.floating], ...], ...] = factors(
        resize_operators, plan.by_matrices, strides, dtype
    )
    return found
