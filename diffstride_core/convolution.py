"""A convolution and the resize behind it: what is decided before an array is touched.

At stride 1 a convolution costs what it costs at full resolution, however much of it the resize
discards. Both are linear, so the sum over the kernel can be taken after the resize instead:
`diffstride_core.fused` evaluates that. Here is which of the two orders costs less.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from diffstride_core.arguments import MOST_SAMPLES, axis_sizes, in_order, integers, option
from diffstride_core.plan import Plan

PADDING_MODES = ("zeros", "circular")
CONV_METHODS = ("auto", "fused", "separate")
PLACEMENTS = ("before", "after")

LARGEST_FUSED = 2048
"""The longest axis of the fused evaluation, which knows matrices alone."""

LONGEST_FUSED_SUM = 4096
"""The most taps times output samples along an axis that the fused evaluation adds up at once.

Some libraries add the terms of narrow products up one after the other: in single precision the
error would grow to what is owed at about twice as many.
"""


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of stride 1 that keeps the size of its input; in fact, a correlation.

    Attributes
    ----------
    in_channels, out_channels : int
    kernel : tuple of int
        Per spatial axis, odd.
    dilation : tuple of int
        Per spatial axis.
    groups : int
    circular : bool
        Whether the map goes on with its other end beyond its border, rather than with zeros.
    has_bias : bool
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    circular: bool = False
    has_bias: bool = False

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """How far from the output's place each tap reads, per spatial axis."""
        return tuple(
            tuple(dilation * (tap - size // 2) for tap in range(size))
            for size, dilation in zip(self.kernel, self.dilation, strict=True)
        )

    @property
    def padding(self) -> tuple[int, ...]:
        """How many samples it reads beyond either end of each spatial axis."""
        return tuple(own[-1] for own in self.offsets)


@dataclass(frozen=True, slots=True)
class ConvPlan:
    """A convolution and a resize of all its spatial axes, fully decided but for the stride's value.

    Attributes
    ----------
    convolution : Convolution
    resize : Plan
        Of arrays of the layout that `channels_last` says.
    channels_last : bool
        Whether arrays are (..., N_1, ..., N_d, C) rather than (..., C, N_1, ..., N_d).
    """

    convolution: Convolution
    resize: Plan
    channels_last: bool = False

    @property
    def by_matrices(self) -> Plan:
        """The resize of channels-last arrays, by matrices alone."""
        rank = self.convolution.rank
        first = min(axis.axis for axis in self.resize.axes)
        axes = tuple(
            replace(axis, axis=axis.axis - first - rank - 1, use_fft=False)
            for axis in self.resize.axes
        )
        return replace(self.resize, axes=axes)

    @property
    def spatial_order(self) -> tuple[int, ...]:
        """The indices of the resize's axes in the order of the array's, which is the kernel's."""
        axes = self.resize.axes
        return tuple(sorted(range(len(axes)), key=lambda i: axes[i].axis))


def checked_convolution(
    shape: Sequence[int],
    weight_shape: Sequence[int],
    *,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: str = "zeros",
    channels_last: bool = False,
    bias_shape: Sequence[int] | None = None,
) -> Convolution:
    """Return the convolution of an array by a kernel, once every argument has been checked.

    Parameters
    ----------
    shape : sequence of int
        Of the input.
    weight_shape : sequence of int
        (out_channels, in_channels / groups, k_1, ..., k_d).
    dilation, groups, padding_mode, channels_last
        See `Functional.conv_diff_stride`.
    bias_shape : sequence of int, optional
        None without a bias.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, its value and what is allowed.
    """
    option("padding_mode", padding_mode, PADDING_MODES)
    if not isinstance(channels_last, bool):
        raise TypeError(f"channels_last must be True or False, got {channels_last!r}")
    rank = len(weight_shape) - 2
    if not 1 <= rank <= 3:
        raise ValueError(
            "weight must have the shape (out_channels, in_channels / groups, k_1, ..., k_d) with "
            f"d from 1 to 3, got {tuple(weight_shape)}"
        )
    if len(shape) < rank + 1:
        raise ValueError(
            f"x must have channels and {rank} spatial axes, at least {rank + 1} dimensions, for a "
            f"weight of shape {tuple(weight_shape)}, got shape {tuple(shape)}"
        )
    out_channels, per_group, *kernel = map(int, weight_shape)
    if 0 in weight_shape or any(size % 2 == 0 for size in kernel):
        raise ValueError(
            "weight must have odd kernel sizes, so that the output stands where the input does, "
            f"and no empty axis, got shape {tuple(weight_shape)}"
        )
    (number,) = per_axis("groups", groups, 1)
    in_channels = int(shape[-1 if channels_last else -rank - 1])
    if in_channels != per_group * number or out_channels % number:
        raise ValueError(
            "weight must have out_channels divisible by groups, and in_channels / groups of x, got "
            f"shape {tuple(weight_shape)} with groups {number} for {in_channels} channels"
        )
    if bias_shape is not None and tuple(bias_shape) != (out_channels,):
        raise ValueError(f"bias must have shape ({out_channels},), got {tuple(bias_shape)}")
    made = Convolution(
        in_channels,
        out_channels,
        tuple(kernel),
        per_axis("dilation", dilation, rank),
        number,
        padding_mode == "circular",
        bias_shape is not None,
    )
    sizes = axis_sizes(spatial_axes(rank, channels_last=channels_last), shape)
    if made.circular and any(p > n for p, n in zip(made.padding, sizes, strict=True)):
        raise ValueError(
            "padding_mode must be 'zeros' where the kernel reaches further than the map's size, "
            f"got 'circular' for a reach of {made.padding} and sizes {sizes}"
        )
    return made


def checked_placement(placement: Any, method: Any) -> str:
    """Return on which side of a convolution its layer stands, "before" or "after".

    Parameters
    ----------
    placement : {"before", "after"} or None
        None is "before", unless the method evaluates a layer after the convolution.
    method : {"auto", "fused", "separate"}

    Raises
    ------
    TypeError, ValueError
        For an unknown one, and for "before" with "fused" or "separate".
    """
    option("method", method, CONV_METHODS)
    if placement is None:
        return "before" if method == "auto" else "after"
    option("placement", placement, PLACEMENTS)
    if placement == "before" and method != "auto":
        raise ValueError(
            f"placement must be 'after' or None with method {method!r}, which is a way to evaluate "
            "a convolution and the layer after it, got 'before'"
        )
    return str(placement)


def spatial_axes(rank: int, *, channels_last: bool) -> tuple[int, ...]:
    """Return the spatial axes of an array, counted from the end."""
    return tuple(range(-rank - 1, -1)) if channels_last else tuple(range(-rank, 0))


def per_axis(name: str, value: Any, count: int) -> tuple[int, ...]:
    """Return an integer of at least 1 for each axis, from one for each or one for all.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, its value and what is allowed.
    """
    values = integers(name, value)
    if len(values) not in (1, count) or min(values) < 1:
        entries = "one entry" if count == 1 else f"1 or {count} entries"
        raise ValueError(f"{name} must have {entries} of at least 1, got {value!r}")
    if max(values) > MOST_SAMPLES:
        raise ValueError(f"{name} must be at most {MOST_SAMPLES}, got {value!r}")
    return values * count if len(values) == 1 else values


def odd_kernel(kernel_size: Any, rank: int) -> tuple[int, ...]:
    """Return the size of a new layer's kernel along each axis.

    Raises
    ------
    TypeError, ValueError
        Unless it is odd along every axis.
    """
    if rank > 3:
        raise ValueError(f"kernel_size must have from 1 to 3 entries, got {kernel_size!r}")
    kernel = per_axis("kernel_size", kernel_size, rank)
    if any(size % 2 == 0 for size in kernel):
        raise ValueError(f"kernel_size must be odd, so that the size is kept, got {kernel_size!r}")
    return kernel


def kept_padding(
    padding: Any,
    kernel: Sequence[int],
    dilation: Sequence[int],
    *,
    same: tuple[str, ...],
    valid: str,
    pairs: bool = False,
) -> tuple[int, ...]:
    """Return by how much to pad each axis, once it is known that this keeps the size.

    Parameters
    ----------
    padding : int, sequence of int, or str
        As a framework's own convolution takes it.
    kernel, dilation : sequence of int
        Per spatial axis; the kernel odd.
    same : tuple of str
        The framework's words for a padding that keeps the size.
    valid : str
        Its word for no padding, which keeps the size where the kernel has one tap.
    pairs : bool
        Whether there may be a pair of ints, for either end, for each axis.

    Raises
    ------
    TypeError, ValueError
        For anything else.
    """
    kept = tuple(d * (k // 2) for d, k in zip(dilation, kernel, strict=True))
    if isinstance(padding, str):
        fits = padding in same or (padding == valid and not any(kept))
    else:
        ends: Sequence[Any] = integers("padding", padding) if not pairs else _entries(padding)
        given = [integers("padding", end) for end in ends]
        given = given * len(kept) if len(given) == 1 else given
        fits = len(given) == len(kept) and all(
            len(amounts) <= 2 and set(amounts) == {amount}
            for amounts, amount in zip(given, kept, strict=True)
        )
    if not fits:
        words = ", ".join(map(repr, same))
        raise ValueError(
            f"padding must keep the size, as {words} and {kept} do, half of dilation * "
            f"(kernel_size - 1), got {padding!r}"
        )
    return kept


def _entries(padding: Any) -> tuple[Any, ...]:
    if not isinstance(padding, Iterable) or getattr(padding, "ndim", 1) == 0:
        return (padding,)
    return in_order("padding", padding, "of ints or pairs of ints")


class Product(NamedTuple):
    """A matrix product, or several alike, as the multiply-adds it takes for one image.

    Attributes
    ----------
    work : int
        Multiply-adds per combination of the indices below.
    inputs, outputs : tuple of int
        The resized axes, as indices into those of the plan, along which it runs over the N samples
        of the input, and over the M of the output.
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
    """Return the matrix products of a resize; an axis that is transformed has none.

    Parameters
    ----------
    plan : Plan
    maps : int
        How many maps of one image are resized: the channels, times the sizes of other axes.
    """
    terms = len(plan.window.terms(plan.axes))
    products: list[Product] = []
    done: list[int] = []
    for i in plan.order:
        left = tuple(j for j in range(len(plan.axes)) if j not in done)
        done.append(i)
        if not plan.axes[i].use_fft:
            products.append(Product(maps * terms, left, tuple(done)))
    return products


def separate_products(plan: ConvPlan) -> list[Product]:
    """Return the products of a convolution that is resized after it."""
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
        # The taps of the last axis are made at once, those of the others one after the other.
        done = conv.kernel if step == conv.rank - 1 else conv.kernel[:-1]
        count = conv.in_channels * terms * math.prod(done)
        products.append(Product(count, order[step:], order[: step + 1]))
    return products


def costs(plan: ConvPlan) -> dict[str, tuple[int, int]]:
    """Return what the time of each evaluation is made of, for one image.

    Returns
    -------
    dict
        ``"separate"``: multiply-adds of the convolution, and of the resize. ``"fused"``: those of
        the pointwise convolution, and of the shifted resizes.
    """
    products = {"separate": separate_products(plan), "fused": fused_products(plan)}
    found = {}
    for method, (own, *resizes) in products.items():
        of_resizes = sum([product.multiply_adds(plan.resize) for product in resizes])
        found[method] = own.multiply_adds(plan.resize), of_resizes
    return found


@dataclass(frozen=True, slots=True)
class EvaluationUnits:
    """The time of a multiply-add of each part of `costs`, in that of a plain convolution's.

    A framework has its own; benchmarks/fused.py finds them.

    Attributes
    ----------
    grouped_convolution : float
        Of a convolution that has groups.
    resize : float
        Of the resize behind a convolution.
    pointwise, shifted_resizes : float
        Of the two parts of the fused evaluation.
    """

    grouped_convolution: float
    resize: float
    pointwise: float
    shifted_resizes: float

    def expected(self, plan: ConvPlan) -> dict[str, float]:
        """Return what each evaluation of `costs` is expected to take for one image."""
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
    """Return how a convolution and the resize after it are evaluated, "fused" or "separate".

    Parameters
    ----------
    plan : ConvPlan
    method : {"auto", "fused", "separate"}
        "auto" takes what is expected to take less time.
    units : EvaluationUnits or None
        Of the framework; None for one without a convolution.

    Raises
    ------
    TypeError, ValueError
        For an unknown method, and for one that is not possible.
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
    """Return whether the matrices of the fused evaluation are of a reasonable size."""
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
