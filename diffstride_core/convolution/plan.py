"""A convolution and the resize after it: what is decided before an array is touched."""

from __future__ import annotations

from dataclasses import dataclass, replace

from diffstride_core.plan import Plan


@dataclass(frozen=True, slots=True)
class Convolution:
    """A convolution of stride 1 that keeps the size of its input; strictly, a correlation.

    Attributes
    ----------
    in_channels, out_channels : int
    kernel : tuple of int
        Odd sizes, per spatial axis.
    dilation : tuple of int
        Per spatial axis.
    groups : int
    circular : bool
        Whether the map continues beyond its border with its other end, rather than with zeros.
    has_bias : bool
    """

    in_channels: int
    out_channels: int
    kernel: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    circular: bool = False
    has_bias: bool = False

    @property
    def rank(self) -> int:
        """The number of spatial axes."""
        return len(self.kernel)

    @property
    def offsets(self) -> tuple[tuple[int, ...], ...]:
        """The distance from the output's position at which each tap reads, per spatial axis."""
        return tuple(
            tuple(dilation * (tap - size // 2) for tap in range(size))
            for size, dilation in zip(self.kernel, self.dilation, strict=True)
        )

    @property
    def padding(self) -> tuple[int, ...]:
        """The number of samples read beyond either end of each spatial axis."""
        return tuple(own[-1] for own in self.offsets)


@dataclass(frozen=True, slots=True)
class ConvPlan:
    """A convolution and a resize of its spatial axes; only the values of the strides are open.

    Attributes
    ----------
    convolution : Convolution
    resize : Plan
        Resize of arrays in the layout that `channels_last` gives.
    channels_last : bool
        Whether arrays are (..., N_1, ..., N_d, C) rather than (..., C, N_1, ..., N_d).
    """

    convolution: Convolution
    resize: Plan
    channels_last: bool = False

    @property
    def by_matrices(self) -> Plan:
        """The resize of channels-last arrays, by matrices alone."""
        resize = self.resize.by_matrices
        shift = -min(axis.axis for axis in resize.axes) - self.convolution.rank - 1
        axes = tuple(replace(axis, axis=axis.axis + shift) for axis in resize.axes)
        return replace(resize, axes=axes)

    @property
    def spatial_order(self) -> tuple[int, ...]:
        """The indices of the resize's axes in the order of the array's axes and the kernel's."""
        axes = self.resize.axes
        return tuple(sorted(range(len(axes)), key=lambda i: axes[i].axis))
