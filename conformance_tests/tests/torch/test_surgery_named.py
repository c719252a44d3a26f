"""Surgery without a trace: the modules that a user names, and those that share a layer."""

import copy
from collections import defaultdict
from itertools import product

import pytest
import torch
from diffstride_torch import (
    AntiAliasingSpectralPool,
    DiffStrideConv2d,
    flops_penalty,
    replace_downsampling,
    spectral_resize,
)
from support.amounts import quick_first
from support.torch_networks import Branches, build, conv, images
from torch import nn


def names_and_groups(report):
    """Return what tells a surgery without a trace to do what a trace has found."""
    together = defaultdict(list)
    for done in report.replaced:
        together[done.layer].append(done.name)
    only = [done.name for done in report.replaced]
    return {"only": only, "shared": [names for names in together.values() if len(names) > 1]}


NAMES = ["resnet18", "densenet121", "convnext_tiny", "shufflenet_v2_x0_5"]


@pytest.mark.parametrize(
    ("name", "placement"), quick_first(1, list(product(NAMES, ["before", "after"])))
)
def test_named_modules_become_what_a_trace_makes_of_them(name, placement):
    traced, x = build(name).eval(), images()
    named = copy.deepcopy(traced)
    expected = replace_downsampling(traced, x, placement=placement)
    report = replace_downsampling(named, x, placement=placement, **names_and_groups(expected))
    # The sizes, placements, layers and multiply-adds.
    assert str(report) == str(expected)
    assert named.state_dict().keys() == traced.state_dict().keys()
    torch.testing.assert_close(named(x), traced(x), rtol=0, atol=0)
    assert flops_penalty(named, x).multiply_adds() == report.multiply_adds_after
    for own, other in zip(named.modules(), traced.modules(), strict=True):
        assert type(own) is type(other)
        assert (getattr(own, "_call", None) is None) == (getattr(other, "_call", None) is None)


class Deciding(nn.Module):
    """A network that torch.fx cannot trace, of a residual block and one more convolution."""

    def __init__(self):
        super().__init__()
        self.block = Branches(conv(2), nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 4, 1)))
        self.last = nn.Conv2d(4, 4, 3, 2, 1)

    def forward(self, x):
        y = self.block(x if x.mean() < 100 else -x)
        return self.last(y).mean((2, 3))


BLOCK = ["block.left", "block.right.0"]


def test_a_model_that_cannot_be_traced_learns_its_strides():
    torch.manual_seed(0)
    model, x = Deciding(), images(32)
    with pytest.raises(ValueError, match=r"in only, which needs no trace: 'block\.left', 'block"):
        replace_downsampling(model, x)
    report = replace_downsampling(model, x, only=[*BLOCK, "last"], shared=[BLOCK])
    assert [done.name for done in report.replaced] == [*BLOCK, "last"]
    assert report.kept == report.breaks == ()
    assert len(report.layers) == 2
    model(x).square().sum().backward()
    assert all((layer.strides.grad != 0).all() for layer in report.layers)
    with torch.no_grad():
        report.layers[0].strides.copy_(torch.tensor([1.4, 2.7]))
    assert model(x).shape == (2, 4)


def test_branches_that_do_not_share_are_named_where_they_meet():
    model, x = Deciding(), images(32)
    report = replace_downsampling(model, x, only=[*BLOCK, "last"])
    assert len(report.layers) == 3
    (place,) = report.breaks
    assert (place.name, place.layers) == ("block", report.layers[:2])
    assert "must match the size" in place.error


def test_strided_calls_of_the_same_tensor_become_one_unless_it_is_written_into():
    class Writing(Branches):
        def forward(self, x):
            y = torch.sigmoid(x)
            left = self.left(y)
            if self.write:
                y.mul_(2)
            return left + self.right(y)

    for write in (False, True):
        model, x = Writing(conv(2), conv(2)), images(16)
        model.write = write
        replace_downsampling(model, x, only=["left", "right"], shared=[["left", "right"]])
        assert (model.left._call is not None) != write


def test_a_module_of_two_names_is_one():
    model = Branches(conv(2), conv(2))
    model.right = model.left
    # A convolution that is called twice, on maps of the same size.
    report = replace_downsampling(model, images(32), only=["left", "right"])
    assert len(report.replaced) == 1
    assert model.left is model.right
    assert isinstance(model.left, DiffStrideConv2d)


def test_antialiasing_and_one_dimension():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), AntiAliasingSpectralPool(channels=4, stride=2.5))
    (done,) = replace_downsampling(model, images(32), only="1").replaced
    assert (done.stride, model[1]) == ((2.5, 2.5), done.layer)
    model = nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.MaxPool1d(2))
    (layer,) = replace_downsampling(model, torch.randn(2, 3, 32), only=["0"]).layers
    assert layer.strides.shape == (1,)


class Counting(nn.Module):
    """A model that changes its state, and draws random numbers, in evaluation mode too."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = conv(2), nn.BatchNorm2d(4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return nn.functional.dropout(self.norm(self.conv(x)), training=True)


@pytest.mark.parametrize("options", [{}, {"only": ["conv"]}])
def test_state_and_random_numbers_stay(options):
    model, x = Counting(), images(16)
    model(x)
    model.norm.eval()
    state = copy.deepcopy(model.state_dict())
    generator = torch.get_rng_state()
    replace_downsampling(model, x, **options)
    assert torch.equal(torch.get_rng_state(), generator)
    assert all(torch.equal(model.state_dict()[key], value) for key, value in state.items())
    assert model.training
    assert not model.norm.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def two_sizes():
    """Return a model that calls a convolution on maps of which one would need another size."""
    model = Branches(conv(2, kernel=4), nn.Conv2d(4, 4, 1))
    model.forward = lambda x: model.left(x).mean() + model.left(x[..., :5, :5]).mean()
    return model


MORE = "allowed are strided convolutions, average and max poolings of torch.nn, and"


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (Deciding, {"only": []}, ValueError, "only must hold at least one name"),
        (Deciding, {"only": [1]}, TypeError, "only must hold names of modules, got 1"),
        (Deciding, {"only": ["las"]}, ValueError, "no module 'las'; did you mean last"),
        (Deciding, {"only": ["last"], "skip": ["block"]}, ValueError, "skip must be empty"),
        (
            Deciding,
            {"only": ["block"]},
            ValueError,
            f"'block' is a Branches that does not downsample; {MORE} .*; in it are 'block.left', ",
        ),
        (
            Deciding,
            {"only": ["block.right.1"]},
            ValueError,
            f"'block.right.1' is a Conv2d that does not downsample; {MORE}",
        ),
        (
            lambda: nn.Sequential(conv(2, kernel=1, padding=1)),
            {"only": ["0"]},
            ValueError,
            r"only: '0' \(Conv2d\) cannot be replaced: its padding is larger",
        ),
        (
            two_sizes,
            {"only": ["left"]},
            ValueError,
            r"only: 'left' \(Conv2d\) cannot be replaced: its calls would need layers of several",
        ),
        (
            lambda: nn.ModuleDict({"a": Deciding(), "b": conv(2)})["a"],
            {"only": ["last"], "shared": [["last", "block.left"]]},
            ValueError,
            "shared: 'block.left' is not in only, which holds 'last'",
        ),
        (Deciding, {"only": BLOCK, "shared": BLOCK}, TypeError, "shared must hold lists of names"),
        (
            Deciding,
            {"only": BLOCK, "shared": [[BLOCK[0]]]},
            ValueError,
            "a list must hold at least two modules",
        ),
        (
            Deciding,
            {"only": BLOCK, "shared": [BLOCK, BLOCK]},
            ValueError,
            "'block.left' is in more than one list",
        ),
        (Deciding, {"shared": [BLOCK]}, ValueError, "shared must be empty without only"),
        (
            lambda: nn.Sequential(conv(2), nn.Conv2d(4, 4, 3, 3, 1)),
            {"only": ["0", "1"], "shared": [["0", "1"]]},
            ValueError,
            r"'0' and '1' must have the same stride to have one layer, but have \(2.0, 2.0\) and",
        ),
        (
            lambda: nn.Sequential(conv(2), nn.Conv2d(4, 4, 3, 2)),
            {"only": ["0", "1"], "shared": [["0", "1"]]},
            ValueError,
            r"must have the same size_offset to have one layer, but have \(0, 0\) and \(-1, -1\)",
        ),
        (
            # The layer's map is larger than the other branch's.
            Deciding,
            {"only": [BLOCK[0]], "convention": "paper"},
            ValueError,
            r"left unchanged; .* in one list of shared: .* in block: The size of tensor a",
        ),
    ],
)
def test_bad_names_leave_the_model_as_it_was(make, options, error, message):
    model = make()
    modules = list(model.modules())
    with pytest.raises(error, match=message):
        replace_downsampling(model, images(32), **options)
    assert list(model.modules()) == modules


def test_a_module_that_is_not_called_is_refused():
    model = Deciding()
    model.other = conv(2)
    with pytest.raises(ValueError, match=r"only: 'other' .* the model does not call it"):
        replace_downsampling(model, images(32), only=["last", "other"])


def test_layers_given_frames_cost_as_often_as_they_are_called():
    class Frames(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(2)

        def forward(self, x):
            return self.conv(x.flatten(0, 1)).unflatten(0, x.shape[:2])

    x = torch.randn(2, 5, 3, 16, 16)
    alone = replace_downsampling(nn.Sequential(conv(2)), x[0])
    report = replace_downsampling(Frames(), x, only=["conv"])
    assert report.multiply_adds_after == 5 * alone.multiply_adds_after


def test_a_skip_connection_resized_to_its_partner_runs_at_every_stride():
    class Skipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.down, self.up = conv(2), nn.ConvTranspose2d(4, 3, 2, 2)

        def forward(self, x):
            y = self.up(self.down(x))
            return torch.cat([spectral_resize(y, tuple(x.shape[2:])), x], 1)

    model, x = Skipping(), images(16)
    (layer,) = replace_downsampling(model, x, only=["down"]).layers
    with torch.no_grad():
        layer.strides.copy_(torch.tensor([1.4, 2.7]))
    assert model(x).shape == (2, 6, 16, 16)
