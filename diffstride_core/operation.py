"""A function of arrays with its derivative, as frameworks are given it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from diffstride_core.ops import Array, Factors

MakeFactors: TypeAlias = Callable[..., Factors]
"""``make(ops, plan, strides, like)``; `like` gives dtype and device alone."""


@dataclass(frozen=True)
class Operation:
    """A differentiable function of arrays, of which a plan decides all but their values.

    What depends on the strides alone, the factors of the operators, is made beforehand, by whoever
    evaluates it: they can be kept while the strides stay the same.

    Attributes
    ----------
    evaluate : callable
        ``evaluate(ops, plan, factors, *arrays)`` returns the value. An array that is optional is
        None where there is none.
    pull_back : callable or None
        ``pull_back(ops, plan, factors, stride_factors, g, *arrays, needs=...)`` returns the
        gradient of each array for the cotangent `g` of the value, None for those that `needs`
        denies. None where the framework differentiates ``evaluate`` itself.
    make_factors, make_stride_factors : callable or None
        Make the factors, and those of their derivatives in the strides, which may be None where no
        gradient of the strides is needed. None for a function without factors.
    strides : int
        Index of the strides among the arrays.
    """

    evaluate: Callable[..., Array]
    pull_back: Callable[..., tuple[Array | None, ...]] | None
    make_factors: MakeFactors | None = None
    make_stride_factors: MakeFactors | None = None
    strides: int = 0
