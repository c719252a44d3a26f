"""to_strided: convolutions with a layer behind them made plain strided convolutions."""

import copy

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    replace_downsampling,
    to_strided,
)
from diffstride_torch.models import preact_resnet18, resnet18, small_resnet
from diffstride_torch.modules import DiffStride
from support.torch_modules import set_strides
from support.torch_networks import build, images
from support.torch_values import random
from torch import nn
from torch.nn.utils.parametrizations import weight_norm
from torch.optim.swa_utils import AveragedModel


def has_layers(model):
    return any(isinstance(module, DiffStride) for module in model.modules())


def after(*arguments, rank=2, **options):
    make = (DiffStrideConv1d, DiffStrideConv2d, DiffStrideConv3d)[rank - 1]
    return make(*arguments, placement="after", dtype=torch.float64, **options)


def maps(*sizes, channels=2):
    return random(2, channels, *sizes, dtype=torch.float64)


@pytest.mark.parametrize(
    ("rank", "options", "plain"),
    [
        (1, {"stride": 1.8}, {"stride": 2}),
        (2, {"stride": (1.2, 2.7)}, {"stride": (1, 3)}),
        (3, {"stride": 2.3}, {"stride": 2}),
        (2, {"stride": 2.0, "dilation": 2}, {"stride": 2, "dilation": 2, "padding": 2}),
        (2, {"stride": 2.0, "groups": 2, "bias": False}, {"groups": 2, "bias": False}),
        (2, {"stride": 2.0, "padding_mode": "reflect"}, {"padding_mode": "reflect"}),
        (2, {"stride": 2.0, "shared": True, "method": "separate"}, {}),
    ],
)
def test_is_the_plain_convolution_of_the_weights(rank, options, plain):
    conv = after(2, 4, 3, rank=rank, **options)
    made = to_strided(conv)
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[rank - 1]
    expected = kind(2, 4, 3, **{"stride": 2, "padding": 1, **plain}, dtype=torch.float64)
    assert type(made) is kind
    assert repr(made) == repr(expected)
    expected.load_state_dict(made.state_dict())  # And has no other name.
    assert torch.equal(made.weight, conv.weight)
    assert made.weight is not conv.weight
    x = maps(*(9,) * rank)
    assert torch.equal(made(x), expected(x))


@pytest.mark.parametrize("size", [15, 16, 17, 30])
@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_sizes_are_those_of_the_layer_up_to_strides_of_4(size, stride):
    conv = after(2, 4, 3, float(stride))
    x = maps(size, size)
    assert to_strided(conv)(x).shape == conv(x).shape


def test_a_model_is_left_as_it_is():
    model = nn.Sequential(after(2, 4, 3, 1.7), nn.ReLU(), nn.Conv2d(4, 2, 1, dtype=torch.float64))
    model.eval()
    model[0].weight.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    made = to_strided(model)
    assert has_layers(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert made.state_dict().keys() == before.keys() - {"0.pool.strides", "0.pool._extra_state"}
    assert not made[0].training
    assert not made[0].weight.requires_grad
    assert made[2].weight.requires_grad


def test_strides_are_rounded_as_they_are_used():
    conv = after(2, 4, 3, 2.0, limits=(None, 2.8))
    set_strides(conv.pool, 9.0, 0.1)
    conv(maps(16, 16))
    assert to_strided(conv).stride == (2, 1)


@pytest.mark.parametrize("method", ["auto", "fused"])
def test_what_surgery_replaced_is_put_back(method):
    strided_model, x = build("resnet18").eval(), images(48)
    model = copy.deepcopy(strided_model)
    replace_downsampling(model, x, placement="after", method=method, skip=["maxpool"])
    made = to_strided(model)
    assert repr(made) == repr(strided_model)
    with torch.no_grad():
        assert torch.equal(made(x), strided_model(x))


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(3, 4, 2, stride=2),
        nn.Conv2d(3, 4, 4, stride=2, padding=1),
        nn.Conv2d(3, 4, (4, 3), stride=(2, 3), padding=(1, 0), padding_mode="circular"),
        nn.Conv2d(3, 4, 1, stride=2),
        nn.Conv2d(3, 4, 3, stride=2, padding="valid"),
    ],
    ids=["2", "4", "4x3", "1", "valid"],
)
def test_kernels_that_padding_does_not_centre(conv):
    strided_model, x = nn.Sequential(conv), images(21)
    model = copy.deepcopy(strided_model)
    replace_downsampling(model, x, placement="after")
    made = to_strided(model)
    assert repr(made) == repr(strided_model).replace(", padding=valid", "")
    assert torch.equal(made(x), strided_model(x))


@pytest.mark.parametrize(
    ("make", "channels", "strides"),
    [
        (small_resnet, (3, 4, 4), ((1.8, 2.7), 2.2)),
        (preact_resnet18, (2, 2, 4, 4, 4), (1.6, None, 1.7, (1.6, 2.6), 1.3)),
        (resnet18, (2, 2, 4, 4, 4), (1.3, 1.7, (1.6, 2.6), 1.4)),
    ],
)
def test_networks_become_those_of_strided_convolutions(make, channels, strides):
    torch.manual_seed(0)
    options = {"channels": channels, "strides": strides, "in_channels": 3, "num_classes": 5}
    model = make(placement="after", **options).eval()
    made = to_strided(model)
    expected = make(pooling="conv", **options).eval()
    assert made.strides == expected.strides
    expected.load_state_dict(made.state_dict())
    x = images(48)
    with torch.no_grad():
        assert torch.equal(made(x), expected(x))


class Given(nn.Module):
    """A layer that is given the convolution in front of it."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool = nn.Conv2d(3, 4, 3, padding="same"), DiffStride2d(1.8)

    def forward(self, x):
        return self.pool(x, self.conv, method="separate")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride2d((1.6, 2.7))),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=(2, 3)), nn.Identity()),
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 2, padding=1), DiffStride2d(1.6)),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, 4, padding=1), nn.Identity()),
        ),
        (
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3, padding="same", padding_mode="reflect"), DiffStride2d(1.6)
            ),
            lambda: nn.Sequential(
                nn.Conv2d(3, 4, 3, 2, padding=1, padding_mode="reflect"), nn.Identity()
            ),
        ),
        (
            lambda: nn.Sequential(DiffStride2d(1.6), nn.Conv2d(3, 4, 1)),
            lambda: nn.Sequential(nn.Identity(), nn.Conv2d(3, 4, 1, 2)),
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride2d((2, 3), axes=(3, 2))),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=(3, 2)), nn.Identity()),
        ),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride1d(2.0)),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=(1, 2)), nn.Identity()),
        ),
        (Given, lambda: nn.ModuleDict({"conv": nn.Conv2d(3, 4, 3, 2, padding=1)})),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), DiffStride2d(1.4)),
            lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Identity()),
        ),
    ],
    ids=["valid", "strided", "same", "pointwise", "axes", "one-axis", "given", "whole-stride-1"],
)
def test_layers_that_a_model_calls(make, expected):
    made, expected = to_strided(make()), expected()
    expected.load_state_dict(made.state_dict())
    x = images(21)
    y = made(x)
    for module in expected.children():
        x = module(x)
    assert torch.equal(y, x)


def test_a_layer_and_a_convolution_of_several_calls():
    pool = DiffStride2d(1.8)
    shared = DiffStrideConv2d(3, 3, 3, 1.8, placement="after")
    conv = nn.Conv2d(3, 3, 3, padding=1)
    model = nn.Sequential(conv, pool, conv, pool, nn.Conv2d(3, 3, 1), pool, shared, shared)
    made = to_strided(model)
    assert made[0] is made[2]
    assert made[6] is made[7]
    assert made[0].stride == made[4].stride == made[6].stride == (2, 2)
    assert made(images(64)).shape == (2, 3, 2, 2)


class Undecided(nn.Module):
    """A model that torch.fx cannot trace."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        return self.inner(x) if x.mean() > 9 else self.inner(-x)


def test_only_models_that_call_layers_are_traced():
    made = to_strided(Undecided(DiffStrideConv2d(3, 4, 3, placement="after")))
    assert made(images(16)).shape == (2, 4, 8, 8)
    with pytest.raises(ValueError, match="model Undecided cannot be traced"):
        to_strided(Undecided(nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride2d(2.0))))


@pytest.mark.parametrize(
    "wrap", [AveragedModel, lambda model: torch.compile(model, backend="eager")]
)
def test_of_a_wrapper_the_model_in_it(wrap):
    made = to_strided(wrap(nn.Sequential(DiffStrideConv2d(3, 4, 3, placement="after"))))
    assert type(made) is nn.Sequential
    assert not has_layers(made)


class Skip(nn.Module):
    """A convolution whose output is read without its layer, too, or which is called without it."""

    def __init__(self, called):
        super().__init__()
        self.conv, self.pool, self.called = nn.Conv2d(3, 3, 3, padding=1), DiffStride2d(2.0), called

    def forward(self, x):
        y = self.conv(x)
        return self.pool(y).mean() + (self.conv(x) if self.called else y).mean()


def hooked():
    conv = DiffStrideConv2d(3, 4, 3, placement="after")
    conv.register_forward_hook(lambda *_: None)
    return nn.Sequential(conv)


class Own(DiffStrideConv2d):
    """A class of a user."""


REFUSED = {
    "before": (
        lambda: nn.Sequential(DiffStrideConv2d(3, 4, 3)),
        "0: its layer stands before it",
    ),
    "network-before": (
        lambda: small_resnet(strides=(2.0,), channels=(2, 2)),
        r"blocks\.0\.pool: it follows no convolution .*, but stands before blocks\.0\.conv1",
    ),
    "pooling": (
        lambda: nn.Sequential(nn.MaxPool2d(2), DiffStride2d(2.0), nn.ReLU()),
        "1: it follows no convolution whose output it alone reads",
    ),
    "nothing": (lambda: DiffStride2d(2.0), "DiffStride2d: it follows no convolution"),
    "read-without": (lambda: Skip(called=False), "pool: it follows no convolution whose output"),
    "called-without": (lambda: Skip(called=True), "conv: it is called without the layer, too"),
    "two-layers": (
        lambda: nn.Sequential(DiffStrideConv2d(3, 4, 3, placement="after"), DiffStride2d(2.0)),
        "1: it follows no convolution whose output it alone reads",
    ),
    "between": (
        lambda: nn.Sequential(DiffStride2d(2.0), nn.Conv2d(3, 3, 1), DiffStride2d(2.0)),
        "1: it stands between two layers",
    ),
    "several-strides": (
        lambda: (lambda conv: nn.Sequential(conv, DiffStride2d(2.0), conv, DiffStride2d(3.0)))(
            nn.Conv2d(3, 3, 3)
        ),
        "0: it is called with layers of several strides",
    ),
    "cropping": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3), DiffStride2d(2.0, cropping=False)),
        "1: it does not crop",
    ),
    "norm": (
        lambda: nn.Sequential(DiffStrideConv2d(3, 3, 3, placement="after", norm="ortho")),
        r"0\.pool: its norm is 'ortho'",
    ),
    "hooks": (hooked, "0: it has hooks, which would be lost"),
    "class": (lambda: nn.Sequential(Own(3, 4, 3, placement="after")), "0: its class derives from"),
    "parametrised": (
        lambda: nn.Sequential(weight_norm(DiffStrideConv2d(3, 4, 3, placement="after"))),
        "0: its class derives from",
    ),
    "channels": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3), DiffStride3d(2.0)),
        "1: it resizes other axes than those of 0",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_has_no_strided_counterpart_is_named(case):
    make, reason = REFUSED[case]
    model = make()
    before = repr(model)
    with pytest.raises(ValueError, match=f"cannot become strided: {reason}.*use freeze instead"):
        to_strided(model)
    assert repr(model) == before


def test_a_layer_that_is_never_called():
    model = nn.Sequential(nn.Conv2d(3, 3, 3))
    model[0].pool = DiffStride2d(2.0)
    with pytest.raises(ValueError, match=r"0\.pool: the model does not call it"):
        to_strided(model)


def test_all_that_is_refused_is_named():
    model = nn.Sequential(DiffStrideConv2d(3, 4, 3), DiffStrideConv2d(4, 4, 3))
    with pytest.raises(ValueError, match=r"0: its layer stands .*; 1: its layer stands"):
        to_strided(model)


def test_bad_arguments():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        to_strided([])
    with pytest.raises(ValueError, match="model must have a DiffStride layer, got Linear"):
        to_strided(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="hold no whole number"):
        to_strided(DiffStrideConv2d(3, 4, 3, 1.5, placement="after", limits=(1.4, 1.6)))
    uncopied = nn.Sequential(DiffStrideConv2d(3, 4, 3, placement="after"))
    uncopied.made = torch.ones(1, requires_grad=True) * 2
    with pytest.raises(ValueError, match="cannot be copied, which to_strided requires"):
        to_strided(uncopied)
