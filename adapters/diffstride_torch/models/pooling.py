"""What a stride becomes at one place of a network."""

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
        ``"conv"`` puts the stride, rounded to integers with halves up, into the first convolution
        of both branches; ``"spectral"`` pools with `SpectralPool2d`; ``"diffstride"``, the default,
        learns the stride, which is then the initial one, with one `DiffStride2d`.
    convention : {"nominal", "paper", "tensorflow"}
        Convention of the pooling layer; strided convolutions have none.
    smoothness : float, optional
    limits : (lower, upper) or None
        Width of the window's ramp and limits on the learnt stride, see `DiffStride2d`.
    """

    pooling: Pooling
    convention: str
    smoothness: float | None
    limits: Limits | None


class NetworkOptions(PoolingOptions, total=False):
    """What a network can be built with, besides `PoolingOptions`.

    Attributes
    ----------
    placement : {"before", "after"}
        Whether a block's layer comes before its first convolution, the default, or after it. The
        small stem's comes after in both.
    strides : sequence of float, pair of float or None
        Stride of each place, initial where it is learnt; `diffstride_torch.models` explains the
        order. None: no layer there.
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
    pooling: Pooling = "diffstride",
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
) -> tuple[tuple[int, int], nn.Module]:
    """Return the stride of a place's convolutions, and the layer that downsamples in their stead.

    Parameters
    ----------
    stride : float or pair of float, optional
        None: no downsampling.
    pooling, convention, smoothness, limits
        See `PoolingOptions`.

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
