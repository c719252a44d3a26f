"""Residual networks in the pre-activation form."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_torch.joining import convolve_and_pool
from diffstride_torch.models.architecture import (
    RESNET18,
    RESNET56,
    Architecture,
    Design,
    Strides,
    stride_entries,
)
from diffstride_torch.models.blocks import (
    ResidualBlock,
    ResidualNetwork,
    StemKind,
    convolution,
)
from diffstride_torch.models.pooling import Placement, Pooling, Stride


class PreActBlock(ResidualBlock):
    """Pre-activation residual block with one shared downsampling layer for both of its branches.

    With ``placement="before"`` the block pools once, for both branches. With
    ``p = pool(relu(norm1(x)))`` it computes ``shortcut(p) + conv2(relu(norm2(conv1(p))))``; without
    the shortcut's pointwise convolution, and with ``p = pool(x)``, it computes
    ``p + conv2(relu(norm2(conv1(relu(norm1(p))))))``.

    With ``placement="after"`` and ``h = relu(norm1(x))`` it computes
    ``shortcut(pool(h)) + conv2(relu(norm2(pool(conv1(h)))))``. The shortcut's pointwise convolution
    has no bias and so commutes with the linear ``pool``; it comes second because it is cheaper on
    the smaller map. Without that convolution the shortcut is ``pool(x)``.

    Parameters
    ----------
    in_channels, out_channels, stride, project, pooling, placement, convention, smoothness, limits
        See `ResidualBlock`, which also says what the attributes are and what is refused.
    """

    def _add_layers(
        self, in_channels: int, out_channels: int, stride: tuple[int, int], projects: bool
    ) -> None:
        self.norm1 = nn.BatchNorm2d(in_channels)
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.norm2 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.shortcut = convolution(in_channels, out_channels, 1, stride) if projects else None

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
        if self.placement == "before":
            # What the shortcut needs is pooled, so that one call of the layer serves both branches.
            if self.shortcut is None:
                skip = self.pool(x)
                h = torch.relu(self.norm1(skip))
            else:
                h = self.pool(torch.relu(self.norm1(x)))
                skip = self.shortcut(h)
            h = self.conv1(h)
        else:
            h = torch.relu(self.norm1(x))
            skip = self.pool(x) if self.shortcut is None else self.shortcut(self.pool(h))
            h = convolve_and_pool(self.conv1, self.pool, h, method=self.method)
        y: torch.Tensor = skip + self.conv2(torch.relu(self.norm2(h)))
        return y


class PreActResNet(ResidualNetwork):
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
        self._initialise()

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
        logits: torch.Tensor = self.classifier(h.mean(dim=(-2, -1)))
        return logits


def _network(design: Design) -> PreActResNet:
    stem: nn.Module = design.stem()
    if design.stem_kind == "imagenet":
        stem = nn.Sequential(stem, design.max_pool())
    blocks = [block for stage in design.stages(PreActBlock) for block in stage]
    return PreActResNet(stem, blocks, design.num_classes)


def small_resnet(
    *,
    pooling: Pooling = "diffstride",
    placement: Placement = "before",
    strides: Sequence[Stride | None] = (2.0, 2.0, 2.0),
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    channels: Sequence[int] = (8, 16, 32, 64),
    in_channels: int = 1,
    num_classes: int = 10,
) -> PreActResNet:
    """Build a narrow residual network of downsampling blocks, for small images.

    Parameters
    ----------
    pooling : {"conv", "spectral", "diffstride"}
        How the blocks downsample, see `PreActBlock`.
    placement : {"before", "after"}
        Whether a block's layer comes before its first convolution or after it.
    strides : sequence of float, pair of float or None
        Stride of each block, initial where it is learnt; None: the block does not downsample.
    convention : {"nominal", "paper", "tensorflow"}
        Convention of the pooling layers.
    smoothness : float, optional
    limits : (lower, upper) or None
        Width of the window's ramp and limits on the learnt strides, see `DiffStride2d`.
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
    TypeError, ValueError
        If `strides` is empty, `channels` does not fit it, or `PreActBlock` refuses an argument.

    Examples
    --------
    >>> import torch
    >>> net = small_resnet(pooling="diffstride", strides=(3.0, (2.0, 2.5), 3.0))
    >>> net(torch.zeros(4, 1, 28, 28)).shape
    torch.Size([4, 10])
    """
    entries = stride_entries(strides)
    if not entries:
        raise ValueError("strides must have at least one entry, one for each block, got none")
    count = len(entries)
    architecture = Architecture(stages=count, layers=1, counts=(count,), default_strides={})
    return _network(
        architecture.design(
            pooling=pooling,
            placement=placement,
            strides=entries,
            convention=convention,
            smoothness=smoothness,
            limits=limits,
            stem="small",
            channels=channels,
            in_channels=in_channels,
            num_classes=num_classes,
        )
    )


def preact_resnet18(
    *,
    pooling: Pooling = "diffstride",
    placement: Placement = "before",
    strides: Strides | None = None,
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    stem: StemKind = "small",
    channels: Sequence[int] = (64, 64, 128, 256, 512),
    in_channels: int = 3,
    num_classes: int = 10,
) -> PreActResNet:
    """Build the pre-activation ResNet-18 of the authors' code.

    Theirs has ``convention="tensorflow", placement="after"``.

    A stem and four stages of two blocks each; the first block of a stage downsamples.

    Parameters
    ----------
    pooling : {"conv", "spectral", "diffstride"}
        How stem and blocks downsample, see `PreActBlock`.
    placement : {"before", "after"}
        Whether a block's layer comes before its first convolution or after it. The small stem's
        comes after in both.
    strides : sequence of float, pair of float or None, length 5, 4 or 3, optional
        Stride of each place, initial where it is learnt; `diffstride_torch.models` explains the
        order. By default (1, None, 2, 2, 2), and (1, 2, 2, 2) with ``stem="imagenet"``.
    convention : {"nominal", "paper", "tensorflow"}
        Convention of the pooling layers.
    smoothness : float, optional
    limits : (lower, upper) or None
        Width of the window's ramp and limits on the learnt strides, see `DiffStride2d`.
    stem : {"small", "imagenet"}
        A 3x3 convolution, or a 7x7 convolution of stride 2 and 3x3 max pooling of stride 2.
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
    TypeError, ValueError
        Naming the argument, its value and what is allowed.

    Examples
    --------
    >>> import torch
    >>> net = preact_resnet18(pooling="conv", strides=(2.0, 2.0, 3.0), num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    return _network(
        RESNET18.design(
            pooling=pooling,
            placement=placement,
            strides=strides,
            convention=convention,
            smoothness=smoothness,
            limits=limits,
            stem=stem,
            channels=channels,
            in_channels=in_channels,
            num_classes=num_classes,
        )
    )


def preact_resnet56(
    *,
    pooling: Pooling = "diffstride",
    placement: Placement = "before",
    strides: Strides | None = None,
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    stem: StemKind = "small",
    channels: Sequence[int] = (16, 16, 32, 64),
    in_channels: int = 3,
    num_classes: int = 10,
) -> PreActResNet:
    """Build the pre-activation ResNet-56 of the authors' code.

    Theirs has ``convention="tensorflow", placement="after"``.

    A stem and three stages of nine blocks each; the first block of every stage downsamples and
    projects.

    Parameters
    ----------
    pooling, placement, convention, smoothness, limits, stem, in_channels, num_classes
        As for `preact_resnet18`.
    strides : sequence of float, pair of float or None, length 4, optional
        Stride of the stem and of each stage, initial where it is learnt. By default (1, 1, 2, 2),
        and (None, 1, 2, 2) with ``stem="imagenet"``.
    channels : sequence of int, length 4
        Channels of the stem and of each stage.

    Returns
    -------
    PreActResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    TypeError, ValueError
        Naming the argument, its value and what is allowed.
    """
    return _network(
        RESNET56.design(
            pooling=pooling,
            placement=placement,
            strides=strides,
            convention=convention,
            smoothness=smoothness,
            limits=limits,
            stem=stem,
            channels=channels,
            in_channels=in_channels,
            num_classes=num_classes,
        )
    )
