"""Parts of the residual networks of both forms: the stem, and what the blocks have in common."""

from typing import Unpack, get_args

from torch import nn

from diffstride_core.arguments import option
from diffstride_core.convolution.checks import PLACEMENTS
from diffstride_torch.joining import PooledConvolution
from diffstride_torch.models.pooling import (
    Pair,
    Placement,
    PoolingOptions,
    StemKind,
    Stride,
    current_strides,
    downsampling,
    stride_pair,
)

STEM_KINDS: tuple[str, ...] = get_args(StemKind)


def convolution(
    in_channels: int, out_channels: int, size: int, stride: tuple[int, int] = (1, 1)
) -> nn.Conv2d:
    """Return a square convolution without bias that keeps the size if its stride is 1."""
    return nn.Conv2d(in_channels, out_channels, size, stride=stride, padding=size // 2, bias=False)


class Stem(PooledConvolution, nn.Conv2d):
    """The first convolution and the downsampling layer after it, in both placements.

    The stem is itself a convolution: it has the parameters of a plain one, and those of the layer.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    stride : float or pair of float, optional
        See `ResidualBlock`. Must be None for ``kind="imagenet"``.
    kind : {"small", "imagenet"}
        A 3x3 convolution, or a 7x7 one with a stride of 2 that nothing replaces.
    **options
        See `PoolingOptions`.

    Attributes
    ----------
    downsamples : bool
        Whether a stride was given.
    pool : torch.nn.Module
        The layer after the convolution; an identity if nothing is pooled.
    method : {"auto", "fused", "separate"}
        How to evaluate both; see `conv_diff_stride`. It is "auto" unless it is set.
    strides : pair of float
        Strides of height and width: those learnt so far, the fixed ones or the convolution's.

    Raises
    ------
    TypeError, ValueError
        If an argument is unknown, a stride is below 1 or not finite, or ``kind="imagenet"`` has
        one.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride | None = None,
        *,
        kind: StemKind = "small",
        **options: Unpack[PoolingOptions],
    ) -> None:
        option("kind", kind, STEM_KINDS)
        conv_stride, pool = downsampling(stride, **options)
        size = 3
        if kind == "imagenet":
            if stride is not None:
                raise ValueError(f"stride must be None for kind='imagenet', got {stride!r}")
            size, conv_stride = 7, (2, 2)
        super().__init__(
            in_channels, out_channels, size, stride=conv_stride, padding=size // 2, bias=False
        )
        self.downsamples = stride is not None
        self.pool = pool

    @property
    def strides(self) -> Pair:  # noqa: D102
        return current_strides(self, self.pool)


class ResidualBlock(nn.Module):
    """Base of the residual blocks: one downsampling layer for both of their branches.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    stride : float or pair of float, optional
        Stride of both axes, or of height and width. If None, the block does not downsample.
    project : bool
        Whether the shortcut has a pointwise convolution even if the channels do not change and the
        stride is 1.
    placement : {"before", "after"}
        Whether the layer comes before the first convolution, which then works on the smaller map,
        or after it. Strided convolutions have no layer to place.
    **options
        See `PoolingOptions`.

    Attributes
    ----------
    out_channels : int
        Channels of the output.
    downsamples : bool
        Whether a stride was given.
    pool : torch.nn.Module
        The layer that both branches share; an identity if nothing is pooled or the convolutions are
        strided.
    placement : {"before", "after"}
    method : {"auto", "fused", "separate"}
        How to evaluate the first convolution and a layer after it; see `conv_diff_stride`. It is
        "auto" unless it is set.
    strides : pair of float
        Strides of height and width: those learnt so far, the fixed ones or the convolutions'.

    Raises
    ------
    TypeError, ValueError
        If `pooling`, `placement` or `convention` is unknown, `smoothness` or `limits` is not
        allowed, or a stride is below 1 or not finite.
    """

    conv1: nn.Conv2d
    placement: Placement
    method: str = "auto"

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride | None = None,
        *,
        project: bool = False,
        placement: Placement = "before",
        **options: Unpack[PoolingOptions],
    ) -> None:
        option("placement", placement, PLACEMENTS)
        super().__init__()
        conv_stride, pool = downsampling(stride, **options)
        self.downsamples = stride is not None
        changes = stride is not None and stride_pair(stride) != (1.0, 1.0)
        self.out_channels = out_channels
        self.placement = placement
        self._add_layers(
            in_channels,
            out_channels,
            conv_stride,
            projects=project or changes or in_channels != out_channels,
        )
        self.pool = pool

    def _add_layers(
        self, in_channels: int, out_channels: int, stride: tuple[int, int], projects: bool
    ) -> None:
        """Register the convolutions and norms of the form. `conv1` has the stride."""
        raise NotImplementedError

    @property
    def strides(self) -> Pair:  # noqa: D102
        return current_strides(self.conv1, self.pool)


class ResidualNetwork(nn.Module):
    """Base of the residual networks."""

    def _initialise(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def places(self) -> list["Stem | ResidualBlock"]:
        """The stem and the blocks that have a stride of their own, from input to output."""
        return [
            module
            for module in self.modules()
            if isinstance(module, Stem | ResidualBlock) and module.downsamples
        ]

    @property
    def strides(self) -> list[Pair]:
        """Strides of height and width at each of the places.

        These are the strides learnt so far, the fixed ones, or those of the convolutions.
        """
        return [place.strides for place in self.places]
