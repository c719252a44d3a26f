"""The paper's convention: Eqs. 3 and 4, turned into a real linear operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffstride_core.conventions.convention import Convention
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import Mask, clipped_ramp, straight_through


@dataclass(frozen=True)
class Paper(Convention):
    r"""Eqs. 3 and 4 of the paper, turned into a real linear operator.

    .. math:: v(k) = (R + N/(2S) + o - |k|)/R

    where R is the smoothness in frequencies, and o is 1 on the last axis and 0 elsewhere. The
    stride refers to the inner edge of the ramp. The output holds the ramp as well, so it is 2R
    samples longer than N/S.
    """

    name = "paper"
    default_smoothness = 4.0

    def floor(self, size: int, smoothness: float) -> float:  # noqa: D102
        return size / (size - smoothness) if size > smoothness else 1.0

    def cutoff(self, size: int, smoothness: float, stride: float) -> float:  # noqa: D102
        return size / (2 * stride) + smoothness

    def output_size(self, size: int, smoothness: float, stride: float, is_last: bool) -> int:
        """Return M: the smallest even size at whose Nyquist frequency the mask of Eq. 3 is 0."""
        q = self.cutoff(size, smoothness, stride)
        # With the guard, strides rounded to float32 give the same size as the exact ones.
        return min(size, 2 * math.ceil(q - 1e-5 - 1e-7 * q))

    def ramp_bins(self, size: int, smoothness: float, bounds: Bounds) -> int:  # noqa: D102
        return math.ceil(smoothness) + 1  # one more, for rounding at the two ends

    def mask(  # noqa: D102
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        used = straight_through(ops, stride, axis.bounds)
        k = ops.frequencies(min(axis.size, axis.output_size) // 2 + 1, like)
        v = (smoothness + axis.size / (2 * used) + float(axis.is_last) - k) / smoothness
        return clipped_ramp(ops, v, -axis.size / (2 * smoothness * used**2))
