"""Functions for JAX arrays, concrete or traced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, Unpack

import jax
from diffstride_backends.documentation import documented
from diffstride_backends.jax_backend import FUNCTIONAL
from diffstride_backends.jax_backend import plain_autodiff as plain_autodiff

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.settings import ConvolutionOptions, SizeOptions

Strides: TypeAlias = float | Sequence[float] | jax.Array


@documented("jax.Array")
def diff_stride(
    x: jax.Array,
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
) -> jax.Array:
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


@documented("jax.Array")
def conv_diff_stride(
    x: jax.Array,
    weight: jax.Array,
    strides: Strides,
    *,
    bias: jax.Array | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> jax.Array:
    return FUNCTIONAL.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("jax.Array")
def output_sizes(
    shape: Sequence[int], strides: Strides, **options: Unpack[SizeOptions]
) -> tuple[int, ...]:
    return FUNCTIONAL.output_sizes(shape, strides, **options)


@documented("jax.Array")
def spectral_resize(
    x: jax.Array,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> jax.Array:
    return FUNCTIONAL.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("jax.Array")
def spectral_pool(
    x: jax.Array,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> jax.Array:
    return FUNCTIONAL.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("jax.Array")
def complexity(strides_per_layer: Sequence[Strides]) -> jax.Array:
    return FUNCTIONAL.complexity(strides_per_layer)


@documented("jax.Array")
def authors_strides(
    shape: Sequence[int],
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float = 4.0,
) -> tuple[float, ...]:
    return FUNCTIONAL.authors_strides(shape, strides, axes=axes, smoothness=smoothness)
