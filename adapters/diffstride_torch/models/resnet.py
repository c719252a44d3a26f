"""ResNet-18 in torchvision's form, with its parameter names."""

from collections.abc import Sequence
from typing import Unpack

import torch
from torch import Tensor, nn

from diffstride_core.arguments import check_names
from diffstride_torch.joining import convolve_and_pool
from diffstride_torch.models.architecture import RESNET18, Design
from diffstride_torch.models.blocks import ResidualBlock, ResidualNetwork, convolution
from diffstride_torch.models.pooling import NetworkOptions


class BasicBlock(ResidualBlock):
    """Post-activation residual block with one shared downsampling layer for both of its branches.

    With ``placement="before"`` and ``p = pool(x)`` for both branches, the block computes
    ``relu(downsample(p) + bn2(conv2(relu(bn1(conv1(p))))))``. With ``placement="after"`` it
    computes ``relu(downsample(pool(x)) + bn2(conv2(relu(bn1(pool(conv1(x)))))))``. Here
    ``downsample`` is the shortcut's pointwise convolution and its norm, or an identity.

    Parameters
    ----------
    in_channels, out_channels, stride, project, placement, **options
        See `ResidualBlock`, which also documents the attributes and the errors.
    """

    def _add_layers(
        self, in_channels: int, out_channels: int, stride: tuple[int, int], projects: bool
    ) -> None:
        self.conv1 = convolution(in_channels, out_channels, 3, stride)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if projects:
            self.downsample = nn.Sequential(
                convolution(in_channels, out_channels, 1, stride), nn.BatchNorm2d(out_channels)
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
            Feature maps, with the size after downsampling, or the input's size without
            downsampling.
        """
        if self.placement == "before":
            skip = self.pool(x)
            h = self.conv1(skip)
        else:
            h = convolve_and_pool(self.conv1, self.pool, x, method=self.method)
            skip = self.pool(x)
        h = torch.relu(self.bn1(h))
        return torch.relu(self.downsample(skip) + self.bn2(self.conv2(h)))


class ResNet(ResidualNetwork):
    """Post-activation residual network of four stages with torchvision's names.

    Parameters
    ----------
    stem : Stem
        First convolution.
    max_pool : torch.nn.Module
        Layer between the stem's nonlinearity and the stages.
    stages : sequence of sequence of BasicBlock, length 4
    num_classes : int
        Number of outputs.
    """

    def __init__(
        self,
        stem: nn.Conv2d,
        max_pool: nn.Module,
        stages: Sequence[Sequence[BasicBlock]],
        num_classes: int,
    ) -> None:
        super().__init__()
        self.conv1 = stem
        self.bn1 = nn.BatchNorm2d(stem.out_channels)
        self.maxpool = max_pool
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(*blocks) for blocks in stages
        )
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(stages[-1][-1].out_channels, num_classes)
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
        h = self.maxpool(torch.relu(self.bn1(self.conv1(x))))
        h = self.layer4(self.layer3(self.layer2(self.layer1(h))))
        logits: torch.Tensor = self.fc(self.avgpool(h).flatten(1))
        return logits


def _network(design: Design) -> ResNet:
    return ResNet(design.stem(), design.max_pool(), design.stages(BasicBlock), design.num_classes)


def resnet18(**options: Unpack[NetworkOptions]) -> ResNet:
    """Build ResNet-18 in torchvision's form.

    The network has a stem and four stages of two post-activation blocks each. The first block of a
    stage downsamples. With ``pooling="conv"`` and the other defaults it is torchvision's
    ``resnet18``, including the names. Weights of torchvision's network load into this one with any
    pooling, and only the strides are missing.

    Parameters
    ----------
    **options
        See `preact_resnet18`. Here the default is "imagenet" for `stem` and 1000 for `num_classes`.

    Returns
    -------
    ResNet
        Maps images of shape (N, in_channels, H, W) to logits of shape (N, num_classes).

    Raises
    ------
    TypeError, ValueError
        If an argument is not allowed. The message names it, its value, and what is allowed.

    Examples
    --------
    >>> import torch
    >>> net = resnet18(strides=(2.0, 2.0, 3.0), stem="small", num_classes=10)
    >>> net(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 10])
    """
    check_names("resnet18", options, NetworkOptions.__annotations__.keys())
    given: NetworkOptions = {"stem": "imagenet", "num_classes": 1000, **options}
    return _network(RESNET18.design(**given))
