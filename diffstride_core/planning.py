"""Making a plan from settings, sizes and strides."""

from __future__ import annotations

import math
import operator
import re
import sys
import warnings
from collections.abc import Sequence
from functools import partial, reduce

import numpy as np

from diffstride_core.arguments import (
    Limits,
    axis_sizes,
    check_strides,
    normalized_axes,
    within_float32,
)
from diffstride_core.plan import AxisPlan, Bounds, Plan, steps_of
from diffstride_core.settings import Settings
from diffstride_core.window import FlatWindow, Window

# Sizes from which two transforms are faster than a matrix product: along an array's last axis, and
# along the others. They lie between the crossings that benchmarks/engine_threshold.py found on
# processors with and without matrix instructions, so that neither kind loses much.
FFT_FROM_SIZE = 384
FFT_FROM_SIZE_BEFORE_LAST = 512
# A size with a prime factor above 13 takes two to three times as long to transform as others. Only
# the longer of an axis's two sizes counts, since its transform takes most of the time.
FFT_FROM_ROUGH_SIZE = 1024


class NothingToCropWarning(UserWarning):
    """An axis keeps its size at every stride: the layer filters it but never downsamples it."""


def plan_diff_stride(
    settings: Settings,
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    strides: tuple[float, ...] | None,
    *,
    shared: bool,
    output_sizes: tuple[int, ...] | None = None,
    warn: bool = True,
) -> Plan:
    """Return the plan of a layer.

    Parameters
    ----------
    settings : Settings
    axes : tuple of int
        The axes, from `normalized_axes`.
    sizes : tuple of int
        N per axis.
    strides : tuple of float, or None
        Values of the stride parameters, one per axis or one for all; None if they are not known.
    shared : bool
        Whether all axes share one stride.
    output_sizes : tuple of int, optional
        M per axis. By default, it follows from the strides.
    warn : bool
        Whether to warn. False if nothing is resized with the plan, or if the caller warns.

    Returns
    -------
    Plan

    Raises
    ------
    ValueError
        If the strides are not finite, if they are not known but decide the sizes, or if the
        convention cannot make the sizes.

    Warns
    -----
    NothingToCropWarning
        If no stride would change the size of an axis.
    """
    if strides is not None:
        check_strides(strides, len(axes))
    if output_sizes is not None and not settings.cropping:
        raise ValueError(
            f"sizes must not be given with cropping=False, which keeps them, got {output_sizes}"
        )
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
                "sizes must be given where the strides are traced, because traced strides have no "
                "values: call output_sizes(x.shape, strides, ...) outside the traced function, and "
                "pass the result to diff_stride(x, strides, sizes=..., ...) inside"
            )
        used = [bound.apply(strides[0 if shared else i]) for i, bound in enumerate(bounds)]
        output_sizes = tuple(
            map(partial(_output_size, settings), sizes, used, _is_last(axes), settings.size_offset)
        )
        if warn:
            for message in nothing_to_crop(settings, axes, sizes):
                warn_of_nothing_to_crop(message)
    return _make_plan(
        settings.convention,
        settings.smoothness,
        axes,
        sizes,
        output_sizes,
        settings.norm,
        settings.method,
        bounds,
        settings.size_offset,
    )


def _is_last(axes: tuple[int, ...]) -> list[bool]:
    return [i == len(axes) - 1 for i in range(len(axes))]


def _output_size(
    settings: Settings, size: int, stride: float, is_last: bool, size_offset: int
) -> int:
    own = settings.convention.output_size(size, settings.smoothness, stride, is_last)
    if not size_offset and settings.multiple_of == 1:
        return own
    raised = -(-max(1, own + size_offset) // settings.multiple_of) * settings.multiple_of
    return min(size, raised)


def size_jumps(
    settings: Settings, axis: AxisPlan, stride: float
) -> tuple[float | None, float | None]:
    """Return the strides at which the output size of an axis next changes.

    Parameters
    ----------
    settings : Settings
        Settings of the layer.
    axis : AxisPlan
        Axis of the layer's plan. It gives the size and the bounds of the stride.
    stride : float
        The parameter's value. It is clipped to the bounds first.

    Returns
    -------
    below : float or None
        The greatest stride below the clipped one with a larger output.
    above : float or None
        The least stride above it with a smaller output.

        Both are exact to the last bit of double precision, or None if there is no such stride
        within the bounds.

    Notes
    -----
    The strides are found by bisection: a convention gives its output size only as a function of the
    stride. The size never grows with the stride.
    """
    if not settings.cropping:
        return None, None
    used = axis.bounds.apply(stride)

    def size_at(stride: float) -> int:
        return _output_size(settings, axis.size, stride, axis.is_last, axis.size_offset)

    here = size_at(used)

    def search(end: float) -> float | None:
        if size_at(end) == here:
            return None
        same, other = _ordinal(used), _ordinal(end)
        while abs(other - same) > 1:
            middle = (same + other) // 2
            if size_at(_double(middle)) == here:
                same = middle
            else:
                other = middle
        return _double(other)

    return search(axis.bounds.apply(0.0)), search(axis.bounds.apply(math.inf))


# The bits of a positive double, read as an integer, count the doubles below it. Bisection of these
# integers ends with neighbouring doubles after 64 steps, even if a stride has no upper bound.
def _ordinal(stride: float) -> int:
    return int(np.float64(stride).view(np.int64))


def _double(ordinal: int) -> float:
    return float(np.int64(ordinal).view(np.float64))


def nothing_to_crop(settings: Settings, axes: tuple[int, ...], sizes: tuple[int, ...]) -> list[str]:
    """Return a message for each axis that no stride makes smaller."""
    return [
        f"axis {axis} of size {size} can never be cropped with smoothness "
        f"{settings.smoothness:g} in the {settings.convention.name} convention: no stride makes "
        "the output smaller"
        for axis, size, never in zip(axes, sizes, never_cropped(settings, sizes), strict=True)
        if never
    ]


def warn_of_nothing_to_crop(message: str) -> None:
    """Warn. A separate function, so that a backend can keep a compiler from following it."""
    warnings.warn(message, NothingToCropWarning, stacklevel=callers_level())


_INNER = re.compile(r"diffstride_(core|backends|numpy|cupy|torch|jax)\b|(torch|jax|flax|equinox)\b")
"""The packages between a user's call and a warning: ours, and those that call module methods."""


def callers_level() -> int:
    """Return the stack level of the user's code, counted from the function that calls this one."""
    frame, level = sys._getframe(1), 1
    while frame.f_back is not None and _INNER.match(frame.f_globals.get("__name__", "")):
        frame, level = frame.f_back, level + 1
    return level


def never_cropped(settings: Settings, sizes: tuple[int, ...]) -> tuple[bool, ...]:
    """Return, per axis, whether no stride makes the output smaller.

    Parameters
    ----------
    settings : Settings
    sizes : tuple of int
        N per axis.
    """
    built_in: Limits | None = None if settings.limits is None else (None, None)

    def keeps(size: int, is_last: bool, size_offset: int) -> bool:
        widest = settings.convention.bounds(size, settings.smoothness, built_in).upper
        return _output_size(settings, size, widest, is_last, size_offset) == size

    return tuple(map(keeps, sizes, _is_last(sizes), settings.size_offset))


def plan_resize(
    axes: tuple[int, ...],
    sizes: tuple[int, ...],
    output_sizes: tuple[int, ...],
    norm: str = "forward",
) -> Plan:
    """Return the plan of a spectral resize without a mask.

    For the parameters see `plan_diff_stride`. The norm is one of ``arguments.NORMS``.
    """
    return _make_plan(FlatWindow(nyquist=2.0), 0.0, axes, sizes, output_sizes, norm, "auto")


def plan_pool(settings: Settings, shape: Sequence[int], strides: tuple[float, ...]) -> Plan:
    """Return the plan of spectral pooling with fixed strides.

    Parameters
    ----------
    settings : Settings
    shape : sequence of int
        Shape of the input.
    strides : tuple of float
        One per axis or one for all, each at least 1.
    """
    convention = settings.convention
    axes = normalized_axes(settings.axes, shape)
    sizes = axis_sizes(axes, shape)
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
        Settings with the tensorflow convention.
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
        max(float(np.float32(within_float32(stride))), floor)
        for stride, floor in zip(strides, floors, strict=True)
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
    size_offset: tuple[int, ...] | None = None,
) -> Plan:
    bounds = [Bounds()] * len(axes) if bounds is None else bounds
    size_offset = (0,) * len(axes) if size_offset is None else size_offset
    # Ints even if a compiler traces a stride as a symbol: see `axis_sizes`.
    output_sizes = tuple(map(operator.index, output_sizes))
    shrinkage = math.prod(sizes) / math.prod(output_sizes)
    planned = tuple(
        AxisPlan(
            axis=axis,
            size=sizes[i],
            output_size=output_sizes[i],
            is_last=is_last,
            bounds=bounds[i],
            use_fft=_use_fft(window, method, axis, max(sizes[i], output_sizes[i])),
            ramp_bins=operator.index(window.ramp_bins(sizes[i], smoothness, bounds[i])),
            size_offset=size_offset[i],
        )
        for i, (axis, is_last) in enumerate(zip(axes, _is_last(axes), strict=True))
    )
    scale = {"forward": 1.0, "ortho": math.sqrt(shrinkage), "backward": shrinkage}[norm]
    return Plan(window, smoothness, planned, scale, steps_of(planned))


def _use_fft(window: Window, method: str, axis: int, size: int) -> bool:
    if method != "auto":
        return window.has_fft and method == "fft"
    if not window.has_fft or size < fft_from_size(axis):
        return False
    return size >= FFT_FROM_ROUGH_SIZE or is_smooth(size)


def fft_from_size(axis: int) -> int:
    """Return the size from which the method "auto" uses FFTs along a (negative) axis.

    Sizes that are not smooth are transformed from a larger size on.
    """
    return FFT_FROM_SIZE if axis == -1 else FFT_FROM_SIZE_BEFORE_LAST


def is_smooth(size: int) -> bool:
    """Return whether a size has no prime factor above 13, so that libraries transform it fast."""
    # A power of the product of these primes, high enough to contain each of them often enough.
    return pow(2 * 3 * 5 * 7 * 11 * 13, size.bit_length(), size) == 0
