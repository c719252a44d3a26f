"""Surgery on strided operations of subclasses: what is tried, replaced, and kept."""

import copy
import io

import pytest
import torch
from diffstride_torch import flops_penalty, freeze, replace_downsampling, to_strided
from support.torch_networks import Branches, conv, images
from timm.layers import AvgPool2dSame, Conv2dSame, ScaledStdConv2d, StdConv2d, StdConv2dSame
from timm.layers.pool2d_same import MaxPool2dSame
from torch import nn

REPLACED = [
    # The module, the size that it reads, the name of what it becomes, its placement.
    (lambda: Conv2dSame(3, 4, 3, 2), 32, "DiffStrideConv2d", "after"),
    (lambda: Conv2dSame(3, 4, 3, 2), 33, "DiffStrideConv2d", "before"),
    (lambda: Conv2dSame(3, 4, 5, 2, groups=1, bias=False), 32, "DiffStrideConv2d", "after"),
    (lambda: MaxPool2dSame(3, 2), 32, "PoolDiffStride", "after"),
    (lambda: AvgPool2dSame(2, 2), 32, "PoolDiffStride", "after"),
    (lambda: StdConv2d(3, 4, 3, 2), 32, "DiffStrideStdConv2d", "before"),
    (lambda: StdConv2d(3, 4, 1, 2), 33, "DiffStrideStdConv2d", "before"),
    (lambda: StdConv2d(3, 4, 4, 2, padding=1), 32, "DiffStrideStdConv2d", "after"),
    (lambda: ScaledStdConv2d(3, 4, 3, 2), 33, "DiffStrideScaledStdConv2d", "before"),
]


@pytest.mark.parametrize(("make", "size", "name", "placement"), REPLACED)
def test_a_subclass_that_does_the_same_at_stride_one_is_replaced(make, size, name, placement):
    torch.manual_seed(0)
    module, x = make(), images(size)
    expected, keys = module(x), set(module.state_dict())
    model = nn.Sequential(copy.deepcopy(module))
    (done,) = replace_downsampling(model, x).replaced
    assert (done.operation, done.placement) == (type(module).__name__, placement)
    assert type(model[0]).__name__ == name
    assert {key.removeprefix("0.") for key in model.state_dict()} >= keys
    y = model(x)
    assert y.shape == expected.shape
    y.square().sum().backward()
    assert all((parameter.grad != 0).any() for parameter in model.parameters())
    assert flops_penalty(model, x).multiply_adds() > 0

    # A copy, and one from a file, compute the same.
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for other in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(other(x), y, rtol=0, atol=0)
    torch.testing.assert_close(freeze(model, x)(x), y, rtol=1e-4, atol=1e-5)

    # After the layer nothing but the operation at stride 1.
    again = nn.Sequential(module)
    replace_downsampling(again, x, placement="after")
    again[0].pool, again[0].placement = nn.Identity(), "after"
    dense = again(x)
    assert dense.shape[2:] == x.shape[2:]
    torch.testing.assert_close(dense[:, :, ::2, ::2], expected, rtol=0, atol=2e-6)


def test_a_weight_that_is_computed_is_so_in_every_evaluation():
    torch.manual_seed(0)
    model, x = nn.Sequential(ScaledStdConv2d(3, 4, 3, 2)), images(16)
    replace_downsampling(model, x, placement="after", method="fused")
    y = model(x)
    # Standardised, so that its scale is of no effect.
    with torch.no_grad():
        model[0].weight.mul_(3).add_(1)
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="its class derives from DiffStrideConv"):
        to_strided(model)


class Noisy(nn.Conv2d):
    """A convolution that computes something else while it is trained."""

    def forward(self, x):
        y = super().forward(x)
        return y + torch.randn_like(y) if self.training else y


class Twice(nn.Conv2d):
    """A convolution that depends on its stride in another way."""

    def forward(self, x):
        return self.stride[0] * super().forward(x)


class Masked(nn.Conv2d):
    """A convolution that needs another argument."""

    def forward(self, x, mask):
        return super().forward(x * mask)


class Masking(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.other = Masked(3, 4, 3, 2, 1), conv(2)

    def forward(self, x):
        return self.conv(x, x).mean() + self.other(x)


@pytest.mark.parametrize(
    "module",
    [
        Noisy(3, 4, 3, 2, 1),
        Twice(3, 4, 3, 2, 1),
        StdConv2dSame(3, 4, 3, 2),
        # What is beyond the border dims the average.
        AvgPool2dSame(3, 2),
    ],
    ids=lambda module: type(module).__name__,
)
def test_a_subclass_that_does_not_is_kept(module):
    state = torch.get_rng_state()
    model = nn.Sequential(conv(2), nn.Conv2d(4, 3, 1), module)
    (kept,) = replace_downsampling(model, images(32)).kept
    assert kept.name == "2"
    assert kept.reason == (
        f"its class derives from {type(module).__mro__[1].__name__}, and computes something else"
    )
    assert model[2] is module
    assert state.shape == torch.get_rng_state().shape


def test_a_subclass_that_cannot_be_called_alone_is_kept():
    (kept,) = replace_downsampling(Masking(), images(32)).kept
    assert kept.name == "conv"


def test_padding_that_follows_from_the_size_is_that_of_one_size():
    class Both(nn.Module):
        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, x):
            return self.module(x).mean() + self.module(x[..., 1:, 1:]).mean()

    x = images(32)
    with pytest.raises(ValueError, match="derives from Conv2d, and computes something else"):
        replace_downsampling(Both(Conv2dSame(3, 4, 3, 2)), x)
    assert len(replace_downsampling(Both(StdConv2d(3, 4, 3, 2)), x).replaced) == 1


def test_sizes_behind_a_subclass_that_is_kept_are_followed():
    model = nn.Sequential(conv(2), nn.Conv2d(4, 3, 1), StdConv2dSame(3, 4, 3, 2))
    x = images(50)
    (layer,) = replace_downsampling(model, x).layers
    penalty = flops_penalty(model, x)
    with torch.no_grad():
        layer.strides.fill_(1.7)
    assert penalty.multiply_adds() == flops_penalty(model, x).multiply_adds()


def test_branches_of_a_subclass_share_a_layer():
    model = Branches(Conv2dSame(3, 4, 3, 2), StdConv2d(3, 4, 1, 2))
    report = replace_downsampling(model, images(32))
    assert len(report.layers) == 1
    assert report.breaks == ()
