"""Checks of what a user passes: each names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Limits: TypeAlias = tuple[float | None, float | None]

NORMS = ("forward", "ortho", "backward")
METHODS = ("auto", "matmul", "fft")

_BOOLS = (bool, np.bool_)


def option(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return a string that must be one of those allowed."""
    if not isinstance(value, str) or value not in allowed:
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        )
    return value


def real(name: str, value: Any) -> float:
    """Return a real number as a float, or raise TypeError naming the argument."""
    if isinstance(value, (*_BOOLS, str, bytes, complex)) or not hasattr(value, "__float__"):
        raise TypeError(f"{name} must be a real number, got {value!r}")
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise TypeError(f"{name} must be a real number, got {value!r}") from error


def integers(name: str, value: Any) -> tuple[int, ...]:
    """Return one int or several as a non-empty tuple of ints."""
    several = isinstance(value, Iterable) and not isinstance(value, (str, bytes))
    entries = tuple(value) if several else (value,)
    try:
        if any(isinstance(entry, _BOOLS) for entry in entries):
            raise TypeError
        integers = tuple(operator.index(entry) for entry in entries)
    except TypeError:
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}") from None
    if not integers:
        raise ValueError(f"{name} must have at least one entry, got {value!r}")
    return integers


def checked_limits(limits: Any) -> Limits | None:
    """Return None, or a pair of limits of which each is a number or None."""
    if limits is None:
        return None
    if not isinstance(limits, Sequence) or isinstance(limits, str) or len(limits) != 2:
        raise TypeError(
            f"limits must be None or a pair (lower, upper) of numbers or Nones, got {limits!r}"
        )
    lower, upper = (None if limit is None else real("limits", limit) for limit in limits)
    if any(limit is not None and math.isnan(limit) for limit in (lower, upper)):
        raise ValueError(f"limits must not be NaN, got {limits!r}")
    if lower is not None and upper is not None and lower > upper:
        raise ValueError(f"limits must have lower <= upper, got {limits!r}")
    if lower is not None and math.isinf(lower):
        raise ValueError(f"limits must have a finite lower limit, got {limits!r}")
    return lower, upper


def check_strides(
    strides: Sequence[float], count: int, *, least: float | None = None, name: str = "strides"
) -> None:
    """Raise ValueError unless the values are usable strides for `count` axes.

    Parameters
    ----------
    strides : sequence of float
    count : int
        The number of resized axes: so many strides, or one.
    least : float, optional
        The smallest value allowed. Without it any finite value will do: one outside the bounds is
        bounded when it is used.
    name : str
        Of the argument, for the message.
    """
    check_stride_count(len(strides), count, name)
    # Comparisons, which a compiler follows that traces a stride as a symbol.
    if not all(-math.inf < stride < math.inf for stride in strides):
        raise ValueError(f"{name} must be finite, got {tuple(strides)}")
    if least is not None and any(stride < least for stride in strides):
        raise ValueError(f"{name} must be at least {least:g}, got {tuple(strides)}")


def host_strides(strides: Any, name: str = "strides") -> NDArray[np.floating]:
    """Return strides given as numbers or as a host array, in float32 or float64.

    Raises
    ------
    TypeError
        Unless they are real numbers; for an array of another dtype.
    ValueError
        For more than one dimension.
    """
    if isinstance(strides, np.ndarray):
        array: NDArray[Any] = strides
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    else:
        try:
            array = np.asarray(strides)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"{name} must be real numbers or an array, got {strides!r}") from error
        # Among numbers a bool would be taken for one.
        has_bool = isinstance(strides, Sequence) and any(isinstance(s, _BOOLS) for s in strides)
        if array.dtype.kind not in "iuf" or has_bool:
            raise TypeError(f"{name} must be real numbers or an array, got {strides!r}")
        array = array.astype(np.float64)
    if array.ndim > 1:
        raise ValueError(f"{name} must have at most 1 dimension, got {array.ndim}")
    return array


def initial_strides(stride: Any, count: int, shared: Any) -> tuple[float, ...]:
    """Return the initial value of every stride parameter of a layer.

    Parameters
    ----------
    stride : float or sequence of float
        One per resized axis, or one for all.
    count : int
        The number of resized axes.
    shared : bool
        Whether the layer has one parameter for all axes.

    Raises
    ------
    TypeError, ValueError
        Unless the strides are numbers of at least 1, and one where they are shared.
    """
    if not isinstance(shared, bool):
        raise TypeError(f"shared must be True or False, got {shared!r}")
    values = tuple(np.ravel(host_strides(stride, "stride")).tolist())
    check_strides(values, count, least=1.0, name="stride")
    if shared:
        if len(set(values)) != 1:
            raise ValueError(f"stride must be one number where shared=True, got {stride!r}")
        return values[:1]
    return values * count if len(values) == 1 else values


def check_stride_count(entries: int, count: int, name: str = "strides") -> None:
    """Raise ValueError unless there is one stride per axis or one for all."""
    if not entries:
        raise ValueError(f"{name} must have at least one entry, got none")
    if entries not in (1, count):
        raise ValueError(
            f"{name} must have one entry per axis or one shared by all, that is "
            f"{count} or 1 for {count} axes, got {entries}"
        )


def normalized_axes(axes: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes counted from the end.

    Parameters
    ----------
    axes : tuple of int
    shape : sequence of int
        The array's.

    Raises
    ------
    ValueError
        If an axis is out of range, repeated or empty.
    """
    rank = len(shape)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(
            f"axes must lie between {-rank} and {rank - 1} for x of shape {tuple(shape)}, "
            f"got {axes}"
        )
    negative = tuple(axis if axis < 0 else axis - rank for axis in axes)
    if len(set(negative)) != len(negative):
        raise ValueError(f"axes must not name an axis twice, got {axes} for {rank} dimensions")
    for axis, original in zip(negative, axes, strict=True):
        if shape[axis] == 0:
            raise ValueError(
                f"x must not be empty along the resized axes, got shape {tuple(shape)} with size 0 "
                f"along axis {original}"
            )
    return negative


def checked_shape(shape: Any) -> tuple[int, ...]:
    """Return the shape of an array as a tuple of ints of at least 0."""
    result = integers("shape", shape)
    if min(result) < 0:
        raise ValueError(f"shape must have no negative entry, got {result}")
    return result


def checked_sizes(sizes: Any, count: int) -> tuple[int, ...]:
    """Return output sizes given by the caller: one positive int per axis."""
    result = integers("sizes", sizes)
    if len(result) != count:
        raise ValueError(f"sizes must have one entry per axis, {count}, got {result}")
    if min(result) < 1:
        raise ValueError(f"sizes must be at least 1, got {result}")
    return result


def axis_sizes(axes: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes along axes from `normalized_axes`."""
    # An index, also where a compiler traces a size as a symbol: a plan holds ints alone.
    return tuple(operator.index(shape[axis]) for axis in axes)
