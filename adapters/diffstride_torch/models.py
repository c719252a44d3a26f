"""Pre-activation residual networks whose downsampling can be swapped.

The strided block follows Fig. 3 of Riad et al. (2022): a stride-1 convolution and then the
downsampling layer on the main branch, the same downsampling layer on the shortcut.
"""

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from diffstride_torch.modules import DiffStride2d, SpectralPool2d

__all__ = ["Pooling", "PreActBlock", "PreActResNet", "Stem", "preact_resnet18", "small_resnet"]

Pooling = Literal["conv", "spectral", "diffstride"]
Stride = float | tuple[float, float]


def _stride_pair(stride: Stride) -> tuple[float, float]:
    height, width = stride if isinstance(stride, tuple) else (stride, stride)
    for value in (height, width):
        if not 1 <= value < math.inf:
            raise ValueError(f"stride: {value} is not allowed, give a finite number of at least 1")
    return float(height), float(width)


class _Downsampling(nn.Module):
    """What a stem and a block share: a stride, and the convolution's stride or layer it becomes.

    Attributes
    ----------
    conv_stride : pair of int
        Stride of the module's first convolutions.
    pool : torch.nn.Module
        The layer after them; an identity where nothing is pooled or the convolutions are strided.
    """

    def __init__(self, stride: Stride | None, pooling: Pooling, convention: str) -> None:
        super().__init__()
        if pooling not in get_args(Pooling):
            raise ValueError(f"pooling: {pooling!r} is not one of {', '.join(get_args(Pooling))}")
        self.conv_stride = (1, 1)
        self.pool: nn.Module = nn.Identity()
        self._fixed_strides = (1.0, 1.0)
        if stride is None:
            return
        strides = _stride_pair(stride)
        if pooling == "conv":
            self.conv_stride = (math.floor(strides[0] + 0.5), math.floor(strides[1] + 0.5))
            strides = (float(self.conv_stride[0]), float(self.conv_stride[1]))
        elif pooling == "spectral":
            self.pool = SpectralPool2d(strides)
        else:
            self.pool = DiffStride2d(strides, convention=convention)
        self._fixed_strides = strides

    @property
    def strides(self) -> tuple[float, float]:
        """Strides of height and width: the convolutions', the fixed ones or those learnt so far."""
        if isinstance(self.pool, DiffStride2d):
            height, width = self.pool.strides.tolist()
            return height, width
        return self._fixed_strides


class Stem(_Downsampling):
    """A 3x3 convolution and its downsampling, without normalisation or nonlinearity.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    stride, pooling, convention
        As for `PreActBlock`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride | None = None,
        *,
        pooling: Pooling = "diffstride",
        convention: str = "paper",
    ) -> None:
        super().__init__(stride, pooling, convention)
        self.conv = nn.Conv2d(
            in_channels, out_channels, 3, stride=self.conv_stride, padding=1, bias=False
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the stem to images of shape (N, in_channels, H, W)."""
        return self.pool(self.conv(x))


class PreActBlock(_Downsampling):
    """Pre-activation residual block with one shared downsampling layer for both of its branches.

    With ``h = relu(norm1(x))`` the block computes
    ``shortcut(pool(h)) + conv2(relu(norm2(pool(conv1(h)))))``. The shortcut's pointwise convolution
    has no bias and so commutes with the linear ``pool``; it comes second because it is cheaper on
    the smaller map. A block without a stride and with as many output as input channels keeps its
    input as the shortcut.

    Parameters
    ----------
    in_channels, out_channels : int
        Channels of the input and of the output.
    stride : float or pair of float, optional
        Downsampling of both axes, or of height and width. None: the block does not downsample.
    pooling : {"conv", "spectral", "diffstride"}
        ``"conv"`` puts the stride, rounded to integers with halves up, into the first convolution
        of both branches; ``"spectral"`` pools with `SpectralPool2d`; ``"diffstride"`` learns the
        stride, which is then the initial one, with one `DiffStride2d`.
    convention : {"paper", "relative"}
        Convention of `DiffStride2d`; the other two kinds of pooling do not use it.

    Attributes
    ----------
    out_channels : int
        Channels of the output.
    pool : torch.nn.Module
        The layer both branches share; an identity where nothing is pooled or the convolutions are
        strided.
    strides : pair of float
        Strides of height and width: the convolutions', the fixed ones or those learnt so far.

    Raises
    ------
    ValueError
        If `pooling` is unknown, or a stride is below 1 or not finite.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: Stride | None = None,
        *,
        pooling: Pooling = "diffstride",
        convention: str = "paper",
    ) -> None:
        super().__init__(stride, pooling, convention)
        self.out_channels = out_channels
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(
            in_channels, out_channels, 3, stride=self.conv_stride, padding=1, bias=False
        )
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = (
            None
            if stride is None and in_channels == out_channels
            else nn.Conv2d(in_channels, out_channels, 1, stride=self.conv_stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, H, W)
            Feature maps.

        Returns
        -------
        Tensor, shape (N, out_channels, H', W')
            Feature maps of the size that the downsampling gives, else of the input's size.
        """
        h = torch.relu(self.norm1(x))
        skip = x if self.shortcut is None else self.shortcut(self.pool(h))
        h = torch.relu(self.norm2(self.pool(self.conv1(h))))
        return skip + self.conv2(h)


class PreActResNet(nn.Module):
    """Pre-activation residual network: stem, blocks, norm, global average, linear classifier.

    Parameters
    ----------
    stem : torch.nn.Module
        First layer, without normalisation or nonlinearity: the blocks begin with theirs.
    blocks : sequence of PreActBlock
        Blocks in order, each with as many input channels as the one before it has output channels.
    num_classes : int
        Number of outputs.
    """

    def __init__(self, stem: nn.Module, blocks: Sequence[PreActBlock], num_classes: int) -> None:
        super().__init__()
        self.stem = stem
        self.blocks = nn.Sequential(*blocks)
        self.norm = nn.BatchNorm2d(blocks[-1].out_channels)
        self.classifier = nn.Linear(blocks[-1].out_channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @property
    def strides(self) -> list[tuple[float, float]]:
        """Strides of the blocks in order, see `PreActBlock`."""
        return [block.strides for block in self.blocks if isinstance(block, PreActBlock)]

    def forward(self, x: Tensor) -> Tensor:
        """Classify images.

        Parameters
        ----------
        x : Tensor, shape (N, in_channels, H, W)
            Images.

        Returns
        -------
        Tensor, shape (N, num_classes)
            Logits.
        """
        h = torch.relu(self.norm(self.blocks(self.stem(x))))
        return self.classifier(h.mean(dim=(-2, -1)))


def small_resnet(
    *,
    pooling: Pooling = "diffstride",
    strides: Sequence[Stride] = (2.0, 2.0, 2.0),
    convention: str = "paper",
    channels: Sequence[int] = (8, 16, 32, 64),
    in_channels: int = 1,
    num_classes: int = 10,
) -> PreActResNet:
    """Build a narrow residual network of downsampling blocks, for small images.

    Parameters
    ----------
    pooling : {"conv", "spectral", "diffstride"}
        How the blocks downsample, see `PreActBlock`.
    strides : sequence of float or of pair of float
        Stride of each block, initial where it is learnt.
    convention : {"paper", "relative"}
        Convention of `DiffStride2d`.
    channels : sequence of int
        Channels of the stem and then of each block: one more entry than `strides`.
    in_channels : int
        Channels of the images.
    num_classes : int
        Number of outputs.

    Returns
    -------
    PreActResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    ValueError
        If `strides` is empty, `channels` does not fit it, or `PreActBlock` refuses an entry.

    Examples
    --------
    >>> import torch
    >>> net = small_resnet(pooling="diffstride", strides=(3.0, (2.0, 2.5), 3.0))
    >>> net(torch.zeros(4, 1, 28, 28)).shape
    torch.Size([4, 10])
    """
    if not strides:
        raise ValueError("strides: at least one block is needed")
    if len(channels) != len(strides) + 1:
        raise ValueError(
            f"channels: {len(channels)} entries for {len(strides)} strides, "
            f"needed is one for the stem and one for each stride, {len(strides) + 1} in all"
        )
    blocks = [
        PreActBlock(inputs, outputs, stride, pooling=pooling, convention=convention)
        for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides, strict=True)
    ]
    stem = nn.Conv2d(in_channels, channels[0], 3, padding=1, bias=False)
    return PreActResNet(stem, blocks, num_classes)


def preact_resnet18(
    *,
    pooling: Pooling = "diffstride",
    strides: Sequence[Stride | None] = (1.0, None, 2.0, 2.0, 2.0),
    convention: str = "paper",
    channels: Sequence[int] = (64, 64, 128, 256, 512),
    in_channels: int = 3,
    num_classes: int = 10,
) -> PreActResNet:
    """Build the pre-activation ResNet-18 of the authors' code.

    A stem and four stages of two blocks each; the first block of a stage downsamples.

    Parameters
    ----------
    pooling : {"conv", "spectral", "diffstride"}
        How stem and blocks downsample, see `PreActBlock`.
    strides : sequence of float, pair of float or None, length 5
        Stride of the stem and of each stage, initial where it is learnt; None: no downsampling
        layer. The authors' stem begins with a stride of 1 that can grow, their first stage has
        none.
    convention : {"paper", "relative"}
        Convention of `DiffStride2d`.
    channels : sequence of int, length 5
        Channels of the stem and of each stage.
    in_channels : int
        Channels of the images.
    num_classes : int
        Number of outputs.

    Returns
    -------
    PreActResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    ValueError
        If `strides` or `channels` have not five entries, or `PreActBlock` refuses one.

    Examples
    --------
    >>> import torch
    >>> net = preact_resnet18(pooling="conv", strides=(None, None, 2.0, 2.0, 3.0), num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    for name, entries in (("strides", strides), ("channels", channels)):
        if len(entries) != 5:
            raise ValueError(
                f"{name}: {len(entries)} entries, needed is one for the stem and one for each of "
                "four stages, 5 in all"
            )
    stem = Stem(in_channels, channels[0], strides[0], pooling=pooling, convention=convention)
    blocks: list[PreActBlock] = []
    for inputs, outputs, stride in zip(channels[:-1], channels[1:], strides[1:], strict=True):
        blocks += [
            PreActBlock(inputs, outputs, stride, pooling=pooling, convention=convention),
            PreActBlock(outputs, outputs, pooling=pooling, convention=convention),
        ]
    return PreActResNet(stem, blocks, num_classes)
