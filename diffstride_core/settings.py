"""The settings of a layer: checked once, then turned into plans."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from diffstride_core.arguments import (
    METHODS,
    NORMS,
    Limits,
    checked_limits,
    integer,
    integers,
    option,
    real,
)
from diffstride_core.conventions import CONVENTIONS, DEFAULT_CONVENTION, Convention
from diffstride_core.plan import Bounds


class WindowOptions(TypedDict, total=False):
    """The options of a resize that do not depend on its axes; see `diff_stride`."""

    smoothness: float | None
    limits: Limits | None
    cropping: bool
    multiple_of: int
    norm: str | None
    convention: str


class ResizeOptions(WindowOptions, total=False):
    """All options of a resize; see `diff_stride`."""

    axes: int | Sequence[int]
    method: str


class SizeOptions(TypedDict, total=False):
    """The options of a resize that its output sizes depend on; see `diff_stride`."""

    axes: int | Sequence[int]
    smoothness: float | None
    limits: Limits | None
    cropping: bool
    multiple_of: int
    convention: str


class ConvolutionOptions(WindowOptions, total=False):
    """The options of a convolution and the resize after it; see `conv_diff_stride`."""

    dilation: int | Sequence[int]
    groups: int
    padding_mode: str
    channels_last: bool
    method: str


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything that a user chooses about a layer, except its strides.

    Attributes
    ----------
    axes : tuple of int
        As given. They must still be distinct once an array's rank is known.
    convention : Convention
    smoothness : float
        Width of the window's ramp: in frequencies, or as the convention defines it.
    limits : (lower, upper) or None
    cropping : bool
    norm, method : str
    size_offset : tuple of int
        Number added, per axis, to the output size that follows from the stride.
    multiple_of : int
        Output sizes are raised to a multiple of this number, but not above the input's size.
    """

    axes: tuple[int, ...]
    convention: Convention
    smoothness: float
    limits: Limits | None
    cropping: bool
    norm: str
    method: str
    size_offset: tuple[int, ...]
    multiple_of: int

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of `make_settings` that give these settings, as plain values.

        They can be written as JSON, and every framework's layers take them as keyword arguments.
        """
        offset = {"size_offset": list(self.size_offset)} if any(self.size_offset) else {}
        multiple = {"multiple_of": self.multiple_of} if self.multiple_of > 1 else {}
        return {
            "axes": list(self.axes),
            "smoothness": self.smoothness,
            "limits": None if self.limits is None else list(self.limits),
            "cropping": self.cropping,
            "norm": self.norm,
            "convention": self.convention.name,
            "method": self.method,
            **offset,
            **multiple,
        }

    def shown(self, usual_axes: tuple[int, ...] = (-2, -1)) -> list[str]:
        """Return the arguments as text: convention, smoothness, and what is not as usual."""
        shown = [f"convention={self.convention.name!r}", f"smoothness={self.smoothness:g}"]
        if self.limits != (None, None):
            shown.append(f"limits={self.limits}")
        if not self.cropping:
            shown.append("cropping=False")
        if self.norm != self.convention.default_norm:
            shown.append(f"norm={self.norm!r}")
        if self.method != "auto":
            shown.append(f"method={self.method!r}")
        if self.axes != usual_axes:
            shown.append(f"axes={self.axes}")
        if any(self.size_offset):
            shown.append(f"size_offset={self.size_offset}")
        if self.multiple_of > 1:
            shown.append(f"multiple_of={self.multiple_of}")
        return shown

    def layer_arguments(self, strides: Sequence[float]) -> dict[str, Any]:
        """Return the arguments of a layer with these settings and stride parameters.

        Parameters
        ----------
        strides : sequence of float
            One per axis or one for all. Strides below 1 count as 1, and are returned as 1.
        """
        return {
            "stride": [max(1.0, stride) for stride in strides],
            "shared": len(strides) < len(self.axes),
            **self.arguments(),
        }


def make_settings(
    *,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    multiple_of: int = 1,
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
    method: str = "auto",
    size_offset: int | Sequence[int] = 0,
) -> Settings:
    """Check the arguments of a layer and return them with the convention's defaults filled in.

    They are the arguments of `diff_stride`, and `size_offset`, which only layers have.

    Parameters
    ----------
    size_offset : int or sequence of int
        Number to add to the output size that follows from the stride: one per axis, or one for all.
        The result is kept between 1 and the input's size.

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value and what is allowed.
    """
    chosen = CONVENTIONS[option("convention", convention, tuple(CONVENTIONS))]
    smoothness = chosen.default_smoothness if smoothness is None else real("smoothness", smoothness)
    chosen.check_smoothness(smoothness)
    if not isinstance(cropping, bool):
        raise TypeError(f"cropping must be True or False, got {cropping!r}")
    norm = chosen.default_norm if norm is None else option("norm", norm, NORMS)
    option("method", method, METHODS)
    if method == "fft" and not chosen.has_fft:
        raise ValueError(
            f"method must be 'matmul' or 'auto' for convention {convention!r}, got 'fft'"
        )
    named = integers("axes", axes)
    if len(set(named)) != len(named):
        raise ValueError(f"axes must not name an axis twice, got {named}")
    chosen.check_axis_count(named)
    offsets = integers("size_offset", size_offset)
    if len(offsets) not in (1, len(named)):
        raise ValueError(
            f"size_offset must be one int or one per axis, that is {len(named)}, got {offsets}"
        )
    if any(offsets) and not cropping:
        raise ValueError(
            f"size_offset must be 0 with cropping=False, which keeps the sizes, got {offsets}"
        )
    if len(offsets) == 1:
        offsets *= len(named)
    return Settings(
        named,
        chosen,
        smoothness,
        checked_limits(limits),
        cropping,
        norm,
        method,
        offsets,
        _checked_multiple(multiple_of, cropping, chosen),
    )


def _checked_multiple(multiple_of: int, cropping: bool, convention: Convention) -> int:
    multiple = integer("multiple_of", multiple_of)
    if multiple < 1:
        raise ValueError(f"multiple_of must be at least 1, got {multiple}")
    if multiple > 1 and not cropping:
        raise ValueError(
            f"multiple_of must be 1 with cropping=False, which keeps the sizes, got {multiple}"
        )
    if multiple > 1 and not convention.has_free_sizes:
        raise ValueError(
            f"multiple_of must be 1 for convention {convention.name!r}, whose sizes are those of "
            f"the authors' code, got {multiple}"
        )
    return multiple


def declared_bounds(settings: Settings) -> Bounds:
    """Return the bounds that hold for any size: the user's limits and S >= 1."""
    lower, upper = settings.limits or (None, None)
    return Bounds(
        lower=1.0 if lower is None else max(1.0, lower),
        upper=math.inf if upper is None else max(1.0, upper),
    )
