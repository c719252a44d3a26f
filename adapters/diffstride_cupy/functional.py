"""Functions for CuPy arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias, Unpack

from diffstride_backends.cupy_backend import FUNCTIONAL, WITH_PULLBACK
from diffstride_backends.documentation import documented
from diffstride_backends.protocol import Pullback

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.settings import ConvolutionOptions, ResizeOptions, SizeOptions

Strides: TypeAlias = Any
"""Numbers, or an array of NumPy or CuPy."""

Array: TypeAlias = Any


@documented("cupy.ndarray")
def diff_stride(
    x: Array,
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
) -> Array:
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


@documented("cupy.ndarray")
def conv_diff_stride(
    x: Array,
    weight: Array,
    strides: Strides,
    *,
    bias: Array | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> Array:
    return FUNCTIONAL.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("cupy.ndarray")
def output_sizes(
    shape: Sequence[int], strides: Strides, **options: Unpack[SizeOptions]
) -> tuple[int, ...]:
    return FUNCTIONAL.output_sizes(shape, strides, **options)


@documented("cupy.ndarray")
def spectral_resize(
    x: Array,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> Array:
    return FUNCTIONAL.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("cupy.ndarray")
def spectral_pool(
    x: Array,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> Array:
    return FUNCTIONAL.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("cupy.ndarray")
def complexity(strides_per_layer: Sequence[Strides]) -> Array:
    return FUNCTIONAL.complexity(strides_per_layer)


@documented("cupy.ndarray")
def authors_strides(
    shape: Sequence[int],
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float = 4.0,
) -> tuple[float, ...]:
    return FUNCTIONAL.authors_strides(shape, strides, axes=axes, smoothness=smoothness)


@documented("cupy.ndarray")
def diff_stride_with_pullback(
    x: Array,
    strides: Strides,
    *,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ResizeOptions],
) -> tuple[Array, Pullback[Array]]:
    return WITH_PULLBACK.diff_stride(x, strides, sizes=sizes, **options)


@documented("cupy.ndarray")
def conv_diff_stride_with_pullback(
    x: Array,
    weight: Array,
    strides: Strides,
    *,
    bias: Array | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> tuple[Array, Pullback[Array]]:
    return WITH_PULLBACK.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("cupy.ndarray")
def spectral_resize_with_pullback(
    x: Array,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> tuple[Array, Pullback[Array]]:
    return WITH_PULLBACK.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("cupy.ndarray")
def spectral_pool_with_pullback(
    x: Array,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> tuple[Array, Pullback[Array]]:
    return WITH_PULLBACK.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("cupy.ndarray")
def complexity_with_pullback(
    strides_per_layer: Sequence[Strides],
) -> tuple[Array, Pullback[Array]]:
    return WITH_PULLBACK.complexity(strides_per_layer)
