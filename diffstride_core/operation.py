"""A function of arrays and its derivative, in the form that frameworks receive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from diffstride_core.ops import Array, Factors

MakeFactors: TypeAlias = Callable[..., Factors]
"""``make(ops, plan, strides, like)``; `like` gives only the dtype and the device."""


@dataclass(frozen=True)
class Operation:
    """A differentiable function of arrays; a plan decides everything but their values.

    The factors of the operators depend on the strides alone. The caller makes them before the
    evaluation, and can keep them while the strides stay the same.

    Attributes
    ----------
    evaluate : callable
        ``evaluate(ops, plan, factors, *arrays)`` returns the value. An optional array that is not
        given is None.
    pull_back : callable or None
        ``pull_back(ops, plan, factors, stride_factors, g, *arrays, needs=...)`` returns the
        gradient of each array for the cotangent `g` of the value, or None if `needs` is False for
        it. The attribute is None if the framework differentiates ``evaluate`` itself.
    make_factors, make_stride_factors : callable or None
        Functions that make the factors, and the factors of their derivatives in the strides. If no
        gradient of the strides is needed, the ``stride_factors`` may be None. Both attributes are
        None for a function without factors.
    strides : int
        Index of the strides among the arrays.
    """

    evaluate: Callable[..., Array]
    pull_back: Callable[..., tuple[Array | None, ...]] | None
    make_factors: MakeFactors | None = None
    make_stride_factors: MakeFactors | None = None
    strides: int = 0
