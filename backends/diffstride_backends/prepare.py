"""From a user's arguments to a plan and arrays: every call is checked once and planned once."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, TypeAlias

from diffstride_backends.protocol import ArrayT, Backend, HostStrides
from diffstride_core.arguments import (
    axis_sizes,
    check_stride_count,
    check_strides,
    checked_sizes,
    host_strides,
    normalized_axes,
)
from diffstride_core.conventions import CONVENTIONS, DEFAULT_CONVENTION
from diffstride_core.convolution.checks import checked_convolution, spatial_axes
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.plan import Plan
from diffstride_core.planning import nothing_to_crop, plan_diff_stride, warn_of_nothing_to_crop
from diffstride_core.settings import make_settings

Options: TypeAlias = Mapping[str, Any]


def prepare(
    backend: Backend[ArrayT],
    x: ArrayT,
    strides: Any,
    sizes: Sequence[int] | None,
    options: Options,
) -> tuple[Plan, ArrayT]:
    """Check the arguments of `diff_stride`, and return the plan and the strides.

    Parameters
    ----------
    backend : Backend
    x : array
    strides : float, sequence of float, or array of shape (), (1,) or (d,)
    sizes : sequence of int or None
    options : dict
        `ResizeOptions`.

    Returns
    -------
    plan : Plan
    strides : array, shape (), (1,) or (d,)
        The strides, on the device of `x`.

    Raises
    ------
    TypeError, ValueError
        See `diff_stride`.
    """
    backend.check_input(x)
    shape: tuple[int, ...] = tuple(x.shape)  # type: ignore[attr-defined]
    checked = checked_strides(backend, strides, like=x)
    plan = planned(backend, shape, checked, sizes, options)
    if isinstance(checked, HostStrides):
        return plan, backend.strides_from_host(checked, x)
    return plan, backend.unshared(checked)


def prepare_convolution(
    backend: Backend[ArrayT],
    x: ArrayT,
    weight: ArrayT,
    strides: Any,
    bias: ArrayT | None,
    sizes: Sequence[int] | None,
    options: Options,
    *,
    channels_last: bool,
    **convolution: Any,
) -> tuple[ConvPlan, ArrayT, ArrayT, ArrayT, ArrayT | None]:
    """Check the arguments of `conv_diff_stride`, and return the plan and the arrays.

    Parameters
    ----------
    backend, x, weight, strides, bias, sizes
        See `conv_diff_stride`.
    options : dict
        `WindowOptions`.
    channels_last : bool
    **convolution
        Other options of `checked_convolution`.

    Returns
    -------
    plan : ConvPlan
    x, weight, strides, bias : array
        All but the strides are in the dtype to convolve in.

    Raises
    ------
    TypeError, ValueError
        See `conv_diff_stride`.
    """
    x, weight, bias = convolved_arrays(backend, x, weight, bias)
    shape: tuple[int, ...] = tuple(x.shape)  # type: ignore[attr-defined]
    conv = checked_convolution(
        shape,
        weight.shape,  # type: ignore[attr-defined]
        channels_last=channels_last,
        bias_shape=None if bias is None else bias.shape,  # type: ignore[attr-defined]
        **convolution,
    )
    axes = spatial_axes(conv.rank, channels_last=channels_last)
    checked = checked_strides(backend, strides, like=x)
    resize = planned(backend, shape, checked, sizes, {**options, "axes": axes})
    plan = ConvPlan(conv, resize, channels_last)
    return plan, x, weight, as_array(backend, checked, like=x), bias


def convolved_arrays(
    backend: Backend[ArrayT],
    x: ArrayT,
    weight: ArrayT,
    bias: ArrayT | None,
    prefix: str = "",
) -> tuple[ArrayT, ArrayT, ArrayT | None]:
    """Check the arrays of a convolution, and return them in the dtype to convolve in.

    Parameters
    ----------
    backend : Backend
    x, weight, bias : array
    prefix : str
        Prefix of the names of weight and bias in messages.

    Raises
    ------
    TypeError, ValueError
        If the arrays are not real floating point, of one dtype and on one device.
    """
    x, weight, bias = backend.as_convolved(x, weight, bias)
    backend.check_input(x)
    backend.check_input(weight, f"{prefix}weight", x)
    if bias is not None:
        backend.check_input(bias, f"{prefix}bias", x)
    return x, weight, bias


def checked_strides(backend: Backend[Any], strides: Any, *, like: Any = None) -> Any:
    """Check strides, and return them as an array of the framework or as `HostStrides`."""
    if backend.is_array(strides):
        backend.check_strides(strides, like)
    else:
        strides = _on_host(strides)
    if (rank := len(strides.shape)) > 1:
        raise ValueError(f"strides must have at most 1 dimension, got {rank}")
    return strides


def as_array(
    backend: Backend[ArrayT], checked: ArrayT | HostStrides, *, like: ArrayT | None = None
) -> ArrayT:
    """Return strides from `checked_strides` as an array that nobody else writes to."""
    if isinstance(checked, HostStrides):
        return backend.strides_from_host(checked, like)
    return backend.unshared(checked)


def values_of(backend: Backend[ArrayT], checked: ArrayT | HostStrides) -> tuple[float, ...] | None:
    """Return the values of strides, None if they are traced; numbers need no transfer."""
    return checked.values if isinstance(checked, HostStrides) else backend.host_values(checked)


def concrete_values(backend: Backend[ArrayT], strides: Any) -> tuple[float, ...]:
    """Return the values of strides that alone decide the sizes.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse the strides, or if they are traced.
    """
    values = values_of(backend, checked_strides(backend, strides))
    if values is None:
        raise ValueError("strides must have concrete values here, got traced ones")
    return values


def planned(
    backend: Backend[Any],
    shape: tuple[int, ...],
    strides: Any,
    sizes: Sequence[int] | None,
    options: Options,
) -> Plan:
    """Return the plan of `diff_stride`, kept from an earlier call with the same arguments.

    Parameters
    ----------
    backend : Backend
    shape : tuple of int
    strides : array or HostStrides
        From `checked_strides`.
    sizes : sequence of int or None
    options : dict
        `ResizeOptions`.
    """
    # Reading strides can cost a device transfer. If the sizes are given, it would decide nothing.
    values = None
    if sizes is None:
        is_on_host = isinstance(strides, HostStrides)
        values = strides.values if is_on_host else backend.host_values(strides)
    entries = int(strides.shape[0]) if strides.shape else 1
    items = (*options.items(), ("sizes", sizes))
    types = None if backend.is_compiling() else _plain_types(items)
    if types is None:
        plan, messages = _plan(items, shape, values, entries)
    else:
        # The name may stand for another convention later.
        convention = CONVENTIONS.get(options.get("convention", DEFAULT_CONVENTION))
        plan, messages = _kept_plan(items, shape, values, entries, types, id(convention))
    for message in messages:
        warn_of_nothing_to_crop(message)
    return plan


def _plan(
    items: Iterable[tuple[str, Any]],
    shape: tuple[int, ...],
    values: tuple[float, ...] | None,
    entries: int,
) -> tuple[Plan, Sequence[str]]:
    """Return the plan for some options and sizes, and the messages of its warnings."""
    options = dict(items)
    sizes = options.pop("sizes")
    settings = make_settings(**options)
    check_stride_count(entries, len(settings.axes))
    axes = normalized_axes(settings.axes, shape)
    given = None if sizes is None else checked_sizes(sizes, len(axes))
    own = axis_sizes(axes, shape)
    plan = plan_diff_stride(
        settings, axes, own, values, shared=entries == 1, output_sizes=given, warn=False
    )
    decided = given is None and settings.cropping
    return plan, nothing_to_crop(settings, axes, own) if decided else ()


@lru_cache(maxsize=1024)
def _kept_plan(
    items: tuple[tuple[str, Any], ...],
    shape: tuple[int, ...],
    values: tuple[float, ...] | None,
    entries: int,
    *_: Hashable,
) -> tuple[Plan, Sequence[str]]:
    return _plan(items, shape, values, entries)


_PLAIN = frozenset({int, float, bool, str, type(None)})


def _plain_types(items: Iterable[tuple[str, Any]]) -> tuple[Any, ...] | None:
    """Return the types of all values; None if one may change, or may equal a different value.

    The types matter because numbers of different types are equal, but not allowed everywhere.
    """
    types: list[Any] = []
    for _, value in items:
        kind = type(value)
        if kind is tuple:
            kinds = tuple(map(type, value))
            if not _PLAIN.issuperset(kinds):
                return None
            types.append(kinds)
        elif kind in _PLAIN:
            types.append(kind)
        else:
            return None
    return tuple(types)


_ORDINARY = 2.0**100
"""Every framework can hold numbers whose magnitude is below this one."""


def _on_host(strides: Any) -> HostStrides:
    """Return strides that are not an array of the framework; all of them must be finite."""
    if type(strides) is float and -_ORDINARY < strides < _ORDINARY:
        return HostStrides((strides,), (), "float64")
    several = isinstance(strides, (list, tuple))
    numbers = tuple(strides) if several else (strides,)
    # Without NumPy: compilers would follow it into its arrays, and may see the numbers as symbols.
    if all(map(_is_ordinary, numbers)):
        shape = (len(numbers),) if several else ()
        return HostStrides(tuple(map(float, numbers)), shape, "float64")
    checked = HostStrides.of(host_strides(strides))
    check_strides(checked.values, len(checked.values))
    return checked


def _is_ordinary(number: Any) -> bool:
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return is_number and -_ORDINARY < number < _ORDINARY
