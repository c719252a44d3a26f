"""Models made anew: branches that share a stride, what is kept, what is refused."""

import copy
import operator

import pytest
import timm
import torch
from diffstride_torch import (
    AntiAliasingSpectralPool,
    DiffStride1d,
    replace_downsampling,
)
from support.torch_networks import Branches, build, conv, images
from torch import nn


def test_branches_that_meet_again_share_a_stride():
    model = build("resnet18")
    report = replace_downsampling(model, images())
    for stage in (model.layer2, model.layer3, model.layer4):
        assert stage[0].conv1.pool is stage[0].downsample[0].pool
    layers = [done.layer for done in report.replaced]
    assert layers == [*layers[:2], *(layer for layer in report.layers[2:] for _ in range(2))]


@pytest.mark.parametrize("antialiasing", [False, True])
def test_timm(antialiasing):
    torch.manual_seed(0)
    options = {"aa_layer": AntiAliasingSpectralPool} if antialiasing else {}
    model, x = timm.create_model("resnet18", num_classes=5, **options), images()
    report = replace_downsampling(model, x)
    assert report.kept == ()
    assert len(report.layers) == 5
    assert (
        sum(done.operation == "AntiAliasingSpectralPool" for done in report.replaced)
        == 4 * antialiasing
    )
    model.eval()(x).square().mean().backward()
    assert all((layer.strides.grad != 0).any() for layer in report.layers)


def test_antialiasing_begins_at_its_own_stride():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), AntiAliasingSpectralPool(channels=4, stride=2.5))
    (done,) = replace_downsampling(model, images()).replaced
    assert done.stride == (2.5, 2.5)
    assert done.layer.strides.tolist() == [2.5, 2.5]
    assert model[1] is done.layer


def test_timm_with_pooled_shortcuts():
    model, x = timm.create_model("resnet18d", num_classes=5), images(size=48)
    report = replace_downsampling(model, x)
    assert len(report.layers) == 5
    assert model.eval()(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("module", "size"),
    [
        (conv(2), 16),
        (conv(4, kernel=4, padding=0), 16),
        (conv(2, kernel=2, padding=0, padding_mode="circular"), 16),
        (conv((1, 3), kernel=(3, 5), padding=(1, 0)), 15),
        (conv(2, kernel=1, padding=0), 15),
        (conv(2, padding=2, dilation=2), 16),
        (nn.MaxPool2d(3, 2, 1), 16),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 16),
        (nn.AvgPool2d(2, 2), 16),
        (nn.AvgPool2d(3, 2, 1, count_include_pad=False), 16),
    ],
)
def test_at_stride_one_the_operation_is_the_strided_one_between_its_positions(module, size):
    x, stride = images(size), module.stride
    strided = module(x)
    model = nn.Sequential(module)
    replace_downsampling(model, x, placement="after")
    made = model[0]
    made.placement = "after"  # Also where it makes no difference, with a pointwise convolution.
    made.pool = nn.Identity()
    steps = (stride, stride) if isinstance(stride, int) else stride
    dense = made(x)
    assert dense.shape[2:] == x.shape[2:]
    rows, columns = strided.shape[2:]
    torch.testing.assert_close(
        dense[:, :, :: steps[0], :: steps[1]][:, :, :rows, :columns], strided, rtol=0, atol=2e-6
    )


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("padding", [0, "valid"])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_pointwise_convolution_comes_after_its_layer(bias, padding, placement):
    x = images(dtype=torch.float64)
    if padding:
        module = nn.Conv2d(3, 4, 1, stride=2, padding=padding, bias=bias)
    else:
        module = conv(2, kernel=1, padding=0, bias=bias)
    model = nn.Sequential(module).double()
    (done,) = replace_downsampling(model, x, placement=placement).replaced
    assert (done.placement, done.reason) == ("before", None)
    y = model(x)
    model[0].placement = "after"
    torch.testing.assert_close(model(x), y, rtol=0, atol=1e-13)


@pytest.mark.parametrize("kind", [nn.Conv1d, nn.MaxPool1d, nn.AvgPool1d])
def test_one_dimension(kind):
    module = kind(3, 4, 3, stride=2) if kind is nn.Conv1d else kind(3, 2)
    model = nn.Sequential(module)
    report = replace_downsampling(model, torch.randn(2, 3, 32))
    assert isinstance(report.layers[0], DiffStride1d)
    assert model(torch.randn(2, 3, 32)).shape[-1] == report.replaced[0].output_size[0]


def test_functions_are_kept_and_named():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(2)

        def forward(self, x):
            return nn.functional.max_pool2d(self.conv(x), 2)

    report = replace_downsampling(Net(), images())
    (kept,) = report.kept
    assert (kept.operation, kept.reason) == ("function", "it is a function, not a module")


def test_maps_made_of_tokens_have_their_own_size():
    class Tokens(nn.Module):
        def __init__(self):
            super().__init__()
            self.patches, self.mix, self.down = conv(2), nn.Linear(4, 3), conv(2)

        def forward(self, x):
            x = self.patches(x)
            tokens = self.mix(x.flatten(2).transpose(1, 2))
            return self.down(tokens.transpose(1, 2).reshape(-1, 3, x.shape[2], x.shape[3]))

    report = replace_downsampling(Tokens(), images(32))
    assert [done.input_size for done in report.replaced] == [(32, 32), (16, 16)]
    assert report.breaks == ()


def test_concatenations_are_meetings_too():
    def join(a, b):
        return torch.cat([a, b], 1)

    model = Branches(conv(2), nn.MaxPool2d(2), join)
    report = replace_downsampling(model, images())
    assert len(report.layers) == 1
    assert model.left.pool is model.right.pool


def test_a_stride_of_a_skipped_branch_keeps_the_other():
    model = nn.Sequential(Branches(conv(2), conv(2)), nn.MaxPool2d(2))
    # The left branch is skipped, and so the right one must keep its stride too.
    model[0].join = operator.add
    report = replace_downsampling(model, images(), skip=["0.left"])
    left, right = report.kept
    assert (left.name, left.reason) == ("0.left", "it was to be skipped")
    assert right.name == "0.right"
    assert right.reason == (
        "it shares its stride with an operation that keeps its own: it was to be skipped"
    )
    assert [done.name for done in report.replaced] == ["1"]


def test_skipping_a_part_of_a_model():
    model = build("resnet18")
    report = replace_downsampling(model, images(), skip=["conv1", "layer3"], convention="paper")
    assert {kept.name for kept in report.kept} == {
        *("conv1", "layer3.0.conv1", "layer3.0.downsample.0"),
    }
    assert model.conv1.stride == (2, 2)
    assert len(report.layers) == 3
    assert {layer.settings.convention.name for layer in report.layers} == {"paper"}


def test_report_names_layers_that_cannot_crop():
    model = build("resnet18")
    report = replace_downsampling(model, images())
    assert report.never_cropped == ()
    small = nn.Sequential(conv(2))
    assert replace_downsampling(small, images(size=8), convention="paper").never_cropped == ("0",)
    text = str(report)
    assert "layer2.0.downsample.0 (Conv2d, stride 2x2)" in text
    assert f"{report.multiply_adds_after / 1e6:.1f} M after" in text


class Mean(nn.Module):
    """The mean over all positions, written as a call."""

    def forward(self, x):
        return x.mean((-2, -1))


class Unused(nn.Module):
    """A model that computes one map for nothing."""

    def __init__(self, *, writes=False):
        super().__init__()
        self.used, self.unused, self.writes = conv(2), conv(4), writes

    def forward(self, x):
        y, z = self.used(x), self.unused(x)
        if self.writes:
            y[:, :, ::2, ::2].add_(z)
        return y


class UnusedSum(nn.Module):
    """A model that adds two maps, and returns one of them."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = conv(2), conv(2)

    def forward(self, x):
        y = self.used(x)
        _ = y + self.unused(x)
        return y


def test_a_model_that_is_the_operation_itself_is_refused():
    with pytest.raises(ValueError, match=r"Conv2d is itself the operation .*torch\.nn\.Sequential"):
        replace_downsampling(conv(2), images())


def test_an_operation_without_influence_on_the_output_is_kept():
    report = replace_downsampling(model := Unused(), images())
    assert [done.name for done in report.replaced] == ["used"]
    (kept,) = report.kept
    assert kept.name == "unused"
    assert "the model's output does not depend on it" in kept.reason
    assert "replaced 1 operation by 1 layer:" in str(report)
    assert "kept 1 strided operation:" in str(report)
    model(images()).sum().backward()
    assert report.layers[0].strides.grad is not None
    report = replace_downsampling(Unused(writes=True), images())
    assert [done.name for done in report.replaced] == ["used", "unused"]
    report = replace_downsampling(UnusedSum(), images())
    assert [done.name for done in report.replaced] == ["used", "unused"]
    assert len(report.layers) == 1


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize(
    ("tail", "is_averaged"),
    [
        ([nn.AvgPool2d(2)], {"before": True, "after": True}),
        ([nn.Conv2d(4, 4, 1, stride=2)], {"before": True, "after": True}),
        ([nn.MaxPool2d(2), nn.Identity(), nn.Conv2d(4, 2, 1)], {"before": True, "after": True}),
        ([nn.Conv2d(4, 4, 3, 2, 1)], {"before": False, "after": True}),
        ([nn.AvgPool2d(2), nn.ReLU()], {"before": False, "after": False}),
        ([nn.AvgPool2d(2), nn.Conv2d(4, 4, 3, padding=1)], {"before": False, "after": False}),
        ([nn.AvgPool2d(2), nn.AdaptiveMaxPool2d(2)], {"before": False, "after": False}),
    ],
)
@pytest.mark.parametrize("mean", [nn.AdaptiveAvgPool2d(1), Mean()])
def test_a_stride_that_only_a_mean_follows_is_named(tail, is_averaged, placement, mean):
    torch.manual_seed(0)
    model = copy.deepcopy(nn.Sequential(conv(2), nn.ReLU(), *tail, mean)).double()
    x = images(32).double()
    report = replace_downsampling(model, x, placement=placement)
    model(x).square().sum().backward()
    first, last = report.replaced
    assert not first.only_averaged
    assert first.layer.strides.grad.abs().min() > 1e-9
    assert last.only_averaged == is_averaged[placement]
    assert (last.layer.strides.grad.abs().max() < 1e-9) == last.only_averaged
    assert ("its stride gets no gradient" in str(report)) == last.only_averaged


class Rectified(nn.Conv2d):
    """A convolution that is not linear."""

    def forward(self, x):
        return super().forward(x).relu()


class Tail(nn.Module):
    """A pooling before a module or a function whose name or arguments look like a mean."""

    def __init__(self, after):
        super().__init__()
        self.pool, self.mean, self.after = nn.MaxPool2d(2), nn.BatchNorm2d(3), after

    def forward(self, x):
        return self.after(self, self.pool(x))


@pytest.mark.parametrize(
    "after",
    [
        lambda model, x: model.mean(x).relu(),
        lambda model, x: x.mean(axis=1, keepdim=True).square(),
        lambda model, x: x.mean(-1).square(),
    ],
)
def test_what_only_looks_like_a_mean_is_none(after):
    torch.manual_seed(0)
    model, x = Tail(after), images(32)
    (done,) = replace_downsampling(model, x).replaced
    model(x).sum().backward()
    assert not done.only_averaged
    assert done.layer.strides.grad.abs().min() > 0


def _squaring(module):
    module.register_forward_pre_hook(lambda _, inputs: (inputs[0].square(),))
    return module


@pytest.mark.parametrize(
    "tail",
    [
        [Rectified(3, 4, 1), nn.AdaptiveAvgPool2d(1)],
        [_squaring(nn.AdaptiveAvgPool2d(1))],
        [_squaring(nn.Identity()), nn.AdaptiveAvgPool2d(1)],
    ],
)
def test_hooks_and_subclasses_are_not_taken_for_linear(tail):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.MaxPool2d(2), *copy.deepcopy(tail)), images(32)
    (done,) = replace_downsampling(model, x).replaced
    model(x).square().sum().backward()
    assert not done.only_averaged
    assert done.layer.strides.grad.abs().max() > 1e-6


def test_a_held_stride_that_a_mean_follows_is_not_remarked_on():
    model = nn.Sequential(nn.AvgPool2d(2), Mean())
    report = replace_downsampling(model, images(32), trainable=False)
    assert report.replaced[0].only_averaged
    assert "gradient" not in str(report)


def _with_hook(module):
    module.register_forward_hook(lambda *_: None)
    return module


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.utils.parametrizations.weight_norm(conv(2)), "derives from Conv2d"),
        (_with_hook(conv(2)), "it has hooks"),
        (conv(2, kernel=1, padding=1), "larger than its kernel needs"),
        (nn.AvgPool2d(2, divisor_override=3), "divisor_override"),
    ],
)
def test_what_cannot_be_made_anew_is_kept(module, reason):
    model = nn.Sequential(conv(2), nn.Conv2d(4, 3, 1), module)
    report = replace_downsampling(model, images())
    (kept,) = report.kept
    assert kept.name == "2"
    assert reason in kept.reason


class Deciding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = conv(2)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else self.conv(-x)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: nn.Sequential(nn.Conv2d(3, 4, 3)), {}, ValueError, "no strided operation"),
        (lambda: nn.Sequential(conv(2)), {"skip": ["con"]}, ValueError, "no module 'con'"),
        (lambda: nn.Sequential(conv(2)), {"skip": [1]}, TypeError, "skip must hold names"),
        (lambda: nn.Sequential(conv(2)), {"skip": "0"}, ValueError, "it was to be skipped"),
        (lambda: nn.Sequential(conv(2)), {"convention": "papr"}, ValueError, "convention must be"),
        (Deciding, {}, ValueError, "cannot be traced by torch.fx"),
        (
            lambda: nn.Sequential(nn.Conv2d(4, 4, 3), conv(2)),
            {},
            ValueError,
            r"cannot run on example_input of shape \(2, 3, 64, 64\)",
        ),
        (
            lambda: nn.Sequential(conv(2), nn.Flatten(), nn.Linear(4 * 32 * 32, 5)),
            {"convention": "paper"},
            ValueError,
            "does not run with the sizes that DiffStride gives",
        ),
        (lambda: nn.Sequential(conv(2)), {"trainable": 1}, TypeError, "trainable must be True or"),
        (
            lambda: nn.Sequential(conv(2)),
            {"placement": "behind"},
            ValueError,
            "placement must be one of 'before', 'after'",
        ),
        (
            lambda: nn.Sequential(conv(2)),
            {"placement": "before", "method": "fused"},
            ValueError,
            "placement must be 'after' or None with method 'fused'",
        ),
    ],
)
def test_bad_models_stay_untouched(make, options, error, message):
    model = make()
    before, modules = copy.deepcopy(model.state_dict()), list(model.modules())
    with pytest.raises(error, match=message):
        replace_downsampling(model, images(), **options)
    assert list(model.modules()) == modules
    assert all(module.training for module in modules)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("model", "example", "message"),
    [
        (3, images(), "model must be a torch.nn.Module, got int"),
        (nn.Sequential(conv(2)), [1.0], "example_input must be a tensor"),
    ],
)
def test_wrong_kinds(model, example, message):
    with pytest.raises(TypeError, match=message):
        replace_downsampling(model, example)


def test_an_example_without_spatial_axes_is_refused():
    with pytest.raises(ValueError, match="example_input must have the shape"):
        replace_downsampling(nn.Sequential(conv(2)), torch.zeros(2, 3))


def test_training_modes_and_statistics_stay():
    model = build("resnet18")
    model.layer1.eval()
    mean = model.bn1.running_mean.clone()
    replace_downsampling(model, images())
    assert model.training
    assert not model.layer1.training
    assert torch.equal(model.bn1.running_mean, mean)
