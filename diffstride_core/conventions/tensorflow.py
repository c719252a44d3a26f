"""The tensorflow convention: what the authors' code computes, including its rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from diffstride_core.arguments import FLOAT32_MAX, Limits
from diffstride_core.bases import AxisBasis, Integers, Table, bin_counts
from diffstride_core.conventions.convention import Convention
from diffstride_core.ops import Array, ArrayOps
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import Mask, Term, Window, clamp, with_derivative_of


@dataclass(frozen=True)
class TensorFlow(Convention):
    """What the authors' TensorFlow code computes, in two dimensions.

    Strides, thresholds and mask are evaluated in float32 and in the order of that code, since
    rounding decides its ties and sizes. The first axis is the height of the code. Its mask is
    centred beside frequency 0. The second axis is the width, which is cropped to an even size. The
    inverse transform keeps the real part, which makes the map a sum of two separable operators.
    """

    name = "tensorflow"
    default_smoothness = 4.0
    default_norm = "backward"
    has_free_sizes = False
    has_fft = False

    def check_axis_count(self, axes: tuple[int, ...]) -> None:  # noqa: D102
        if len(axes) != 2:
            raise ValueError(
                f"axes must name exactly 2 axes, height and width, for convention {self.name!r}, "
                f"got {axes}"
            )

    def check_axes(self, sizes: tuple[int, ...], output_sizes: tuple[int, ...] | None) -> None:  # noqa: D102
        if sizes[1] < 2:
            raise ValueError(
                f"convention {self.name!r} needs a width of at least 2, got an axis of size "
                f"{sizes[1]}"
            )
        if output_sizes is not None and any(
            m > n for m, n in zip(output_sizes, sizes, strict=True)
        ):
            raise ValueError(
                f"output sizes must be at most {sizes} for convention {self.name!r}, which cannot "
                f"enlarge, got {output_sizes}"
            )

    def floor(self, size: int, smoothness: float) -> float:  # noqa: D102
        if size <= smoothness:
            return 1.0
        return float(np.float32(size) / np.float32(size - smoothness))

    def bounds(self, size: int, smoothness: float, limits: Limits | None) -> Bounds:  # noqa: D102
        lower, upper = (None, None) if limits is None else limits
        return Bounds(
            floor=1.0 if limits is None else self.floor(size, smoothness),
            lower=1.0 if lower is None else float(np.float32(lower)),
            upper=FLOAT32_MAX if upper is None else float(np.float32(upper)),
        )

    @staticmethod
    def _threshold(xp: Any, size: int, stride: Array, is_last: bool) -> tuple[Array, Array]:
        """Return size/S, and the half width of the pass band, for a stride in float32."""
        # Not size / stride: torch multiplies by the reciprocal there, which rounds differently.
        ratio = xp.full_like(stride, size) / stride
        return ratio, xp.where(ratio < 2, xp.full_like(ratio, 2), ratio) / 2 + float(is_last)

    def cutoff(self, size: int, smoothness: float, stride: float) -> float:  # noqa: D102
        used = np.asarray(stride, dtype=np.float32)
        _, threshold = self._threshold(np, size, used, is_last=False)
        return float(np.float32(smoothness) + threshold)

    def cutoff_derivative(self, size: int, smoothness: float, stride: float) -> float:  # noqa: D102
        return 1.0 if size / stride >= 2 else 0.0

    def output_size(self, size: int, smoothness: float, stride: float, is_last: bool) -> int:  # noqa: D102
        kept = math.ceil(self.cutoff(size, smoothness, stride))
        if is_last:
            return 2 * min(kept, size // 2)
        return 2 * min(kept, (size + 1) // 2) - size % 2

    def uncropped_size(self, size: int, is_last: bool) -> int:  # noqa: D102
        return 2 * (size // 2) if is_last else size

    def ramp_bins(self, size: int, smoothness: float, bounds: Bounds) -> int:  # noqa: D102
        return size  # the spectrum of a height has a ramp at each end

    def mask(  # noqa: D102
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        xp, bounds = ops.xp, axis.bounds
        most = float(xp.finfo(xp.float32).max)
        single = xp.astype(clamp(ops, stride, -most, most), xp.float32)
        raised = clamp(ops, single, bounds.floor, math.inf)
        used = clamp(ops, raised, bounds.lower, bounds.upper)
        ratio, threshold = self._threshold(xp, axis.size, used, axis.is_last)
        position = xp.astype(self._positions(ops, axis, like), xp.float32)
        # Divide in double precision and round: this is the float32 quotient. Compilers replace a
        # float32 division by a constant with a product, which rounds differently.
        above = xp.astype(smoothness + threshold - position, stride.dtype)
        raw = xp.astype(clamp(ops, above / smoothness, -1.0, 2.0), xp.float32)
        clipped = clamp(ops, raw, 0.0, 1.0)

        # The clips of the authors' code pass the gradient at their corners, including ties.
        active = (
            (raw >= 0)
            & (raw <= 1)
            & (ratio >= 2)
            & (raised >= bounds.lower)
            & (raised <= bounds.upper)
        )
        precise = with_derivative_of(ops, xp.astype(used, stride.dtype), stride)
        formula = axis.size / (2 * smoothness * precise) + xp.zeros_like(raw, dtype=stride.dtype)
        dmask = -axis.size / (2 * smoothness * precise**2)
        return Mask(
            value=with_derivative_of(ops, xp.astype(clipped, stride.dtype), formula, active),
            dmask=xp.where(active, dmask, xp.zeros_like(formula)),
        )

    @staticmethod
    def _positions(ops: ArrayOps, axis: AxisPlan, like: Array) -> Array:
        """Return the position of each bin on the ramp of the authors' code."""
        if axis.is_last:
            return ops.frequencies(axis.output_size // 2 + 1, like)
        # Rows k from the front: k, or k + 1 for an odd height. From the back: 0, 1, 2, ...
        positive = axis.output_size // 2
        front = ops.frequencies(positive, like) + axis.size % 2
        back = ops.frequencies(axis.output_size - positive, like)
        return ops.xp.concat([front, ops.xp.flip(back)])

    def terms(self, axes: tuple[AxisPlan, ...]) -> tuple[Term, ...]:  # noqa: D102
        return _two_terms(axes)

    def pooled_size(self, size: int, stride: float, is_last: bool) -> int:  # noqa: D102
        floor = int(size // stride)
        return max(2, floor if is_last else floor - floor % 2)

    @property
    def pooling_window(self) -> Window:  # noqa: D102
        return _TensorFlowPooling()


@dataclass(frozen=True)
class _TensorFlowPooling(Window):
    """The bins of the authors' code without a mask."""

    has_fft = False

    def mask(
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Array, like: Array
    ) -> Mask:
        count = axis.output_size // 2 + 1 if axis.is_last else axis.output_size
        return Mask(ops.xp.ones_like(ops.frequencies(count, like)), None)

    def terms(self, axes: tuple[AxisPlan, ...]) -> tuple[Term, ...]:
        return _two_terms(axes)


def _two_terms(axes: tuple[AxisPlan, ...]) -> tuple[Term, ...]:
    """Return the terms of the authors' real map y = A_r X G_r^T - A_i X G_i^T."""
    height, width = axes
    return tuple(
        (
            AxisBasis(height.size, height.output_size, _rows_kept, quadrature),
            AxisBasis(width.size, width.output_size, _columns_kept, quadrature),
        )
        for quadrature in (False, True)
    )


def _rows_kept(size: int, output_size: int) -> tuple[Integers, Integers, Table]:
    """Return the bins of the height: the first M//2 rows of the spectrum and the last M - M//2.

    The inverse transform gets them in this order, regardless of their frequencies.
    """
    positive = output_size // 2
    negative = output_size - positive
    rows = np.concatenate([np.arange(positive), np.arange(size - negative, size)])
    return rows, np.arange(output_size), np.ones(output_size)


def _columns_kept(size: int, output_size: int) -> tuple[Integers, Integers, Table]:
    """Return the bins of the width: the first M//2 + 1 columns of the half spectrum.

    Their frequencies are negated. This does not change the cosine operator, and gives the sine
    operator its sign in the sum of two terms.
    """
    k = np.arange(output_size // 2 + 1)
    return -k, -k, bin_counts(np, k, output_size)
