"""How a network downsamples at one place."""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias, TypedDict, get_args

import numpy as np
from diffstride_backends.torch_backend import whole
from torch import nn

from diffstride_core.arguments import Limits, check_strides, host_strides, option
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.settings import make_settings
from diffstride_torch.modules import DiffStride2d, SpectralPool2d

Pooling = Literal["conv", "spectral", "diffstride"]
Placement = Literal["before", "after"]
StemKind = Literal["small", "imagenet"]
Pair: TypeAlias = tuple[float, float]
Stride: TypeAlias = float | Pair


class PoolingOptions(TypedDict, total=False):
    """How a place downsamples.

    Attributes
    ----------
    pooling : {"conv", "spectral", "diffstride"}
        ``"conv"`` rounds the stride to integers, with halves rounded up, and uses it in the first
        convolution of both branches. ``"spectral"`` pools with `SpectralPool2d`. ``"diffstride"``,
        the default, learns the stride with one `DiffStride2d`, starting at the given stride.
    convention : {"nominal", "paper", "tensorflow"}
        Convention of the pooling layer. Strided convolutions have none.
    smoothness : float, optional
        Width of the window's ramp; see `DiffStride2d`.
    limits : (lower, upper) or None
        Limits on the learnt stride; see `DiffStride2d`.
    """

    pooling: Pooling
    convention: str
    smoothness: float | None
    limits: Limits | None


class NetworkOptions(PoolingOptions, total=False):
    """Options of a network, besides `PoolingOptions`.

    Attributes
    ----------
    placement : {"before", "after"}
        Whether a block's layer comes before its first convolution (the default) or after it. The
        layer of the small stem comes after its convolution in both cases.
    strides : sequence of float, pair of float or None
        Stride of each place; the initial stride if it is learnt. None stands for no layer.
        `diffstride_torch.models` explains the order.
    stem : {"small", "imagenet"}
        A 3x3 convolution, or a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2.
    channels : sequence of int
        Channels of the stem and of each stage.
    in_channels : int
        Channels of the images.
    num_classes : int
        Number of outputs.
    """

    placement: Placement
    strides: Sequence[Stride | None] | None
    stem: StemKind
    channels: Sequence[int]
    in_channels: int
    num_classes: int


def check_pooling(
    pooling: str = "diffstride",
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
) -> None:
    """Raise TypeError or ValueError if an argument is not allowed, even if it is not used."""
    option("pooling", pooling, get_args(Pooling))
    make_settings(axes=(-2, -1), convention=convention, smoothness=smoothness, limits=limits)


def stride_pair(stride: Stride, name: str = "stride") -> Pair:
    """Return the strides of height and width, given as one number or two.

    Raises
    ------
    TypeError, ValueError
        If they are not finite numbers of at least 1. The message names the argument.
    """
    values = np.ravel(host_strides(stride, name)).tolist()
    check_strides(values, 2, least=1.0, name=name)
    return values[0], values[-1]


def downsampling(
    stride: Stride | None,
    pooling: Pooling = "diffstride",
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
) -> tuple[tuple[int, int], nn.Module]:
    """Return the stride of the convolutions at a place, and the layer that downsamples instead.

    Parameters
    ----------
    stride : float or pair of float, optional
        The stride, or None for no downsampling.
    pooling, convention, smoothness, limits
        See `PoolingOptions`.

    Returns
    -------
    conv_stride : pair of int
    pool : torch.nn.Module
        The layer, or an identity if nothing is pooled.

    Raises
    ------
    TypeError, ValueError
        If `check_pooling` or `stride_pair` refuses an argument.
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
    """Return the strides of height and width: learnt so far, fixed, or those of the convolution."""
    if isinstance(pool, DiffStride2d):
        height, width = whole(pool.strides.detach()).expand(2).tolist()
    elif isinstance(pool, SpectralPool2d):
        height, width = pool.stride
    else:
        height, width = conv.stride
    return float(height), float(width)
