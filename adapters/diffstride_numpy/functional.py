"""Functions for NumPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, Unpack

from diffstride_backends.documentation import documented
from diffstride_backends.numpy_backend import FUNCTIONAL, WITH_PULLBACK
from diffstride_backends.protocol import HostArray, Pullback

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.settings import ConvolutionOptions, ResizeOptions, SizeOptions

Strides: TypeAlias = float | Sequence[float] | HostArray


@documented("numpy.ndarray")
def diff_stride(
    x: HostArray,
    strides: Strides,
    *,
    sizes: Sequence[int] | None = None,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    multiple_of: int = 1,
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
    method: str = "auto",
) -> HostArray:
    return FUNCTIONAL.diff_stride(
        x,
        strides,
        sizes=sizes,
        axes=axes,
        smoothness=smoothness,
        limits=limits,
        cropping=cropping,
        multiple_of=multiple_of,
        norm=norm,
        convention=convention,
        method=method,
    )


@documented("numpy.ndarray")
def conv_diff_stride(
    x: HostArray,
    weight: HostArray,
    strides: Strides,
    *,
    bias: HostArray | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> HostArray:
    return FUNCTIONAL.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("numpy.ndarray")
def output_sizes(
    shape: Sequence[int], strides: Strides, **options: Unpack[SizeOptions]
) -> tuple[int, ...]:
    return FUNCTIONAL.output_sizes(shape, strides, **options)


@documented("numpy.ndarray")
def spectral_resize(
    x: HostArray,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> HostArray:
    return FUNCTIONAL.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("numpy.ndarray")
def spectral_pool(
    x: HostArray,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> HostArray:
    return FUNCTIONAL.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("numpy.ndarray")
def complexity(strides_per_layer: Sequence[Strides]) -> HostArray:
    return FUNCTIONAL.complexity(strides_per_layer)


@documented("numpy.ndarray")
def authors_strides(
    shape: Sequence[int],
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float = 4.0,
) -> tuple[float, ...]:
    return FUNCTIONAL.authors_strides(shape, strides, axes=axes, smoothness=smoothness)


@documented("numpy.ndarray")
def diff_stride_with_pullback(
    x: HostArray,
    strides: Strides,
    *,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ResizeOptions],
) -> tuple[HostArray, Pullback[HostArray]]:
    return WITH_PULLBACK.diff_stride(x, strides, sizes=sizes, **options)


@documented("numpy.ndarray")
def conv_diff_stride_with_pullback(
    x: HostArray,
    weight: HostArray,
    strides: Strides,
    *,
    bias: HostArray | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> tuple[HostArray, Pullback[HostArray]]:
    return WITH_PULLBACK.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("numpy.ndarray")
def spectral_resize_with_pullback(
    x: HostArray,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> tuple[HostArray, Pullback[HostArray]]:
    return WITH_PULLBACK.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("numpy.ndarray")
def spectral_pool_with_pullback(
    x: HostArray,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> tuple[HostArray, Pullback[HostArray]]:
    return WITH_PULLBACK.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("numpy.ndarray")
def complexity_with_pullback(
    strides_per_layer: Sequence[Strides],
) -> tuple[HostArray, Pullback[HostArray]]:
    return WITH_PULLBACK.complexity(strides_per_layer)
