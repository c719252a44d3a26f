"""Blocks and networks for their tests."""

import torch
from diffstride_torch.models import (
    BasicBlock,
    PreActBlock,
    preact_resnet18,
    preact_resnet56,
    resnet18,
    small_resnet,
)
from torch import nn

POOLINGS = ("conv", "spectral", "diffstride")
PLACEMENTS = ("before", "after")
BLOCKS = (PreActBlock, BasicBlock)
# Every network for small and large images, thin enough to run in milliseconds.
BUILDERS = {
    "preact_resnet18": (preact_resnet18, (4, 4, 6, 8, 10)),
    "preact_resnet56": (preact_resnet56, (3, 3, 4, 5)),
    "resnet18": (resnet18, (4, 4, 6, 8, 10)),
}


def thin(name, **options):
    build, channels = BUILDERS[name]
    return build(channels=channels, num_classes=5, **options)


def any_network(name, **options):
    if name == "small_resnet":
        return small_resnet(**options)
    return thin(name, **{"stem": "small", **options})


def shake(network):
    """Give the norms, which all begin alike, values of their own."""
    torch.manual_seed(0)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (*module.parameters(), module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
