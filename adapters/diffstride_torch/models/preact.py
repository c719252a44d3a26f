"""Residual networks in the pre-activation form."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from diffstride_core.arguments import check_names
from diffstride_torch.joining import convolve_and_pool
from diffstride_torch.models.architecture import (
    RESNET18,
    RESNET56,
    Architecture,
    Design,
    stride_entries,
)
from diffstride_torch.models.blocks import (
    ResidualBlock,
    ResidualNetwork,
    convolution,
)
from diffstride_torch.models.pooling import NetworkOptions


class PreActBlock(ResidualBlock):
    """Pre-activation residual block with one shared downsampling layer for both of its branches.

    With ``placement="before"`` the block pools once, for both branches. It computes
    ``shortcut(p) + conv2(relu(norm2(conv1(p))))`` with ``p = pool(relu(norm1(x)))``. Without the
    shortcut's pointwise convolution, it computes ``p + conv2(relu(norm2(conv1(relu(norm1(p))))))``
    with ``p = pool(x)``.

    With ``placement="after"`` and ``h = relu(norm1(x))`` it computes
    ``shortcut(pool(h)) + conv2(relu(norm2(pool(conv1(h)))))``. The shortcut's pointwise convolution
    has no bias and so commutes with the linear ``pool``; it comes second because it is cheaper on
    the smaller map. Without that convolution the shortcut is ``pool(x)``.

    Parameters
    ----------
    in_channels, out_channels, stride, project, placement, **options
        See `ResidualBlock`, which also documents the attributes and the errors.
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
            Feature maps, with the size after downsampling, or the input's size without
            downsampling.
        """
        if self.placement == "before":
            # Pool the shortcut's input, so that one call of the layer serves both branches.
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
        First layer, without normalisation or nonlinearity: the blocks begin with their own.
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


def small_resnet(**options: Unpack[NetworkOptions]) -> PreActResNet:
    """Build a narrow residual network of downsampling blocks, for small images.

    Parameters
    ----------
    **options
        See `NetworkOptions`; `stem` cannot be chosen. The defaults are (2, 2, 2) for `strides`, one
        entry per block, (8, 16, 32, 64) for `channels`, one entry more, and 1 for `in_channels`.

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
    check_names("small_resnet", options, NetworkOptions.__annotations__.keys() - {"stem"})
    strides = options.get("strides", (2.0, 2.0, 2.0))
    entries = stride_entries(strides)  # type: ignore[arg-type]
    if not entries:
        raise ValueError("strides must have at least one entry, one for each block, got none")
    count = len(entries)
    architecture = Architecture(
        stages=count, layers=1, counts=(count,), default_strides={}, channels=(8, 16, 32, 64)
    )
    given: NetworkOptions = {"in_channels": 1, **options, "strides": entries}
    return _network(architecture.design(**given))


def preact_resnet18(**options: Unpack[NetworkOptions]) -> PreActResNet:
    """Build the pre-activation ResNet-18 of the authors' code.

    The authors' network has ``convention="tensorflow", placement="after"``.

    The network has a stem and four stages of two blocks each. The first block of a stage
    downsamples.

    Parameters
    ----------
    **options
        See `NetworkOptions`. `strides` has 5, 4 or 3 entries, and `channels` has 5. The default of
        `strides` is (1, None, 2, 2, 2), or (1, 2, 2, 2) with ``stem="imagenet"``. The other
        defaults are "small" for `stem`, (64, 64, 128, 256, 512) for `channels`, 3 for
        `in_channels`, and 10 for `num_classes`.

    Returns
    -------
    PreActResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value, and what is allowed.

    Examples
    --------
    >>> import torch
    >>> net = preact_resnet18(pooling="conv", strides=(2.0, 2.0, 3.0), num_classes=100)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 100])
    """
    check_names("preact_resnet18", options, NetworkOptions.__annotations__.keys())
    return _network(RESNET18.design(**options))


def preact_resnet56(**options: Unpack[NetworkOptions]) -> PreActResNet:
    """Build the pre-activation ResNet-56 of the authors' code.

    The authors' network has ``convention="tensorflow", placement="after"``.

    The network has a stem and three stages of nine blocks each. The first block of every stage
    downsamples and projects.

    Parameters
    ----------
    **options
        See `NetworkOptions`. `strides` and `channels` have 4 entries. The default of `strides` is
        (1, 1, 2, 2), or (None, 1, 2, 2) with ``stem="imagenet"``. The other defaults are "small"
        for `stem`, (16, 16, 32, 64) for `channels`, 3 for `in_channels`, and 10 for `num_classes`.

    Returns
    -------
    PreActResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value, and what is allowed.
    """
    check_names("preact_resnet56", options, NetworkOptions.__annotations__.keys())
    return _network(RESNET56.design(**options))
