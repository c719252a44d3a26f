"""The settings of a layer: checked once, then turned into plans."""

from __future__ import annotations

import math
import operator
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial, reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diffstride_core.conventions import CONVENTIONS, DEFAULT_CONVENTION, Convention, Limits
from diffstride_core.plan import AxisPlan, Bounds, Plan
from diffstride_core.window import FlatWindow, Window

NORMS = ("forward", "ortho", "backward")
METHODS = ("auto", "matmul", "fft")

_BOOLS = (bool, np.bool_)

# Below this size two small matrix products beat two transforms.
FFT_FROM_SIZE = 256


class NothingToCropWarning(UserWarning):
    """An axis keeps its size at every stride: the layer filters it but never downsamples it."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a user chooses about a layer besides its strides.

    Attributes
    ----------
    axes : tuple of int
        As given, distinct once an array's rank is known.
    convention : Convention
    smoothness : float
        The window's ramp: in frequencies, or as the convention defines it.
    limits : (lower, upper) or None
    cropping : bool
    norm, method : str
    """

    axes: tuple[int, ...]
    convention: Convention
    smoothness: float
    limits: Limits | None
    cropping: bool
    norm: str
    method: str


def make_settings(
    *,
    axes: int | Sequence[int],
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
    method: str = "auto",
) -> Settings:
    """Check the arguments of a layer and return them with the convention's defaults filled in.

    The arguments are those of `diff_stride`.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, its value and what is allowed.
    """
    chosen = CONVENTIONS[_option("convention", convention, tuple(CONVENTIONS))]
    smoothness = chosen.default_smoothness if smoothness is None else real("smoothness", smoothness)
    chosen.check_smoothness(smoothness)
    if not isinstance(cropping, bool):
        raise TypeError(f"cropping must be True or False, got {cropping!r}")
    norm = chosen.default_norm if norm is None else _option("norm", norm, NORMS)
    _option("method", method, METHODS)
    if method == "fft" and not chosen.has_fft:
        raise ValueError(
            f"method must be 'matmul' or 'auto' for convention {convention!r}, got 'fft'"
        )
    return Settings(
        _integers("axes", axes), chosen, smoothness, _limits(limits), cropping, norm, method
    )


def _option(name: str, value: object, allowed: tuple[str, ...]) -> str:
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


def _integers(name: str, value: Any) -> tuple[int, ...]:
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


def _limits(limits: Any) -> Limits | None:
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


def check_strides(strides: Sequence[float], count: int, *, least: float | None = None) -> None:
    """Raise ValueError unless the values are usable strides for `count` axes.

    Parameters
    ----------
    strides : sequence of float
    count : int
        The number of resized axes: so many strides, or one.
    least : float, optional
        The smallest value allowed. Without it any finite value will do: one outside the bounds is
        bounded when it is used.
    """
    check_stride_count(len(strides), count)
    if not all(map(math.isfinite, strides)):
        raise ValueError(f"strides must be finite, got {tuple(strides)}")
    if least is not None and any(stride < least for stride in strides):
        raise ValueError(f"strides must be at least {least:g}, got {tuple(strides)}")


def host_strides(strides: Any) -> NDArray[np.floating]:
    """Return strides given as numbers or as a host array, in float32 or float64.

    Raises
    ------
    TypeError
        Unless they are real numbers; for an array of another dtype.
    ValueError
        For more than one dimension.
    """
    if isinstance(strides, np.ndarray):
        array = strides
        if array.dtype not in (np.float32, np.float64):
            raise TypeError(f"strides must be float32 or float64, got dtype {array.dtype}")
    else:
        try:
            array = np.asarray(strides)
        except (TypeError, ValueError, RuntimeError) as error:
            raise TypeError(f"strides must be real numbers or an array, got {strides!r}") from error
        # Among numbers a bool would be taken for one.
        has_bool = isinstance(strides, Sequence) and any(isinstance(s, _BOOLS) for s in strides)
        if array.dtype.kind not in "iuf" or has_bool:
            raise TypeError(f"strides must be real numbers or an array, got {strides!r}")
        array = array.astype(np.float64)
    if array.ndim > 1:
        raise ValueError(f"strides must have at most 1 dimension, got {array.ndim}")
    return array


def check_stride_count(entries: int, count: int) -> None:
    """Raise ValueError unless there is one stride per axis or one for all."""
    if not entries:
        raise ValueError("strides must have at least one entry, got none")
    if entries not in (1, count):
        raise ValueError(
            f"strides must have one entry per axis or one shared by all, that is "
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
    result = _integers("shape", shape)
    if min(result) < 0:
        raise ValueError(f"shape must have no negative entry, got {result}")
    return result


def checked_sizes(sizes: Any, count: int) -> tuple[int, ...]:
    """Return output sizes given by the caller: one positive int per axis."""
    result = _integers("sizes", sizes)
    if len(result) != count:
        raise ValueError(f"sizes must have one entry per axis, {count}, got {result}")
    if min(result) < 1:
        raise ValueError(f"sizes must be at least 1, got {result}")
    return result


def axis_sizes(axes: tuple[int, ...], shape: Sequence[int]) -> tuple[int, ...]:
    """Return the sizes of the resized axes of an array of the given shape."""
    return tuple(shape[axis] for axis in normalized_axes(axes, shape))


def declared_bounds(settings: Settings) -> Bounds:
    """Return the bounds that hold for any size: the user's limits and S >= 1."""
    lower, upper = settings.limits or (None, None)
    return Bounds(
        lower=1.0 if lower is None else max(1.0, lower),
        upper=math.inf if upper is None else max(1.0, upper),
    )


def plan_diff_stride(
    settings: Settings,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: tuple[float, ...] | None,
    *,
    shared: bool,
    output_sizes: tuple[int, ...] | None = None,
) -> Plan:
    """Return the plan of a layer.

    Parameters
    ----------
    settings : Settings
    axes : tuple of int
        From `normalized_axes`.
    sizes : tuple of int
        N per axis.
    strides : tuple of float, or None
        The parameter's values, one per axis or one for all; None where they are not known.
    shared : bool
        Whether one stride serves all axes.
    output_sizes : tuple of int, optional
        M per axis, in place of those that follow from the strides.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        For strides that are not finite, for strides that are not known where they decide the
        sizes, and for sizes the convention cannot make.

    Warns
    -----
    NothingToCropWarning
        For an axis whose size no stride would change.
    """
    if strides is not None:
        check_strides(strides, len(axes))
    settings.convention.check_axes(sizes, output_sizes)
    bounds = tuple(
        settings.convention.bounds(size, settings.smoothness, settings.limits) for size in sizes
    )
    if shared:
        bounds = (reduce(Bounds.intersect, bounds),) * len(axes)
    if output_sizes is None and not settings.cropping:
        output_sizes = tuple(
            settings.convention.uncropped_size(size, is_last)
            for size, is_last in zip(sizes, _is_last(axes), strict=True)
        )
    elif output_sizes is None:
        if strides is None:
            raise ValueError(
                "sizes must be given where the strides are traced and have no values: outside the "
                "traced function call output_sizes(x.shape, strides, ...), and inside pass the "
                "result as diff_stride(x, strides, sizes=..., ...)"
            )
        used = [bound.apply(strides[0 if shared else i]) for i, bound in enumerate(bounds)]
        output_sizes = tuple(map(partial(_output_size, settings), sizes, used, _is_last(axes)))
        _warn_where_nothing_can_be_cropped(settings, axes, sizes)
    return _make_plan(
        settings.convention,
        settings.smoothness,
        axes,
        sizes,
        output_sizes,
        settings.norm,
        settings.method,
        bounds,
    )


def _is_last(axes: tuple[int, ...]) -> list[bool]:
    return [i == len(axes) - 1 for i in range(len(axes))]


def _output_size(settings: Settings, size: int, stride: float, is_last: bool) -> int:
    return settings.convention.output_size(size, settings.smoothness, stride, is_last)


def _warn_where_nothing_can_be_cropped(
    settings: Settings, axes: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    built_in: Limits | None = None if settings.limits is None else (None, None)

    def widest(size: int) -> float:
        return settings.convention.bounds(size, settings.smoothness, built_in).upper

    for axis, size, is_last in zip(axes, sizes, _is_last(axes), strict=True):
        if _output_size(settings, size, widest(size), is_last) == size:
            warnings.warn(
                f"axis {axis} of size {size} can never be cropped with smoothness "
                f"{settings.smoothness:g} in the {settings.convention.name} convention: no stride "
                "makes the output smaller",
                NothingToCropWarning,
                stacklevel=3,
            )


def plan_resize(
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    output_sizes: tuple[int, ...],
    norm: str = "forward",
) -> Plan:
    """Return the plan of a spectral resize without a mask.

    The parameters are those of `plan_diff_stride`.
    """
    _option("norm", norm, NORMS)
    return _make_plan(FlatWindow(nyquist=2.0), 0.0, axes, sizes, output_sizes, norm, "auto")


def plan_pool(
    settings: Settings,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: tuple[float, ...],
) -> Plan:
    """Return the plan of spectral pooling with fixed strides.

    The parameters are those of `plan_diff_stride`; the strides are at least 1.
    """
    convention = settings.convention
    check_strides(strides, len(axes), least=1.0)
    if len(strides) == 1:
        strides *= len(axes)
    output_sizes = tuple(map(convention.pooled_size, sizes, strides, _is_last(axes)))
    convention.check_axes(sizes, output_sizes)
    return _make_plan(
        convention.pooling_window, 0.0, axes, sizes, output_sizes, settings.norm, settings.method
    )


def authors_strides(
    settings: Settings, sizes: tuple[int, ...], strides: tuple[float, ...]
) -> tuple[float, ...]:
    """Return strides raised to the floor, as the authors' layer writes them back.

    Parameters
    ----------
    settings : Settings
        Of the tensorflow convention.
    sizes : tuple of int
        N per axis.
    strides : tuple of float
        One per axis or one for all.
    """
    settings.convention.check_axes(sizes, None)
    floors = [settings.convention.floor(size, settings.smoothness) for size in sizes]
    if len(strides) == 1:
        floors = [max(floors)]
    return tuple(
        max(float(np.float32(stride)), floor) for stride, floor in zip(strides, floors, strict=True)
    )


def _make_plan(
    window: Window,
    smoothness: float,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    output_sizes: tuple[int, ...],
    norm: str,
    method: str,
    bounds: Sequence[Bounds] | None = None,
) -> Plan:
    shrinkage = math.prod(sizes) / math.prod(output_sizes)
    return Plan(
        window,
        smoothness,
        tuple(
            AxisPlan(
                axis=axis,
                size=sizes[i],
                output_size=output_sizes[i],
                is_last=is_last,
                bounds=Bounds() if bounds is None else bounds[i],
                use_fft=_use_fft(window, method, max(sizes[i], output_sizes[i])),
            )
            for i, (axis, is_last) in enumerate(zip(axes, _is_last(axes), strict=True))
        ),
        scale={"forward": 1.0, "ortho": math.sqrt(shrinkage), "backward": shrinkage}[norm],
    )


def _use_fft(window: Window, method: str, size: int) -> bool:
    return window.has_fft and (method == "fft" or (method == "auto" and size >= FFT_FROM_SIZE))
