"""What a stride becomes at one place of a network."""

import math
from typing import Literal, TypeAlias, get_args

import numpy as np
from diffstride_backends.torch_backend import whole
from torch import nn

from diffstride_core.arguments import Limits, check_strides, host_strides, option
from diffstride_core.settings import make_settings
from diffstride_torch.modules import DiffStride2d, SpectralPool2d

Pooling = Literal["conv", "spectral", "diffstride"]
Placement = Literal["before", "after"]
Pair: TypeAlias = tuple[float, float]
Stride: TypeAlias = float | Pair


def check_pooling(
    pooling: str,
    convention: str,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
) -> None:
    """Raise TypeError or ValueError unless all arguments are allowed, whether used or not."""
    option("pooling", pooling, get_args(Pooling))
    make_settings(axes=(-2, -1), convention=convention, smoothness=smoothness, limits=limits)


def stride_pair(stride: Stride, name: str = "stride") -> Pair:
    """Return the strides of height and width, given as one number or two.

    Raises
    ------
    TypeError, ValueError
        Naming the argument, unless they are finite numbers of at least 1.
    """
    values = np.ravel(host_strides(stride, name)).tolist()
    check_strides(values, 2, least=1.0, name=name)
    return values[0], values[-1]


def downsampling(
    stride: Stride | None,
    pooling: Pooling,
    convention: str,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
) -> tuple[tuple[int, int], nn.Module]:
    """Return the stride of a place's convolutions, and the layer that downsamples in their stead.

    Parameters
    ----------
    stride : float or pair of float, optional
        None: no downsampling.
    pooling, convention, smoothness, limits
        As for `PreActBlock`.

    Returns
    -------
    conv_stride : pair of int
    pool : torch.nn.Module
        An identity where nothing is pooled.

    Raises
    ------
    TypeError, ValueError
        For arguments that `check_pooling` or `stride_pair` refuses.
    """
    check_pooling(pooling, convention, smoothness, limits)
    if stride is None:
        return (1, 1), nn.Identity()
    height, width = stride_pair(stride)
    if pooling == "conv":
        return (math.floor(height + 0.5), math.floor(width + 0.5)), nn.Identity()
    if pooling == "spectral":
        return (1, 1), SpectralPool2d((height, width), convention=convention)
    return (1, 1), DiffStride2d(
        (height, width), convention=convention, smoothness=smoothness, limits=limits
    )


def current_strides(conv: nn.Conv2d, pool: nn.Module) -> Pair:
    """Return the strides of height and width: those learnt so far, the fixed ones or the conv's."""
    if isinstance(pool, DiffStride2d):
        height, width = whole(pool.strides.detach()).expand(2).tolist()
    elif isinstance(pool, SpectralPool2d):
        height, width = pool.stride
    else:
        height, width = conv.stride
    return float(height), float(width)
