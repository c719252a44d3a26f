"""Checks of a user's arguments: each error names the argument, its value and what is allowed."""

from __future__ import annotations

import math
import operator
import sys
from collections.abc import Collection, Iterable, Mapping, MappingView, Sequence, Set
from decimal import Decimal
from numbers import Real
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Limits: TypeAlias = tuple[float | None, float | None]

NORMS = ("forward", "ortho", "backward")
METHODS = ("auto", "matmul", "fft")

FLOAT32_MAX = float(np.finfo(np.float32).max)

MOST_SAMPLES = 2**31 - 1
"""The largest size or distance: phases are products of two indices, and must fit in 64 bits."""

_TEXT = (str, bytes, bytearray)
_UNORDERED = (Set, Mapping, MappingView)


def option(name: str, value: object, allowed: tuple[str, ...]) -> str:
    """Return a string, which must be one of the allowed ones."""
    if not isinstance(value, str) or value not in allowed:
        raise (ValueError if isinstance(value, str) else TypeError)(
            f"{name} must be one of {', '.join(map(repr, allowed))}, got {value!r}"
        )
    return value


def check_names(function: str, given: Iterable[str], allowed: Collection[str]) -> None:
    """Raise TypeError for a keyword argument that a function does not have, as Python does."""
    for name in given:
        if name not in allowed:
            raise TypeError(f"{function}() got an unexpected keyword argument {name!r}")


def real(name: str, value: Any) -> float:
    """Return a real number as a float, or raise TypeError naming the argument."""
    try:
        _check_number(value)
        if getattr(value, "ndim", 0):
            raise TypeError("an array with dimensions")
        return float(value)
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"{name} must be a real number, got {value!r}") from error


def _check_number(value: Any) -> None:
    """Raise TypeError for a value that converts to a float or an int but is not a real number."""
    dtype = str(getattr(value, "dtype", ""))
    if isinstance(value, (bool, complex, *_TEXT, np.ma.MaskedArray)) or any(
        kind in dtype for kind in ("bool", "complex", "time", "object")
    ):
        raise TypeError(f"a {type(value).__name__} is no real number")


def check_plain(name: str, array: Any) -> None:
    """Raise TypeError for a NumPy array that is more than its entries: masked, or a matrix."""
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be an array without a mask, which no resize can honour, got a "
            f"{type(array).__name__}"
        )
    if isinstance(array, np.matrix):
        raise TypeError(f"{name} must be a numpy.ndarray, got a numpy.matrix")


def check_float(name: str, dtype: str, allowed: Sequence[str]) -> None:
    """Raise TypeError unless the name of an array's dtype is one of the allowed ones."""
    if dtype not in allowed:
        raise TypeError(
            f"{name} must be real floating point, one of {', '.join(allowed)}, got dtype {dtype}"
        )


def within_float32(value: float) -> float:
    """Return a number clipped to the range of float32.

    A stride or a bound beyond the range has the same effect as the end of the range, and every
    framework can hold the ends.
    """
    return min(max(value, -FLOAT32_MAX), FLOAT32_MAX)


def integers(name: str, value: Any) -> tuple[int, ...]:
    """Return one int or several as a non-empty tuple of ints."""
    several = isinstance(value, Iterable) and getattr(value, "ndim", 1) > 0
    try:
        # The order of the entries matters, and a set has an arbitrary one.
        if isinstance(value, (*_TEXT, *_UNORDERED, np.ma.MaskedArray)):
            raise TypeError
        integers = tuple(map(_index, value)) if several else (_index(value),)
    except (TypeError, RuntimeError):  # RuntimeError: tensors that have no values
        raise TypeError(f"{name} must be an int or a sequence of ints, got {value!r}") from None
    if not integers:
        raise ValueError(f"{name} must have at least one entry, got {value!r}")
    return integers


def integer(name: str, value: Any) -> int:
    """Return an integer as an int, or raise TypeError naming the argument."""
    try:
        return _index(value)
    except (TypeError, RuntimeError):  # RuntimeError: tensors that have no values
        raise TypeError(f"{name} must be an int, got {value!r}") from None


def _index(value: Any) -> int:
    _check_number(value)
    return operator.index(value)


def in_order(name: str, values: Any, entries: str) -> tuple[Any, ...]:
    """Return the entries of an iterable whose order matters.

    Raises
    ------
    TypeError
        If it is anything else: a set has an arbitrary order, and a dict is more than its keys. The
        message says which entries the sequence should have.
    """
    if not isinstance(values, Iterable) or isinstance(values, (*_TEXT, *_UNORDERED)):
        # A model's own text may be pages long.
        given = repr(values)
        given = given if len(given) <= 80 else f"one of type {type(values).__name__}"
        raise TypeError(f"{name} must be a sequence, {entries}, got {given}")
    return tuple(values)


def checked_limits(limits: Any) -> Limits | None:
    """Return checked limits: None, or a pair whose entries are each a number or None."""
    if limits is None:
        return None
    if not isinstance(limits, Sequence) or isinstance(limits, _TEXT) or len(limits) != 2:
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
    return (
        None if lower is None else within_float32(lower),
        None if upper is None else within_float32(upper),
    )


def checked_layers(strides_per_layer: Any) -> Sequence[Any]:
    """Return the strides of several layers unchanged; they must be a sequence."""
    if not isinstance(strides_per_layer, Sequence) or isinstance(strides_per_layer, _TEXT):
        raise TypeError(
            "strides_per_layer must be a sequence with the strides of each layer, got "
            f"{strides_per_layer!r}"
        )
    return strides_per_layer


def check_strides(
    strides: Sequence[float], count: int, *, least: float | None = None, name: str = "strides"
) -> None:
    """Raise ValueError unless the values are usable strides for `count` axes.

    Parameters
    ----------
    strides : sequence of float
    count : int
        Number of resized axes. There must be as many strides, or one.
    least : float, optional
        The smallest value allowed. By default every finite value is allowed: a value outside the
        bounds is clipped when it is used.
    name : str
        Name of the argument, for the message.
    """
    check_stride_count(len(strides), count, name)
    # Comparisons: a compiler that traces a stride as a symbol can follow them.
    if not all(-math.inf < stride < math.inf for stride in strides):
        raise ValueError(f"{name} must be finite, got {tuple(strides)}")
    if least is not None and any(stride < least for stride in strides):
        raise ValueError(f"{name} must be at least {least:g}, got {tuple(strides)}")


def host_strides(strides: Any, name: str = "strides") -> NDArray[np.floating]:
    """Return strides given as numbers or as a host array, in float32 or float64.

    Finite strides are clipped to the range of float32, see `within_float32`.

    Raises
    ------
    TypeError
        If they are not real numbers, or are an array of another dtype or with a mask.
    ValueError
        If they have more than one dimension.
    """
    if isinstance(strides, np.ndarray):
        check_plain(name, strides)
        array: NDArray[Any] = np.asarray(strides, strides.dtype.newbyteorder("="))
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"{name} must be float32 or float64, got dtype {array.dtype}")
    else:
        several = isinstance(strides, Sequence) and not isinstance(strides, _TEXT)
        try:
            array = np.asarray([*map(_number, strides)] if several else _number(strides))
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            raise TypeError(f"{name} must be real numbers or an array, got {strides!r}") from error
        if array.dtype.kind not in "iuf":
            raise TypeError(f"{name} must be real numbers or an array, got {strides!r}")
        array = array.astype(np.float64)
    if array.ndim > 1:
        raise ValueError(f"{name} must have at most 1 dimension, got {array.ndim}")
    return np.where(np.isfinite(array), array.clip(-FLOAT32_MAX, FLOAT32_MAX), array)


def _number(value: Any) -> Any:
    """Return a Python number as a float, and anything else unchanged."""
    _check_number(value)
    if hasattr(value, "dtype") and not hasattr(value, "__array__"):
        raise TypeError("an array that NumPy could only read entry by entry")  # e.g. sparse
    return float(value) if isinstance(value, (Real, Decimal)) else value


def initial_strides(
    stride: Any, count: int, shared: Any, name: str = "stride"
) -> tuple[float, ...]:
    """Return the initial value of every stride parameter of a layer.

    Parameters
    ----------
    stride : float or sequence of float
        One per resized axis, or one for all.
    count : int
        Number of resized axes.
    shared : bool
        Whether the layer has one parameter for all axes.
    name : str
        Name of the argument `stride`, for the message.

    Raises
    ------
    TypeError, ValueError
        If a stride is not a number of at least 1, or if a shared stride has several values.
    """
    if not isinstance(shared, bool):
        raise TypeError(f"shared must be True or False, got {shared!r}")
    values = tuple(np.ravel(host_strides(stride, name)).tolist())
    check_strides(values, count, least=1.0, name=name)
    if shared:
        if len(set(values)) != 1:
            raise ValueError(f"{name} must be one number where shared=True, got {stride!r}")
        return values[:1]
    return values * count if len(values) == 1 else values


def check_stride_count(entries: int, count: int, name: str = "strides") -> None:
    """Raise ValueError unless there is one stride per axis or one for all."""
    if not entries:
        raise ValueError(f"{name} must have at least one entry, got none")
    if entries not in (1, count):
        raise ValueError(
            f"{name} must have one entry per axis or one for all, that is "
            f"{count} or 1 for {count} axes, got {entries}"
        )


def normalized_axes(axes: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the axes counted from the end.

    Parameters
    ----------
    axes : tuple of int
    shape : sequence of int
        Shape of the array.

    Raises
    ------
    ValueError
        If an axis is out of range, repeated or empty.
    """
    rank = len(shape)
    if any(not -rank <= axis < rank for axis in axes):
        raise ValueError(
            f"axes must lie between {-rank} and {rank - 1} for x of shape {tuple(shape)}, "
            f"got {axes}" + (f": these axes need {-min(axes)} dimensions" if max(axes) < 0 else "")
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
    if max(result) > sys.maxsize:
        raise ValueError(f"shape must have no entry above {sys.maxsize}, got {result}")
    return result


def checked_sizes(sizes: Any, count: int) -> tuple[int, ...]:
    """Return output sizes given by the caller: one positive int per axis."""
    result = integers("sizes", sizes)
    if len(result) != count:
        raise ValueError(f"sizes must have one entry per axis, {count}, got {result}")
    if min(result) < 1:
        raise ValueError(f"sizes must be at least 1, got {result}")
    if max(result) > MOST_SAMPLES:
        raise ValueError(f"sizes must be at most {MOST_SAMPLES}, got {result}")
    return result


def axis_sizes(axes: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes along axes from `normalized_axes`."""
    # An int even if a compiler traces a size as a symbol: a plan holds only ints.
    try:
        return tuple([operator.index(shape[axis]) for axis in axes])
    except TypeError:
        raise TypeError(
            f"x must have known sizes along the axes {axes}, got shape {tuple(shape)}"
        ) from None
