"""The interface of a convention."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import ClassVar

from diffstride_core.arguments import Limits
from diffstride_core.plan import Bounds
from diffstride_core.window import FlatWindow, Window

# Beyond these limits, a product with a smoothness may leave the range of float32.
LEAST_SMOOTHNESS, MOST_SMOOTHNESS = 1e-30, 1e30


class Convention(Window):
    """A window whose width follows a stride.

    Attributes
    ----------
    name : str
    default_smoothness : float
    default_norm : str
    has_free_sizes : bool
        Whether output sizes may be raised to a multiple of a number.
    """

    name: ClassVar[str]
    default_smoothness: ClassVar[float]
    default_norm: ClassVar[str] = "forward"
    has_free_sizes: ClassVar[bool] = True

    def check_smoothness(self, smoothness: float) -> None:
        """Raise ValueError unless the smoothness is one the convention allows."""
        # A comparison: a compiler that traces the number as a symbol can follow it.
        if not LEAST_SMOOTHNESS <= smoothness <= MOST_SMOOTHNESS:
            raise ValueError(
                f"smoothness must be a finite number above 0 for convention {self.name!r}, from "
                f"{LEAST_SMOOTHNESS:g} to {MOST_SMOOTHNESS:g}, got {smoothness!r}"
            )

    def check_axis_count(self, axes: tuple[int, ...]) -> None:
        """Raise ValueError unless the convention can resize this many axes."""

    def check_axes(self, sizes: tuple[int, ...], output_sizes: tuple[int, ...] | None) -> None:
        """Raise ValueError unless the convention can resize the sizes to the output sizes."""

    @abstractmethod
    def floor(self, size: int, smoothness: float) -> float:
        """Return the least stride that keeps the window's edge inside the spectrum."""

    def bounds(self, size: int, smoothness: float, limits: Limits | None) -> Bounds:
        """Return the bounds of a stride on an axis of the given size.

        Parameters
        ----------
        size : int
            N.
        smoothness : float
        limits : (lower, upper) or None
            The user's limits. An entry that is None adds no limit. ``limits=None`` switches off all
            bounds except S >= 1.
        """
        if limits is None:
            return Bounds()
        lower, upper = limits
        return Bounds(
            floor=self.floor(size, smoothness),
            lower=1.0 if lower is None else max(1.0, lower),
            upper=max(1.0, size / 2 if upper is None else min(upper, size / 2)),
        )

    @abstractmethod
    def cutoff(self, size: int, smoothness: float, stride: float) -> float:
        """Return the frequency at which the mask without offset reaches 0."""

    def cutoff_derivative(self, size: int, smoothness: float, stride: float) -> float:
        """Return the derivative of the cutoff in N/(2S)."""
        return 1.0

    @abstractmethod
    def output_size(self, size: int, smoothness: float, stride: float, is_last: bool) -> int:
        """Return M for a stride within its bounds.

        Parameters
        ----------
        size : int
            N.
        smoothness : float
        stride : float
        is_last : bool
            Whether the axis is the last one.
        """

    def uncropped_size(self, size: int, is_last: bool) -> int:
        """Return M if the spectrum is masked but not cropped."""
        return size

    def pooled_size(self, size: int, stride: float, is_last: bool) -> int:
        """Return M of spectral pooling with a fixed stride: floor(N/S), at least 2."""
        return min(size, max(2, math.floor(size / stride + 1e-5)))

    @property
    def pooling_window(self) -> Window:
        """The window of spectral pooling with a fixed stride."""
        return FlatWindow()
