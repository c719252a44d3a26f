"""Convolutions and poolings as kernels that slide over a map, and the sizes that they give."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, TypeAlias

from torch import nn

Size: TypeAlias = tuple[int, ...]

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


@dataclass(frozen=True)
class SlidingKernel:
    """A convolution or pooling: a kernel that moves over the map in steps of its stride.

    Attributes
    ----------
    kernel, stride, padding, dilation : tuple of int
        One number per axis. The padding is added at both ends.
    ceil : bool
        Whether a last, incomplete window counts.
    same : bool
        Whether it pads so much that N samples become N/S samples, rounded up.
    """

    kernel: Size
    stride: Size
    padding: Size
    dilation: Size
    ceil: bool = False
    same: bool = False

    def resize(self, size: Size) -> Size:
        """Return the output's size."""
        return tuple(map(self._resize, range(len(size)), size))

    def _resize(self, axis: int, n: int) -> int:
        stride, padding = self.stride[axis], self.padding[axis]
        if self.same:
            return -(-n // stride)
        room = n + 2 * padding - self.dilation[axis] * (self.kernel[axis] - 1) - 1
        m = (-(-room // stride) if self.ceil else room // stride) + 1
        # No window may begin in the padding at the end.
        return m - 1 if self.ceil and (m - 1) * stride >= n + padding else m

    def rate(self, axis: int) -> float:
        """Return the rate at which the output's size grows with the input's."""
        return 1 / self.stride[axis]

    @property
    def end_padding(self) -> Size:
        """Padding that each axis lacks at its end for windows of stride 1 to keep the size."""
        return tuple(
            dilation * (kernel - 1) - 2 * padding
            for kernel, padding, dilation in zip(
                self.kernel, self.padding, self.dilation, strict=True
            )
        )


def sliding_kernel_of(module: nn.Module) -> SlidingKernel | None:
    """Return the sliding kernel of a convolution or pooling module, or None for any other."""
    if isinstance(module, CONVOLUTIONS):
        padding = in_numbers(module.padding, len(module.kernel_size))
        if padding is None:
            return None
        return SlidingKernel(module.kernel_size, module.stride, padding, module.dilation)
    for rank, kinds in enumerate((_POOLS_1D, _POOLS_2D, _POOLS_3D), start=1):
        if isinstance(module, kinds):
            kernel, stride, padding, dilation = (
                per_axis(getattr(module, name, 1), rank)
                for name in ("kernel_size", "stride", "padding", "dilation")
            )
            return SlidingKernel(kernel, stride, padding, dilation, bool(module.ceil_mode))
    return None


def sliding_rule_of(module: nn.Module, size: Size, output_size: Size) -> SlidingKernel | None:
    """Return the sliding kernel of a module for which a pair of sizes is known, or None.

    A subclass may pad differently than its attributes say, for example as TensorFlow does.
    """
    sliding = sliding_kernel_of(module)
    for found in (sliding, sliding and replace(sliding, same=True)):
        if found is not None and found.resize(size) == output_size:
            return found
    return None


_POOLS_1D = (nn.AvgPool1d, nn.MaxPool1d)
_POOLS_2D = (nn.AvgPool2d, nn.MaxPool2d)
_POOLS_3D = (nn.AvgPool3d, nn.MaxPool3d)
SLIDING = (*CONVOLUTIONS, *_POOLS_1D, *_POOLS_2D, *_POOLS_3D)


def in_numbers(padding: Any, rank: int) -> Size | None:
    """Return a padding as numbers, or None for "same", which changes no size."""
    if isinstance(padding, str):
        return (0,) * rank if padding == "valid" else None
    return per_axis(padding, rank)


def per_axis(value: Any, rank: int) -> tuple[Any, ...]:
    """Return one value per axis, given one per axis or one for all."""
    values = tuple(value) if isinstance(value, tuple | list) else (value,)
    return values if len(values) == rank else values * rank
