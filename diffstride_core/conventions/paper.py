"""The paper's convention: Eqs. 3 and 4, made a real linear operator."""

from __future__ import annotations

import math
from dataclasses import dataclass

from diffstride_core.conventions.convention import Convention
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import Mask, clipped_ramp, straight_through


@dataclass(frozen=True)
class Paper(Convention):
    r"""Eqs. 3 and 4 of the paper, made a real linear operator.

    .. math:: v(k) = (R + N/(2S) + o - |k|)/R

    with R the smoothness in frequencies, o = 1 on the last axis and 0 elsewhere. The stride counts
    to the inner edge of the ramp, which the output holds as well: it is 2R samples longer than N/S.
    """

    name = "paper"
    default_smoothness = 4.0

    def floor(self, size: int, smoothness: float) -> float:  # noqa: D102
        return size / (size - smoothness) if size > smoothness else 1.0

    def cutoff(self, size: int, smoothness: float, stride: float) -> float:  # noqa: D102
        return size / (2 * stride) + smoothness

    def output_size(self, size: int, smoothness: float, stride: float, is_last: bool) -> int:
        """Return M: the smallest even size with nothing that Eq. 3 leaves alive at its Nyquist."""
        q = self.cutoff(size, smoothness, stride)
        # The guard makes strides rounded to float32 give the size of the exact ones.
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
