"""Networks and loops for the tests of training."""

from functools import partial

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
)
from diffstride_torch.models import preact_resnet18, small_resnet
from support import torch_values

CLASSES = 3


random = partial(torch_values.random, dtype=torch.float32)


assert_close = torch_values.assert_close


def small(strides=(1.7, (2.4, 1.6)), **options):
    options = {"channels": (4, 6, 8), "num_classes": CLASSES, **options}
    return small_resnet(strides=strides, **options)


def fused(**options):
    model = small(placement="after", **options)
    for place in model.places:
        place.method = "fused"
    return model


def deep(strides=(1.5, None, 1.7, (1.6, 1.3), 1.5)):
    return preact_resnet18(strides=strides, channels=(4, 4, 8, 8, 8), num_classes=CLASSES)


def network(make, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return make(**options).to(dtype)


def batch(make, size=4, dtype=torch.float32, seed=1):
    """Return images and labels for a network."""
    images = random(size, 3 if make is deep else 1, 32, 28, dtype=dtype, seed=seed)
    return images, torch.arange(size) % CLASSES


def with_group_norm(model):
    """Return the model with a normalisation that treats every image by itself."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                norm = torch.nn.GroupNorm(2, child.num_features, dtype=child.weight.dtype)
                setattr(parent, name, norm)
    assert not list(model.buffers())
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, DiffStride2d)]


def strides_of(model):
    return [layer.strides.detach().clone() for layer in layers_of(model)]


def sizes_of(model, images):
    """Return the spatial sizes of every layer's outputs in one forward pass."""
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, y: sizes.append(tuple(y.shape[2:])))
        for layer in layers_of(model)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return sizes


each_network = pytest.mark.parametrize("make", [small, fused, deep])
