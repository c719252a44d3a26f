"""Checks of a user's arguments for a convolution."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from diffstride_core.arguments import MOST_SAMPLES, axis_sizes, in_order, integers, option
from diffstride_core.convolution.plan import Convolution

PADDING_MODES = ("zeros", "circular")
CONV_METHODS = ("auto", "fused", "separate")
PLACEMENTS = ("before", "after")


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
    """Check the arguments of a convolution, and return the convolution.

    Parameters
    ----------
    shape : sequence of int
        Shape of the input.
    weight_shape : sequence of int
        (out_channels, in_channels / groups, k_1, ..., k_d).
    dilation, groups, padding_mode, channels_last
        See `Functional.conv_diff_stride`.
    bias_shape : sequence of int, optional
        Shape of the bias; None if there is none.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value and what is allowed.
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
            "weight must have odd kernel sizes, so that the output is aligned with the input, "
            f"and no empty axis, got shape {tuple(weight_shape)}"
        )
    (number,) = per_axis("groups", groups, 1)
    in_channels = int(shape[-1 if channels_last else -rank - 1])
    if in_channels != per_group * number or out_channels % number:
        raise ValueError(
            "weight must have out_channels divisible by groups, and in_channels / groups of x, got "
            f"shape {tuple(weight_shape)} with groups {number} for {in_channels} channels: axis "
            f"{-1 if channels_last else -rank - 1} of x, whose shape is {tuple(shape)}"
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
    """Return the place of a layer, "before" or "after" its convolution.

    Parameters
    ----------
    placement : {"before", "after"} or None
        None means "before", unless the method evaluates a layer after the convolution.
    method : {"auto", "fused", "separate"}

    Raises
    ------
    TypeError, ValueError
        If either is unknown, or if "before" is given with "fused" or "separate".
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
    """Return an integer of at least 1 for each axis, given one per axis or one for all.

    Raises
    ------
    TypeError, ValueError
        If the value is not allowed. The message names the argument, its value and what is allowed.
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
        If the size is not odd along every axis.
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
    """Check that a padding keeps the size, and return it as one int per axis.

    Parameters
    ----------
    padding : int, sequence of int, or str
        The padding, as the framework's own convolution takes it.
    kernel, dilation : sequence of int
        Per spatial axis. Kernel sizes are odd.
    same : tuple of str
        The framework's words for a padding that keeps the size.
    valid : str
        Its word for no padding, which keeps the size if the kernel has one tap.
    pairs : bool
        Whether an axis may have a pair of ints, one for each end.

    Raises
    ------
    TypeError, ValueError
        If the padding is anything else.
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
