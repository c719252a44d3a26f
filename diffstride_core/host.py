"""The factors of the operators, made on the host and kept while the strides stay the same.

The factors are a few small arrays, but it takes dozens of operations to make them. Dispatched one
by one in a framework, these operations would cost as much as a small resize itself. In NumPy they
cost a fraction of that, and nothing at all while the values of the strides stay the same. The
values themselves are compared.
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


# A ramp gets the bins that hold it at these strides, or as many as the widest ramp of the plan.
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
        The function of an `Operation` that makes factors.
    plan : hashable
    strides : tuple of float, or None
    dtype : str
        Dtype of the arrays to resize.
    same_shapes : bool
        Whether the arrays have the same shapes for all strides of the plan, for frameworks that
        compile for fixed shapes.
    """
    values = None if strides is None else np.asarray(strides)
    ops = _SAME_SHAPES if same_shapes else _OWN_SHAPES
    return make(ops, plan, values, np.empty(0, dtype=dtype))


def matrices(
    plan: Plan, strides: tuple[float, ...] | None, dtype: str
) -> tuple[tuple[NDArray[np.floating], ...], ...]:
    """Return the matrices of a resize, including the norm's factor: per term, one per axis.

    Parameters
    ----------
    plan : Plan
    strides : tuple of float, or None
    dtype : str
        Dtype of the matrices.

    Returns
    -------
    tuple of tuple of ndarray, shape (M, N)
    """
    found: tuple[tuple[NDArray[np.floating], ...], ...] = factors(
        resize_operators, plan.by_matrices, strides, dtype
    )
    return found
