"""The nominal convention, the default: a stride costs as much as in a strided convolution."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffstride_core.conventions.convention import LEAST_SMOOTHNESS, Convention
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import Mask, clipped_ramp, straight_through


@dataclass(frozen=True)
class Nominal(Convention):
    r"""A ramp inside the band of N/S samples, the band that the output holds.

    .. math:: v(k) = (q + 1/2 - |k|)/R, \quad q = N/(2S), \quad R = \max(\rho q, 1)

    where the smoothness :math:`\rho` is a fraction of the band. The stride refers to the outer edge
    of the ramp. Frequency 0 always passes.
    """

    name = "nominal"
    default_smoothness = 0.25

    def check_smoothness(self, smoothness: float) -> None:  # noqa: D102
        if not LEAST_SMOOTHNESS <= smoothness <= 1:
            raise ValueError(
                "smoothness must be above 0 and at most 1, as a fraction of the band, for "
                f"convention {self.name!r}, and from {LEAST_SMOOTHNESS:g} up, got {smoothness!r}"
            )

    def floor(self, size: int, smoothness: float) -> float:  # noqa: D102
        return 1.0

    def cutoff(self, size: int, smoothness: float, stride: float) -> float:  # noqa: D102
        return size / (2 * stride) + 0.5

    def output_size(self, size: int, smoothness: float, stride: float, is_last: bool) -> int:
        """Return M: N/S, rounded so that a stride slightly above an integer gives the same size.

        For integer strides up to 4, M is ceil(N/S), the size after a strided convolution with an
        odd kernel.
        """
        t = size / stride
        # With the guard, strides rounded to float32 give the same size as the exact ones.
        return max(1, min(size, math.floor(t + 0.75 + 1e-5 + 1e-7 * t)))

    def ramp_bins(self, size: int, smoothness: float, bounds: Bounds) -> int:  # noqa: D102
        widest = smoothness * size / (2 * bounds.apply(0.0))
        return math.ceil(max(widest, 1.0)) + 1  # one more, for rounding at the two ends

    def mask(  # noqa: D102
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        where = ops.xp.where
        used = straight_through(ops, stride, axis.bounds)
        k = ops.frequencies(min(axis.size, axis.output_size) // 2 + 1, like)
        q = axis.size / (2 * used)
        # Rounding must not decide between the two ramps. The tolerance is not a constant of the
        # module, for the reason given in `clipped_ramp`.
        is_wide = smoothness * q >= 1 - 1e-6
        dv_wide = (1 - 2 * k) / (smoothness * axis.size)
        v = where(is_wide, 1 / smoothness + dv_wide * used, q + 0.5 - k)
        # The window never touches frequency 0, not even if the band holds nothing else.
        v = where(k == 0, 2.0, v)
        return clipped_ramp(ops, v, where(is_wide, dv_wide, -axis.size / (2 * used**2)))
