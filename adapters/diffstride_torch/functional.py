"""Functions for PyTorch tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias, Unpack

import torch
from diffstride_backends.documentation import documented
from diffstride_backends.torch_backend import FUNCTIONAL
from diffstride_backends.torch_backend import plain_autodiff as plain_autodiff
from diffstride_backends.torch_private import check_not_traced

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.settings import ConvolutionOptions, SizeOptions

Strides: TypeAlias = float | Sequence[float] | torch.Tensor


@documented("torch.Tensor")
def diff_stride(
    x: torch.Tensor,
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
) -> torch.Tensor:
    check_not_traced()
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


@documented("torch.Tensor")
def conv_diff_stride(
    x: torch.Tensor,
    weight: torch.Tensor,
    strides: Strides,
    *,
    bias: torch.Tensor | None = None,
    sizes: Sequence[int] | None = None,
    **options: Unpack[ConvolutionOptions],
) -> torch.Tensor:
    check_not_traced()
    return FUNCTIONAL.conv_diff_stride(x, weight, strides, bias=bias, sizes=sizes, **options)


@documented("torch.Tensor")
def output_sizes(
    shape: Sequence[int], strides: Strides, **options: Unpack[SizeOptions]
) -> tuple[int, ...]:
    return FUNCTIONAL.output_sizes(shape, strides, **options)


@documented("torch.Tensor")
def spectral_resize(
    x: torch.Tensor,
    sizes: int | Sequence[int],
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str = "forward",
) -> torch.Tensor:
    check_not_traced()
    return FUNCTIONAL.spectral_resize(x, sizes, axes=axes, norm=norm)


@documented("torch.Tensor")
def spectral_pool(
    x: torch.Tensor,
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
) -> torch.Tensor:
    check_not_traced()
    return FUNCTIONAL.spectral_pool(x, strides, axes=axes, norm=norm, convention=convention)


@documented("torch.Tensor")
def complexity(strides_per_layer: Sequence[Strides]) -> torch.Tensor:
    check_not_traced()
    return FUNCTIONAL.complexity(strides_per_layer)


@documented("torch.Tensor")
def authors_strides(
    shape: Sequence[int],
    strides: Strides,
    *,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float = 4.0,
) -> tuple[float, ...]:
    return FUNCTIONAL.authors_strides(shape, strides, axes=axes, smoothness=smoothness)
