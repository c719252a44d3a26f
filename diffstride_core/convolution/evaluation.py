"""The evaluation of a convolution and the resize after it: which order of the two costs less.

A convolution of stride 1 runs at full resolution, however much of its output the resize discards.
Both are linear, so the sum over the kernel can be taken after the resize instead. The module
`diffstride_core.convolution.fused` does this.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from diffstride_core.arguments import option
from diffstride_core.convolution.checks import CONV_METHODS
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.plan import Plan
from diffstride_core.planning import fft_from_size

LARGEST_FUSED = 2048
"""The longest axis for the fused evaluation, which uses matrices alone."""

LONGEST_FUSED_SUM = 4096
"""The most taps times output samples along an axis that the fused evaluation adds up at once.

Some libraries add up the terms of narrow products one after the other. In single precision, the
error would reach the promised tolerance at about twice this number.
"""


class Product(NamedTuple):
    """The multiply-adds that a matrix product, or several alike, takes for one image.

    Attributes
    ----------
    work : int
        Multiply-adds per combination of the indices below.
    inputs, outputs : tuple of int
        Indices of the plan's axes along which the product runs over the N samples of the input, and
        over the M samples of the output.
    """

    work: int
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    def multiply_adds(self, plan: Plan) -> int:
        """Return the multiply-adds for the sizes of a plan."""
        return (
            self.work
            * math.prod([plan.axes[i].size for i in self.inputs])
            * math.prod([plan.axes[i].output_size for i in self.outputs])
        )


def resize_products(plan: Plan, maps: int) -> list[Product]:
    """Return the matrix products of a resize; an axis that is resized by FFTs has none.

    Parameters
    ----------
    plan : Plan
    maps : int
        Number of resized maps per image: the channels times the sizes of other axes.
    """
    order = tuple(itertools.chain.from_iterable(plan.steps))
    return [product for i, product in _products(plan, maps, order) if not plan.axes[i].use_fft]


def comparable_products(plan: Plan, maps: int) -> list[Product]:
    """Return products that count for the work of a resize, whichever engine does it.

    An axis counts as a matrix product of N terms per output sample up to the size from which FFTs
    take over, and as one of so many terms beyond it: from there on, the time per sample hardly
    grows. A count of the operations would jump by orders of magnitude instead, between sizes with
    small and with large prime factors.

    Parameters
    ----------
    plan, maps
        As for `resize_products`.
    """
    order = tuple(itertools.chain.from_iterable(plan.steps))
    long = [plan.window.has_fft and axis.size > fft_from_size(axis.axis) for axis in plan.axes]
    # The engines take the axes in different orders. Where one may run, count the cheapest order.
    orders = [order, *(itertools.permutations(order) if any(long) else ())]
    every = [
        [
            _limited(product, i, fft_from_size(plan.axes[i].axis)) if long[i] else product
            for i, product in _products(plan, maps, each)
        ]
        for each in orders
    ]
    return min(every, key=lambda found: sum(product.multiply_adds(plan) for product in found))


def _limited(product: Product, axis: int, terms: int) -> Product:
    """Return a product with a limited number of terms along one of its input axes."""
    others = tuple(i for i in product.inputs if i != axis)
    return Product(product.work * terms, others, product.outputs)


def _products(plan: Plan, maps: int, order: Sequence[int]) -> Iterator[tuple[int, Product]]:
    """Yield the axes of a resize in an order of application, with the matrix product of each."""
    terms = len(plan.window.terms(plan.axes))
    done: list[int] = []
    for i in order:
        left = tuple(j for j in range(len(plan.axes)) if j not in done)
        done.append(i)
        yield i, Product(maps * terms, left, tuple(done))


def separate_products(plan: ConvPlan) -> list[Product]:
    """Return the products of a convolution and of the resize after it, the convolution first."""
    conv, everywhere = plan.convolution, tuple(range(plan.convolution.rank))
    taps = math.prod(conv.kernel) * conv.in_channels // conv.groups
    own = Product(conv.out_channels * taps, everywhere, ())
    return [own, *resize_products(plan.resize, conv.out_channels)]


def fused_products(plan: ConvPlan) -> list[Product]:
    """Return the products of the fused evaluation, the pointwise convolution first."""
    conv, order = plan.convolution, plan.spatial_order
    terms = len(plan.resize.window.terms(plan.resize.axes))
    taps = math.prod(conv.kernel) * conv.in_channels // conv.groups
    products = [Product(conv.out_channels * taps * terms, (), order)]
    for step in range(conv.rank):
        # The taps of the last axis are evaluated at once, those of other axes one after the other.
        done = conv.kernel if step == conv.rank - 1 else conv.kernel[:-1]
        count = conv.in_channels * terms * math.prod(done)
        products.append(Product(count, order[step:], order[: step + 1]))
    return products


def costs(plan: ConvPlan) -> dict[str, tuple[int, int]]:
    """Return the multiply-adds of each evaluation for one image, in two parts.

    Returns
    -------
    dict
        ``"separate"``: multiply-adds of the convolution, and of the resize. ``"fused"``:
        multiply-adds of the pointwise convolution, and of the shifted resizes.
    """
    products = {"separate": separate_products(plan), "fused": fused_products(plan)}
    found = {}
    for method, (own, *resizes) in products.items():
        of_resizes = sum([product.multiply_adds(plan.resize) for product in resizes])
        found[method] = own.multiply_adds(plan.resize), of_resizes
    return found


@dataclass(frozen=True, slots=True)
class EvaluationUnits:
    """The time per multiply-add of each part of `costs`, relative to a plain convolution's.

    Each framework has its own units; benchmarks/fused.py finds them.

    Attributes
    ----------
    grouped_convolution : float
        Unit of a convolution that has groups.
    resize : float
        Unit of the resize after a convolution.
    pointwise, shifted_resizes : float
        Units of the two parts of the fused evaluation.
    """

    grouped_convolution: float
    resize: float
    pointwise: float
    shifted_resizes: float

    def expected(self, plan: ConvPlan) -> dict[str, float]:
        """Return the expected time of each evaluation of `costs` for one image."""
        parts = costs(plan)
        convolution = self.grouped_convolution if plan.convolution.groups > 1 else 1.0
        units = {
            "separate": (convolution, self.resize),
            "fused": (self.pointwise, self.shifted_resizes),
        }
        return {
            method: sum(
                [part * unit for part, unit in zip(parts[method], units[method], strict=True)]
            )
            for method in parts
        }


def chosen_method(plan: ConvPlan, method: str, units: EvaluationUnits | None) -> str:
    """Return the evaluation of a convolution and the resize after it, "fused" or "separate".

    Parameters
    ----------
    plan : ConvPlan
    method : {"auto", "fused", "separate"}
        "auto" chooses the evaluation that is expected to take less time.
    units : EvaluationUnits or None
        Units of the framework; None for a framework without a convolution.

    Raises
    ------
    TypeError, ValueError
        If the method is unknown or not possible.
    """
    option("method", method, CONV_METHODS)
    if units is None:
        if method == "separate":
            raise ValueError(
                "method must be 'fused' or 'auto' for a framework without a convolution, got "
                "'separate'"
            )
        method = "fused"
    elif method == "auto":
        return "fused" if is_fused_cheaper(plan, units) else "separate"
    if method == "fused":
        _check_fused(plan)
    return method


def is_fused_cheaper(plan: ConvPlan, units: EvaluationUnits) -> bool:
    """Return whether the fused evaluation is expected to take less time than the separate one."""
    if not can_fuse(plan):
        return False
    expected = units.expected(plan)
    return expected["fused"] < expected["separate"]


def can_fuse(plan: ConvPlan) -> bool:
    """Return whether the matrices of the fused evaluation have a reasonable size."""
    kernel = plan.convolution.kernel
    for taps, i in zip(kernel, plan.spatial_order, strict=True):
        axis = plan.resize.axes[i]
        if max(axis.size, axis.output_size) > LARGEST_FUSED:
            return False
        if taps * axis.output_size > LONGEST_FUSED_SUM:
            return False
    return True


def _check_fused(plan: ConvPlan) -> None:
    """Raise ValueError unless the fused evaluation is possible."""
    if not can_fuse(plan):
        axes = [plan.resize.axes[i] for i in plan.spatial_order]
        raise ValueError(
            f"x must have at most {LARGEST_FUSED} samples along its spatial axes for method "
            "'fused', which multiplies by matrices, and the output at most "
            f"{LONGEST_FUSED_SUM} divided by the kernel's taps, got sizes "
            f"{tuple(axis.size for axis in axes)} to {tuple(axis.output_size for axis in axes)} "
            f"and the kernel {plan.convolution.kernel}"
        )
