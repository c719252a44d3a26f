"""Models made anew with DiffStride, what they cost, and what they become when frozen."""

import copy
import operator

import diffstride_torch
import pytest
import timm
import torch
import torchvision
from amounts import quick_first
from diffstride_torch import (
    AntiAliasingSpectralPool,
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv2d,
    FixedResize,
    SpectralPool1d,
    SpectralPool2d,
    SpectralPool3d,
    flops_penalty,
    freeze,
    project_strides,
    replace_downsampling,
    stride_summary,
)
from diffstride_torch.models import preact_resnet18, small_resnet
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

SIZE = 64
MODELS = {
    # Name: operations replaced, layers that they share.
    "resnet18": (8, 5),
    "resnet50": (8, 5),
    "mobilenet_v3_small": (5, 5),
    "densenet121": (5, 5),
    "convnext_tiny": (4, 4),
}


def images(size=SIZE, batch=2, channels=3, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, size, size, generator=generator).to(dtype)


def build(name):
    torch.manual_seed(0)
    return getattr(torchvision.models, name)(weights=None, num_classes=5)


def independent_multiply_adds(model, *inputs):
    """Per image, as torch counts them: what a larger batch adds, without what each batch does."""

    def count(batch):
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            model.eval()(*batch)
        return counter.get_total_flops() // 2

    twice = [torch.cat([x, x]) for x in inputs]
    return (count(twice) - count(inputs)) / len(inputs[0])


class Branches(nn.Module):
    """Two strided branches that meet, in a way to be chosen."""

    def __init__(self, left, right, join=operator.add):
        super().__init__()
        self.left, self.right, self.join = left, right, join

    def forward(self, x):
        return self.join(self.left(x), self.right(x))


def conv(stride, kernel=3, padding=1, **options):
    return nn.Conv2d(3, 4, kernel, stride=stride, padding=padding, **options)


@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("name", quick_first(1, MODELS))
def test_models_of_torchvision(name, placement):
    model, x = build(name), images()
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    report = replace_downsampling(model, x, placement=placement)
    assert (len(report.replaced), len(report.layers)) == MODELS[name]
    assert report.kept == report.breaks == ()
    state = model.state_dict()
    assert all(torch.equal(state[key], value) for key, value in weights.items())
    added = "pool.strides", "pool._extra_state"
    assert all(key.endswith(added) for key in set(state) - set(weights))

    model.eval()(x).square().mean().backward()
    for layer in report.layers:
        assert torch.isfinite(layer.strides.grad).all()
        assert (layer.strides.grad != 0).any()
        assert isinstance(layer, DiffStride2d)
    project_strides(model)
    # Other strides give other sizes, on all branches alike.
    with torch.no_grad():
        for i, layer in enumerate(report.layers):
            layer.strides.copy_(torch.tensor([1.3 + 0.2 * i, 2.9 - 0.3 * i]))
        assert model(x).shape == (2, 5)


def sizes_of_maps(model, x):
    """Return the shapes that every module of a model gives for an input, by its name."""
    shapes = {}

    def note(name):
        def append(module, inputs, output):
            if isinstance(output, torch.Tensor):
                shapes.setdefault(name, []).append(output.shape)

        return append

    # Layers and poolings inside what replaces an operation were no part of the model.
    own = [(n, m) for n, m in model.named_modules() if not n.endswith((".pool", ".operation"))]
    hooks = [module.register_forward_hook(note(name)) for name, module in own]
    with torch.no_grad():
        model.eval()(x)
    for hook in hooks:
        hook.remove()
    return shapes


class UNet(nn.Module):
    """Two levels down, one by a pooling and one by a convolution, and up again by factors."""

    def __init__(self):
        super().__init__()
        self.first, self.pool = nn.Conv2d(3, 4, 3, padding=1), nn.MaxPool2d(2)
        self.down = nn.Conv2d(4, 8, 3, stride=2, padding=1)
        self.up, self.last = nn.ConvTranspose2d(8, 4, 2, 2), nn.ConvTranspose2d(8, 4, 2, 2)

    def forward(self, x):
        a = self.first(x)
        b = self.pool(a)
        c = self.up(self.down(b))
        return torch.cat([self.last(torch.cat([c, b], 1)), a], 1)


class Flat(nn.Sequential):
    """Convolutions of all kinds, and a linear layer that needs their sizes."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 4, 3, stride=2),
            nn.MaxPool2d(3, 2),
            nn.MaxPool2d(3, 2, ceil_mode=True),
            nn.Conv2d(4, 4, 4, stride=2, padding=1),
            nn.Flatten(),
            nn.LazyLinear(5),
        )


class Neck(nn.Module):
    """A feature pyramid: maps enlarged to the sizes of others, and one strided map more."""

    def __init__(self):
        super().__init__()
        self.body = torchvision.models.feature_extraction.create_feature_extractor(
            torchvision.models.resnet18(weights=None), {f"layer{i}": str(i) for i in (2, 3, 4)}
        )
        channels = [128, 256, 512]
        self.neck = torchvision.ops.FeaturePyramidNetwork(channels, 16)
        self.more = nn.Conv2d(16, 16, 3, stride=2, padding=1)

    def forward(self, x):
        maps = list(self.neck(self.body(x)).values())
        return torch.cat([y.flatten(2) for y in (*maps, self.more(maps[-1]))], 2)


FAMILIES = {
    # Name: how many of its operations are kept where strides are learnt.
    "resnet18": 0,
    **dict.fromkeys(["mobilenet_v2", "vgg11", "alexnet", "densenet121", "convnext_tiny"], 0),
    **dict.fromkeys(["regnet_y_400mf", "resnext50_32x4d", "squeezenet1_1", "googlenet"], 0),
    **dict.fromkeys(["shufflenet_v2_x0_5", "efficientnet_b0", "mnasnet0_5"], 0),
    "inception_v3": 6,  # two functions and what meets their outputs
}


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("name", quick_first(1, FAMILIES))
def test_every_map_begins_with_the_size_it_had(name, placement, trainable):
    torch.manual_seed(0)
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    model = getattr(torchvision.models, name)(weights=None, **options)
    x = images(107 if name == "inception_v3" else 75, batch=1)  # Odd, as half of it and so on.
    sizes = sizes_of_maps(model, x)
    report = replace_downsampling(model, x, placement=placement, trainable=trainable)
    found = sizes_of_maps(model, x)
    assert {name: found[name] for name in sizes} == sizes
    functions = [kept for kept in report.kept if kept.operation == "function"]
    assert len(report.kept) == (FAMILIES[name] if trainable else len(functions))
    # Held strides are put beside functions that are kept, and must stay there.
    assert bool(report.breaks) == (not trainable and functions != [])
    offsets = [layer.settings.size_offset for layer in report.layers]
    if name == "resnet18":
        assert set(offsets) == {(0, 0)}
    for layer in report.layers:
        assert layer.strides.requires_grad == trainable


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize(
    ("make", "place", "count", "breaking"),
    [
        (UNet, "cat", 2, 2),
        (Flat, "5", 4, 4),
        (Neck, None, 6, 0),
        (
            # Two strides of 2 beside one of 4: no strides that they share keep them equal.
            lambda: Branches(nn.Sequential(conv(2), nn.Conv2d(4, 4, 3, 2, 1)), conv(4)),
            "add",
            3,
            3,
        ),
        (
            lambda: Branches(conv(2), nn.Sequential(nn.AdaptiveAvgPool2d(32), nn.Conv2d(3, 4, 1))),
            "add",
            1,
            1,
        ),
    ],
)
def test_what_must_keep_its_sizes_runs_until_strides_move(make, place, count, breaking, placement):
    torch.manual_seed(0)
    model, x = make(), images(64)
    sizes = sizes_of_maps(model, x)
    report = replace_downsampling(model, x, placement=placement)
    found = sizes_of_maps(model, x)
    assert {name: found[name] for name in sizes} == sizes
    assert report.kept == ()
    assert len(report.layers) == count
    assert all(layer.strides.requires_grad for layer in report.layers)
    breaks = {found.name.split(" ")[0]: found for found in report.breaks}
    assert set(breaks) == ({place} if place else set())
    assert len({layer for found in report.breaks for layer in found.layers}) == breaking
    for found in report.breaks:
        numbers = ", ".join(str(1 + report.layers.index(layer)) for layer in found.layers)
        assert f"{found.name}, by layer {numbers}: {found.error}" in str(report)
        for layer in found.layers:
            strides = layer.strides.detach().clone()
            with torch.no_grad():
                layer.strides.mul_(1.5)
                with pytest.raises(RuntimeError):
                    model(x)
                layer.strides.copy_(strides)
    # Looking for them left the strides as they were.
    assert {tuple(layer.strides.tolist()) for layer in report.layers} <= {(2.0, 2.0), (4.0, 4.0)}


def test_held_strides_stay_where_they_are():
    torch.manual_seed(0)
    model, x = Flat(), images(64)
    model(x)
    report = replace_downsampling(model, x, trainable=False)
    begun = [layer.strides.clone() for layer in report.layers]
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.5)
    for _ in range(2):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
        project_strides(model)
    assert all(map(torch.equal, begun, (layer.strides for layer in report.layers)))
    assert not any(layer.strides.requires_grad for layer in report.layers)
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize(
    ("module", "size", "offset"),
    [
        (conv(2), 64, 0),
        (conv(2), 63, 0),
        (conv(4, kernel=5, padding=2), 63, 0),
        (conv(2, padding=0), 64, -1),
        (conv(2, padding=0), 63, -1),
        (conv(2, kernel=5, padding=0), 63, -2),
        (conv(2, kernel=4), 64, 0),
        (conv(2, kernel=4), 63, -1),
        (conv(2, kernel=2, padding=0), 63, -1),
        (conv(2, padding=1, dilation=2), 64, -1),
        (nn.MaxPool2d(2), 63, -1),
        (nn.MaxPool2d(2, ceil_mode=True), 63, 0),
        (nn.MaxPool2d(3, 2), 64, -1),
        (nn.MaxPool2d(3, 2, ceil_mode=True), 64, 0),
        (AntiAliasingSpectralPool(stride=2.5), 62, -1),
        # The upper bound of a stride is half the size.
        (conv(2), 2, -1),
    ],
)
def test_the_size_offset_is_the_difference_at_the_example(module, size, offset):
    expected = tuple(module(images(size)).shape[2:])
    model = nn.Sequential(module)
    report = replace_downsampling(model, images(size))
    (layer,) = report.layers
    assert layer.settings.size_offset == (offset, offset)
    assert report.replaced[0].output_size == tuple(model(images(size)).shape[2:]) == expected
    # At every stride and size, within 1 and N.
    plain = DiffStride2d(2.0)
    for stride in (1.0, 1.5, 2.6, 7.0):
        with torch.no_grad():
            layer.strides.fill_(stride)
            plain.strides.fill_(stride)
        for n in (3, 17, 64):
            own = plain.output_sizes((n, n))[0]
            assert layer.output_sizes((n, n)) == (max(1, min(n, own + offset)),) * 2
    assert (f"size offset {offset:+d}x{offset:+d}" in str(report)) == (offset != 0)
    assert layer.to_dict().get("size_offset", [0, 0]) == [offset, offset]


def test_a_frozen_copy_keeps_the_sizes():
    torch.manual_seed(0)
    model, x = Flat(), images(63)
    model(x)
    report = replace_downsampling(model, x)
    penalty = flops_penalty(model, x)
    assert penalty.multiply_adds() == independent_multiply_adds(model, x)
    summary = stride_summary(model)
    assert [axis.output_size for row in summary.rows for axis in row.axes] == [
        m for done in report.replaced for m in done.output_size
    ]
    for other in (freeze(model, x), copy.deepcopy(model)):
        torch.testing.assert_close(other(x), model(x))


def test_a_state_holds_the_size_offset():
    states = []
    for size in (63, 64, 65):
        model = nn.Sequential(nn.MaxPool2d(2))
        replace_downsampling(model, images(size))
        states.append((model, model.state_dict()))
    (odd, state), (even, other), (alike, _) = states
    alike.load_state_dict(state)
    for model, wrong in ((odd, other), (even, state)):
        with pytest.raises(RuntimeError, match=r"size_offset=\[-1, -1\]"):
            model.load_state_dict(wrong)


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (nn.MaxPool2d(2), "it is a pooling"),
        (conv(2, kernel=4), "its kernel is even"),
        (conv(2, kernel=(3, 4)), "its kernel is even"),
        (conv(4, kernel=4, padding=0), "its windows do not overlap, as those of a patch embedding"),
        (conv(4), "its windows do not overlap, as those of a patch embedding"),
        (conv(2, padding=0), "its padding is not half of its kernel"),
        (conv(2, padding=1, dilation=2), "its padding is not half of its kernel"),
        (
            conv(8, kernel=17, padding=8, padding_mode="reflect"),
            "its reflect padding is larger than the map that the layer gives",
        ),
        (conv(2), None),
        (conv((2, 1), kernel=(3, 1), padding=(1, 0)), None),
        (conv(2, padding=2, dilation=2), None),
        (conv(2, padding_mode="reflect"), None),
        (conv(8, kernel=17, padding=8, padding_mode="circular"), None),
        (conv(2, kernel=1, padding=0), None),
    ],
)
def test_layers_stand_before_convolutions_where_they_can(module, reason):
    model = nn.Sequential(module)
    (done,) = replace_downsampling(model, images(64), placement="before").replaced
    assert (done.placement, done.reason) == ("before" if reason is None else "after", reason)
    assert model(images(64)).shape[2:] == done.output_size


def test_a_convolution_with_a_layer_before_it_is_both_in_a_row():
    module, x = conv(2, padding_mode="circular"), images()
    expected = nn.functional.conv2d(
        nn.functional.pad(DiffStride2d(2.0)(x), (1, 1, 1, 1), mode="circular"),
        module.weight,
        module.bias,
    )
    model = nn.Sequential(module)
    replace_downsampling(model, x, placement="before")
    torch.testing.assert_close(model(x), expected)


def calls_of(layers):
    """Return a list that each call of a layer adds an entry to."""
    calls = []
    for layer in layers:
        layer.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_convolutions_that_read_the_same_tensor_share_one_call():
    model, x = build("resnet18").eval(), images()
    report = replace_downsampling(model, x)
    expected = model(x)
    weights = list(model.parameters())
    gradients = torch.autograd.grad(expected.square().sum(), weights)
    calls = calls_of(report.layers)
    for make in (lambda: model, lambda: copy.deepcopy(model)):
        other = make()
        calls.clear()
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        assert len(calls) == len(report.layers) == 5
    with torch.inference_mode():
        calls.clear()
        model(x)
        assert len(calls) == 5
    # Nothing is kept between passes.
    block = model.layer2[0]
    assert block.conv1._call is block.downsample[0]._call
    assert block.conv1._call._last is None
    # Each convolution with a call of its own gives the same.
    for module in model.modules():
        if isinstance(module, DiffStrideConv2d):
            module._call = None
    y = model(x)
    torch.testing.assert_close(y, expected, rtol=0, atol=0)
    torch.testing.assert_close(torch.autograd.grad(y.square().sum(), weights), gradients)


def test_a_shared_call_is_made_again_where_it_would_give_something_else():
    model, x = Branches(conv(2), conv(2)).eval(), images(16)
    (layer,) = replace_downsampling(model, x).layers
    calls = calls_of([layer])
    left, right = model.left, model.right

    def fresh(module):
        return module.convolve(layer(x))

    for change in (
        lambda: x.mul_(2.0),
        lambda: layer.strides.data.fill_(3.0),
        lambda: left(x),  # Which begins anew: a pass may end before all have read.
    ):
        left(x)
        change()
        expected = fresh(right)
        torch.testing.assert_close(right(x), expected, rtol=0, atol=0)
    with torch.no_grad():
        left(x)
    assert right(x).requires_grad
    left(x.clone())
    calls.clear()
    right(x)
    assert len(calls) == 1


@pytest.mark.parametrize("reentrant", [True, False])
def test_readers_of_a_shared_call_may_go_backward_and_be_checkpointed_apart(reentrant):
    model, x = Branches(conv(2), conv(2)), images(16)
    replace_downsampling(model, x)
    x.requires_grad_()
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model.left(x).sum() + model.right(x).sum(), parameters)
    model.left(x).sum().backward()
    model.right(x).sum().backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected))
    model.zero_grad()
    left, right = (
        checkpoint(part, x, use_reentrant=reentrant) for part in (model.left, model.right)
    )
    (left.sum() + right.sum()).backward()
    torch.testing.assert_close([p.grad for p in parameters], list(expected))


def test_convolutions_do_not_share_a_call_where_the_tensor_is_written_into():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.act = conv(2), conv(2), nn.ReLU(inplace=True)

        def forward(self, x):
            x = x + 1
            y = self.a(x)
            self.act(x)
            return y + self.b(x)

    model, x = Net(), images(16)
    (layer,) = replace_downsampling(model, x).layers
    assert model.a._call is model.b._call is None
    x1 = x + 1
    torch.testing.assert_close(
        model(x), model.a.convolve(layer(x1)) + model.b.convolve(layer(x1.relu()))
    )


@pytest.mark.slow
def test_a_shared_call_is_compiled_and_exported():
    model, x = build("resnet18").eval(), images()
    replace_downsampling(model, x)
    expected = model(x)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(freeze(model, x), (x,)).module()
    torch.testing.assert_close(exported(x), expected)


@pytest.mark.parametrize(
    ("placement", "most"), [("before", 1.07), pytest.param("after", 1.37, marks=pytest.mark.slow)]
)
def test_multiply_adds_of_resnet18_at_224(placement, most):
    model = build("resnet18")
    report = replace_downsampling(model, images(224, batch=1), placement=placement)
    assert 1 < report.multiply_adds_after / report.multiply_adds_before <= most


def test_activations_in_place_stay():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.ReLU(inplace=True),
    )
    x = images(32)
    replace_downsampling(model, x)
    gradients = []
    for inplace in (True, False):
        model[1].inplace = model[3].inplace = inplace
        gradients.append(torch.autograd.grad(model(x).square().sum(), list(model.parameters())))
    torch.testing.assert_close(*gradients)


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


STRIDES = [(2.0, 2.0), (1.4, 2.7), (3.1, 1.9)]


@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@pytest.mark.parametrize(
    "name", quick_first(2, ["resnet18", "mobilenet_v3_small", "densenet121", "convnext_tiny"])
)
def test_multiply_adds_are_those_of_an_independent_counter(name):
    model, x = build(name), images()
    report = replace_downsampling(model, x)
    penalty = flops_penalty(model, x)
    for strides in STRIDES:
        with torch.no_grad():
            for i, layer in enumerate(report.layers):
                layer.strides.copy_(torch.tensor(strides) + 0.1 * i)
        assert penalty.multiply_adds() == independent_multiply_adds(model, x)
        assert penalty().item() == pytest.approx(penalty.multiply_adds(), rel=1e-6)


@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_multiply_adds_of_our_models(convention, placement):
    strides = (1.5, 2.2, 3.0)
    model = small_resnet(convention=convention, placement=placement, strides=strides)
    x = images(28, channels=1)
    penalty = flops_penalty(model, x)
    assert penalty.multiply_adds() == independent_multiply_adds(model, x)
    assert penalty.layers == [block.pool for block in model.blocks]
    shares = [penalty.of_layer(layer) + penalty.at_output_of(layer) for layer in penalty.layers]
    assert 0 < sum(shares) < penalty.multiply_adds()


# What a convention makes of one map: the authors' code is a sum of two real operators.
TERMS = {"nominal": 1, "paper": 1, "tensorflow": 2}

# Where the smooth size is a whole number, of either parity, and so M itself: the convention, how
# much larger than N/S it is, N, and the strides of two layers.
AT_WHOLE_SIZES = (
    ("nominal", 0, 105, [[3.0, 2.1], [1.4, 2.0]]),  # To 35 x 50, to 25 x 25.
    ("nominal", 0, 84, [[2.1, 4.0], [2.5, 1.4]]),  # To 40 x 21, to 16 x 15.
    ("paper", 8, 96, [[2.0, 1.6], [1.75, 3.4]]),  # To 56 x 68, to 40 x 28.
    ("tensorflow", 8, 96, [[2.0, 1.6], [1.75, 3.4]]),
)
at_whole_sizes = pytest.mark.parametrize(
    ("convention", "larger", "size", "strides"),
    AT_WHOLE_SIZES,
    ids=[f"{convention}-{size}" for convention, _, size, _ in AT_WHOLE_SIZES],
)


def slopes(cost, strides):
    """Return the derivatives of a cost in each stride, by finite differences."""
    found = []
    for layer, own in enumerate(strides):
        found.append([])
        for axis in range(len(own)):
            ends = []
            for step in (1e-5, -1e-5):
                moved = copy.deepcopy(strides)
                moved[layer][axis] += step
                ends.append(cost(moved))
            found[-1].append((ends[0] - ends[1]) / 2e-5)
    return found


def resize_cost(n, m, strides):
    """Return the multiply-adds of resizing one map by matrices, of smooth sizes."""
    (n_h, n_w), (m_h, m_w) = n, m
    # The axis that shrinks more comes first.
    return (m_h if strides[0] > strides[1] else m_w) * n_h * n_w + (
        m_h * m_w * (n_w if strides[0] > strides[1] else n_h)
    )


@at_whole_sizes
def test_gradient_is_that_of_the_smooth_size(convention, larger, size, strides):
    options = {"convention": convention, "method": "matmul", "dtype": torch.float64}
    layers = [DiffStride2d(own, **options) for own in strides]
    model = nn.Sequential(*layers, nn.Conv2d(3, 16, 3, padding=1)).double()
    penalty = flops_penalty(model, images(size, batch=1, dtype=torch.float64))

    def smooth_cost(strides):
        n, products = (size, size), 0.0
        for own in strides:
            m = tuple(a / stride + larger for a, stride in zip(n, own, strict=True))
            products += 3 * TERMS[convention] * resize_cost(n, m, own)
            n = m
        return products + 9 * 3 * 16 * n[0] * n[1]

    assert penalty.initial == pytest.approx(smooth_cost(strides), rel=1e-9)
    penalty().backward()
    for layer, expected in zip(layers, slopes(smooth_cost, strides), strict=True):
        assert layer.strides.grad.tolist() == pytest.approx(expected, rel=1e-6)


def test_a_shared_stride_gets_both_slopes():
    model = nn.Sequential(DiffStride2d(2.0, shared=True), nn.Conv2d(3, 4, 3))
    apart = nn.Sequential(DiffStride2d((2.0, 2.0)), nn.Conv2d(3, 4, 3))
    x = images()
    for network in (model, apart):
        flops_penalty(network, x)().backward()
    assert model[0].strides.grad.item() == pytest.approx(apart[0].strides.grad.sum().item())


def test_a_layer_that_cannot_crop_gets_no_slope():
    model = nn.Sequential(DiffStride2d(2.0, convention="paper"), nn.Conv2d(3, 4, 3))
    with pytest.warns(match="can never be cropped"):
        penalty = flops_penalty(model, images(8))
    penalty().backward()
    assert model[0].strides.grad.tolist() == [0.0, 0.0]


def test_descending_the_penalty_makes_the_network_cheaper():
    model, x = small_resnet(convention="nominal", strides=(1.2, 1.2, 1.2)), images(28, channels=1)
    penalty = flops_penalty(model, x)
    strides = [block.pool.strides for block in model.blocks]
    optimizer = torch.optim.SGD(strides, lr=1.0)
    for _ in range(20):
        optimizer.zero_grad()
        (penalty() / penalty.initial).backward()
        optimizer.step()
        project_strides(model)
    assert penalty.multiply_adds() < 0.5 * penalty.initial


def test_costs_that_are_not_known_are_refused():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.pool = DiffStride2d(2.0)

        def forward(self, x):
            y = self.pool(x).flatten(2)
            return y.transpose(1, 2) @ y

    with pytest.raises(ValueError, match=r"Attention: how the (cost|size)"):
        flops_penalty(Attention(), images())


class _Wrapper(nn.parallel.DistributedDataParallel):
    """A wrapper without a group of processes."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.parametrize(
    "wrap",
    [
        nn.DataParallel,
        _Wrapper,
        torch.optim.swa_utils.AveragedModel,
        lambda model: torch.compile(model, backend="eager"),
        lambda model: torch.compile(nn.DataParallel(model), backend="eager"),
    ],
)
def test_a_wrapped_model_costs_what_the_model_does(wrap):
    model = nn.Sequential(nn.Conv2d(1, 2, 3), DiffStride2d(2.3, convention="nominal"))
    wrapped, x = wrap(model), torch.zeros(1, 1, 20, 20)
    penalty = flops_penalty(wrapped, x)
    assert penalty() == flops_penalty(model, x)()
    assert stride_summary(wrapped, penalty).multiply_adds == penalty.multiply_adds()
    with pytest.raises(ValueError, match=r"torch\.fx.*; give the model before it is wrapped"):
        replace_downsampling(wrapped, x)


def test_a_model_without_layers_has_no_penalty():
    with pytest.raises(ValueError, match="model must have a DiffStride layer, got Sequential"):
        flops_penalty(nn.Sequential(conv(2)), images())


def trained_resnet18(size=48):
    model, x = build("resnet18"), images(size)
    replace_downsampling(model, x, skip=["maxpool"])
    with torch.no_grad():
        for i, layer in enumerate(m for m in model.modules() if isinstance(m, DiffStride2d)):
            layer.strides.copy_(torch.tensor([1.6 + 0.3 * i, 2.4 - 0.1 * i]))
    return model.eval(), x


def test_frozen_model_is_equal_and_has_no_stride():
    model, x = trained_resnet18()
    with torch.no_grad():
        expected = model(x)
        frozen = freeze(model, x)
        torch.testing.assert_close(frozen(x), expected, rtol=1e-6, atol=1e-6)
    kinds = {type(module) for module in frozen.modules()}
    assert FixedResize in kinds
    assert DiffStride2d not in kinds
    assert DiffStride2d in {type(module) for module in model.modules()}
    assert not any("strides" in name for name, _ in frozen.named_parameters())
    assert frozen.layer2[0].conv1.pool is frozen.layer2[0].downsample[0].pool


@pytest.mark.parametrize("size", [40, 300])
@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_layers_of_every_convention(convention, dtype, size):
    layer = DiffStride2d((1.7, 2.6), convention=convention).to(dtype)
    x = images(size, dtype=dtype)
    y = layer(x)
    frozen = freeze(layer)
    limit = 1e-13 if dtype == torch.float64 else 2e-6
    assert (frozen(x) - y).abs().max() <= limit * y.abs().max()


def test_frozen_axes_elsewhere_half_precision_and_pooling():
    layer = DiffStride2d((1.7, 2.6), axes=(1, 2))
    x = images(40).permute(0, 2, 3, 1)
    torch.testing.assert_close(freeze(layer, x)(x), layer(x), rtol=0, atol=2e-6)
    y = freeze(layer, x).half()(x.half())
    assert y.dtype == torch.float16
    torch.testing.assert_close(y, layer(x.half()), rtol=2e-3, atol=2e-3)
    pool = SpectralPool2d(2.5)
    torch.testing.assert_close(freeze(pool, x)(x), pool(x), rtol=0, atol=2e-6)


def test_a_frozen_layer_keeps_its_precision_under_autocast():
    layer, x = DiffStride2d(2.0), images()
    y, frozen = layer(x), freeze(layer, x)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(frozen(x), y, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: DiffStride2d(2.0),
        lambda: DiffStride2d((2.0, 2.5), axes=(1, 2)),
        lambda: DiffStrideConv2d(3, 4, 3, 2.0, method="fused"),
    ],
)
def test_a_frozen_output_takes_operations_in_place(make):
    layer, x, weight = make(), images(16), torch.ones(1, requires_grad=True)
    layer = freeze(nn.Sequential(layer), x)
    for grad in (True, False):
        with torch.set_grad_enabled(grad):
            expected, y = layer(x), layer(x)
        y *= weight
        y.relu_()
        torch.testing.assert_close(y, expected.relu())
        assert y.requires_grad


def test_what_cannot_be_frozen():
    uncopied = nn.Sequential(DiffStride2d(2.0))
    uncopied.made = torch.ones(1, requires_grad=True) * 2  # which PyTorch does not copy
    with pytest.raises(ValueError, match=r"model Sequential cannot be copied, as it must be"):
        freeze(uncopied, images(32))
    with pytest.raises(ValueError, match="got Sequential with none"):
        freeze(nn.Sequential(conv(2)))
    with pytest.raises(ValueError, match=r"layer '0' must meet exactly one input size .* got none"):
        freeze(nn.Sequential(DiffStride2d(2.0)))
    layer = nn.Sequential(DiffStride2d(2.0))
    layer(images(32))
    layer(images(40))
    with pytest.raises(ValueError, match=r"got \(32, 32\), \(40, 40\)"):
        freeze(layer)
    with pytest.raises(ValueError, match=r"sizes \(32, 32\) along the axes .* got \(40, 40\)"):
        freeze(layer, images(32))(images(40))
    with pytest.raises(TypeError, match="model must be"):
        freeze(3)


def test_freezing_leaves_no_trace_in_the_model():
    model = nn.Sequential(DiffStride2d(2.0))
    freeze(model, images(20))
    assert model[0].plans_seen() == ()
    assert not model[0]._forward_hooks
    assert model.training


class Decoder(nn.Module):
    """Enlarges a map to the size of an earlier one, whose size follows from a stride."""

    def __init__(self, first="deep"):
        super().__init__()
        self.stem, self.down = conv(2), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.out, self.first = nn.Conv2d(4, 5, 3, padding=1), first

    def forward(self, x):
        skip = self.stem(x)
        deep = nn.functional.interpolate(self.down(skip), size=skip.shape[2:])
        return self.out(deep + skip if self.first == "deep" else skip + deep)


class Squeeze(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.scale = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.pool = DiffStride2d(1.5, convention="nominal")

    def forward(self, x):
        x = self.pool(self.first(x))
        return x * self.scale(x.mean((2, 3), keepdim=True))


class GlobalPool(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.head = conv(2), nn.Linear(4, 2)

    def forward(self, x):
        x = self.conv(x)
        return self.head(nn.functional.avg_pool2d(x, x.size()[3]).flatten(1))


class TwoInputs(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = (nn.Sequential(DiffStride2d(1.5), conv(1)) for _ in range(2))

    def forward(self, x, y):
        return self.a(x).mean((2, 3)) + self.b(y).mean((2, 3))


@pytest.mark.parametrize("scale", [1.0, 1.3, 1.7])
@pytest.mark.parametrize(
    ("make", "inputs"),
    [
        (Decoder, (images(64),)),
        (lambda: Decoder("skip"), (images(64),)),
        (Squeeze, (images(2),)),
        (GlobalPool, (images(48),)),
        (TwoInputs, (images(64), images(48))),
        (
            lambda: nn.Sequential(
                DiffStride2d(2.0, convention="nominal"), nn.AdaptiveAvgPool2d(20), conv(1)
            ),
            (images(32),),
        ),
    ],
)
@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
def test_multiply_adds_where_sizes_meet(make, inputs, scale):
    model = make()
    if isinstance(model, Decoder | GlobalPool):
        replace_downsampling(model, inputs)
    penalty = flops_penalty(model, inputs)
    with torch.no_grad():
        for layer in penalty.layers:
            layer.strides.mul_(scale)
    assert penalty.multiply_adds() == independent_multiply_adds(model, *inputs)


@pytest.mark.parametrize(("placement", "count"), [("before", 2), ("after", 3)])
def test_branches_of_global_means_share_no_more_than_a_call(placement, count):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(2), nn.Sequential(conv(2), nn.Conv2d(4, 4, 3, 2, 1))

        def forward(self, x):
            return self.a(x).mean((2, 3)) + self.b(x).mean((2, 3))

    report = replace_downsampling(Net(), images(), placement=placement)
    assert len(report.layers) == count
    assert report.kept == report.breaks == ()


def test_tracing_leaves_no_size_in_the_layers():
    model = nn.Sequential(DiffStride2d(2.0), nn.Conv2d(3, 4, 3))
    flops_penalty(model, images(20))
    assert model[0].plans_seen() == ()


def test_every_name_of_a_skipped_module_counts():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = conv(2), nn.Conv2d(4, 4, 3, stride=2)
            self.again = self.second

        def forward(self, x):
            return self.second(self.first(x))

    report = replace_downsampling(Net(), images(), skip=["again"])
    assert [kept.name for kept in report.kept] == ["second"]


def test_valid_padding_in_words():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding="valid"))
    report = replace_downsampling(model, images())
    assert report.kept == ()
    assert report.replaced[0].input_size == (SIZE, SIZE)


def test_functions_of_one_module_are_told_apart():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = conv(2)

        def forward(self, x):
            return nn.functional.max_pool2d(nn.functional.max_pool2d(self.conv(x), 2), 2)

    report = replace_downsampling(Net(), images())
    assert len({kept.name for kept in report.kept}) == 2


def test_a_frozen_pooling_in_double_precision_stays_so():
    model = nn.Sequential(conv(1), SpectralPool2d(2.5)).double()
    x = images(40, dtype=torch.float64)
    torch.testing.assert_close(freeze(model, x)(x), model(x), rtol=0, atol=1e-13)


# --- Convolutions with learnt strides -----------------------------------------------------------

METHODS = ("fused", "separate", "auto")
each_method = pytest.mark.parametrize("method", METHODS)


class Given(nn.Module):
    """Convolutions, each handed to the layer behind it."""

    def __init__(self, strides, *, method="auto", kernel_size=3, **options):
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(3 if i == 0 else 16, 16, kernel_size, padding="same")
            for i in range(len(strides))
        )
        # Matrices alone, so that all is counted.
        options = {"method": "matmul", **options}
        self.pools = nn.ModuleList(DiffStride2d(stride, **options) for stride in strides)
        self.method = method

    def forward(self, x):
        for conv, pool in zip(self.convs, self.pools, strict=True):
            x = pool(conv=conv, method=self.method, x=x)
        return x


def runs_convolutions(f):
    """Return how many convolutions of more than a point are run."""

    class Convolutions(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.overloadpacket is torch.ops.aten.convolution:
                self.count += max(args[1].shape[2:]) > 1
            return func(*args, **(kwargs or {}))

    with torch.no_grad(), Convolutions() as convolutions:
        f()
    return convolutions.count


def test_strided_convolutions_become_convolutions_with_learnt_strides():
    for method in METHODS:
        model = build("resnet18")
        report = replace_downsampling(model, images(), method=method)
        for done in report.replaced:
            made = model.get_submodule(done.name)
            assert isinstance(made, DiffStrideConv2d) == (done.operation == "Conv2d")
            assert made.pool is done.layer
            if done.operation == "Conv2d":
                is_before = method == "auto" or made.kernel_size == (1, 1)
                assert done.placement == made.placement == ("before" if is_before else "after")
                assert (made.method, made.stride) == ("auto" if is_before else method, (1, 1))


def test_every_method_gives_the_same_network():
    x = images(dtype=torch.float64)
    results = []
    for method in METHODS:
        model = build("resnet18").double().eval()
        report = replace_downsampling(model, x, placement="after", method=method)
        y = model(x)
        strides = [layer.strides for layer in report.layers]
        results.append((y, *torch.autograd.grad(y.square().sum(), (*strides, model.conv1.weight))))
    for others in results[1:]:
        for found, expected in zip(others, results[0], strict=True):
            torch.testing.assert_close(
                found, expected, rtol=0, atol=1e-11 * expected.abs().max().item()
            )


@pytest.mark.parametrize(
    ("module", "is_fused"),
    [
        (conv(2, kernel=5, padding=2), True),
        (conv(2, padding=1, padding_mode="circular"), True),
        (conv(2, padding=1, padding_mode="reflect"), False),
        (conv(2, padding=0), False),
        (conv(2, kernel=4, padding=1), False),
        (conv(2, kernel=2, padding=1, dilation=2), False),
    ],
)
def test_convolutions_are_fused_where_that_is_possible(module, is_fused):
    model, x = nn.Sequential(module).double(), images(dtype=torch.float64)
    replace_downsampling(model, x, method="fused")
    assert runs_convolutions(lambda: model(x)) == (not is_fused)
    fused = model(x)
    model[0].method = "separate"
    torch.testing.assert_close(model(x), fused, rtol=0, atol=1e-12)


def test_an_unknown_method_is_refused():
    with pytest.raises(ValueError, match="method must be one of 'auto', 'fused', 'separate'"):
        replace_downsampling(nn.Sequential(conv(2)), images(), method="fft")


@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@each_method
@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_frozen_convolutions_are_equal(convention, dtype, method):
    torch.manual_seed(0)
    paper = {"convention": "paper", "method": method}
    model = nn.Sequential(
        DiffStrideConv2d(3, 8, 5, (2.6, 4.7), convention=convention, method=method),
        nn.ReLU(),
        DiffStrideConv2d(8, 8, 3, 1.7, groups=4, padding_mode="circular", **paper),
        DiffStrideConv2d(8, 4, 1, (1.3, 1.7), **paper),
        DiffStrideConv2d(4, 4, (3, 5), 1.6, convention=convention, method=method),
    ).to(dtype)
    x = images(48, dtype=dtype)
    with torch.no_grad():
        y, frozen = model(x), freeze(model, x)
        assert not any(isinstance(module, DiffStride2d) for module in frozen.modules())
        assert (frozen(x) - y).abs().max() <= {
            torch.float64: 1e-12,
            torch.float32: 2e-6,
        }[dtype] * y.abs().max()
    assert runs_convolutions(lambda: frozen(x)) == runs_convolutions(lambda: model(x))


def test_frozen_layers_in_another_precision_are_given_convolutions():
    layer, module = DiffStride2d(2.0), nn.Conv2d(3, 4, 3, padding=1)
    frozen, x = freeze(layer, images()), images()
    expected = frozen(x, module, method="separate")
    for dtype, limit in ((torch.float64, 1e-6), (torch.bfloat16, 0.02)):
        module.to(dtype)
        for method in ("fused", "separate"):
            y = frozen(x.to(dtype), module, method=method)
            assert y.dtype == dtype
            torch.testing.assert_close(y.float(), expected, rtol=0, atol=limit * 4)


def test_a_frozen_convolution_keeps_its_precision_under_autocast():
    conv, x = DiffStrideConv2d(3, 4, 3, 2.0, method="fused"), images()
    frozen = freeze(conv, x)
    with torch.autocast("cpu", torch.bfloat16):
        y = frozen(x)
    # Rounded are the inputs and the output, not the matrices.
    assert torch.equal(y, frozen.bfloat16()(x.bfloat16()))
    assert frozen.pool.get_buffer("matrix_0_0").dtype == torch.float32


@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
@pytest.mark.parametrize("method", quick_first(1, METHODS))
def test_multiply_adds_of_convolutions_are_those_of_an_independent_counter(method):
    model, x = build("resnet18"), images()
    report = replace_downsampling(model, x, placement="after", method=method)
    penalty = flops_penalty(model, x)
    assert report.multiply_adds_after == penalty.initial
    for strides in STRIDES:
        with torch.no_grad():
            for i, layer in enumerate(report.layers):
                layer.strides.copy_(torch.tensor(strides) + 0.1 * i)
        assert penalty.multiply_adds() == independent_multiply_adds(model, x)
        parts = [penalty.of_layer(layer) + penalty.at_output_of(layer) for layer in report.layers]
        assert 0 < sum(parts) < penalty.multiply_adds()


@pytest.mark.parametrize("groups", [1, 3])
def test_the_method_counted_is_the_one_that_runs(groups):
    torch.manual_seed(0)
    model = nn.Sequential(
        DiffStrideConv2d(
            24, 24, 5, 1.1, groups=groups, padding_mode="circular", convention="nominal"
        ),
        nn.Conv2d(24, 4, 1),
    )
    x = images(40, channels=24)
    model[0].placement = "after"
    penalty, methods = flops_penalty(model, x), []
    for stride in (1.1, 1.3, 1.7, 2.1, 2.6, 3.3, 4.4, 6.0, 10.0, 20.0):
        with torch.no_grad():
            model[0].pool.strides.fill_(stride)
        assert penalty.multiply_adds() == independent_multiply_adds(model, x)
        methods.append("separate" if runs_convolutions(lambda: model(x)) else "fused")
    # From one to the other, once.
    assert methods == sorted(methods, reverse=True)
    assert set(methods) == {"fused", "separate"}


def test_what_forbids_to_fuse_is_counted_too():
    model, x = Given([12.0], kernel_size=7, convention="nominal"), images(48)
    penalty = flops_penalty(model, x)
    for hooks in (0, 1):
        assert runs_convolutions(lambda: model(x)) == hooks
        assert penalty.multiply_adds() == independent_multiply_adds(model, x)
        model.convs[0].register_forward_hook(lambda *_: None)


class Row(nn.Module):
    """Convolutions in front of fixed and of learnt strides, of any rank."""

    def __init__(self, rank, method):
        super().__init__()
        conv, learnt, fixed = {
            1: (nn.Conv1d, DiffStride1d, SpectralPool1d),
            2: (nn.Conv2d, DiffStride2d, SpectralPool2d),
            3: (nn.Conv3d, DiffStride3d, SpectralPool3d),
        }[rank]
        self.convs = nn.ModuleList(conv(n, 8, 3, padding=1) for n in (3, 8, 8))
        layers = fixed(2.0), learnt(2.0, convention="nominal"), fixed(1.5)
        self.layers, self.method = nn.ModuleList(layers), method

    def forward(self, x):
        for conv, layer in zip(self.convs, self.layers, strict=True):
            x = layer(x, conv, method=self.method)
        return x


@each_method
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_convolutions_of_every_rank_in_front_of_fixed_and_learnt_strides(rank, method):
    torch.manual_seed(0)
    model, x = Row(rank, method), torch.randn(2, 3, *(16, 12, 20)[:rank])
    penalty = flops_penalty(model, x)
    assert penalty.initial == independent_multiply_adds(model, x)
    y, frozen = model(x), freeze(model, x)
    assert sum(isinstance(module, FixedResize) for module in frozen.modules()) == 3
    assert (frozen(x) - y).abs().max() <= 2e-6 * y.abs().max()


@pytest.mark.parametrize(
    "model",
    [
        DiffStrideConv2d(3, 4, 5, 6.0),
        DiffStrideConv2d(3, 4, 3, method="separate"),
        DiffStrideConv2d(3, 4, 1, norm="ortho"),
        DiffStrideConv2d(3, 4, 1),
        preact_resnet18().stem,
    ],
    ids=lambda model: model.extra_repr(),
)
def test_a_module_alone_is_counted(model):
    penalty = flops_penalty(model, images())
    assert penalty.layers == [model.pool]
    assert penalty.initial == independent_multiply_adds(model, images())


@each_method
def test_convolutions_that_share_a_layer_in_any_order(method):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = (DiffStrideConv2d(3, 4, 3, method=method) for _ in range(2))
            self.b.pool = self.a.pool

        def forward(self, x):
            return self.b(x) + self.a(x)

    model, x = Net(), images()
    penalty = flops_penalty(model, x)
    assert penalty.layers == [model.a.pool]
    assert penalty.initial == independent_multiply_adds(model, x)
    torch.testing.assert_close(freeze(model, x)(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("method", ["fused", "separate"])
@at_whole_sizes
def test_gradient_of_convolutions_is_that_of_the_smooth_size(
    convention, larger, size, strides, method
):
    model = Given(strides, method=method, convention=convention).double()
    penalty = flops_penalty(model, images(size, batch=1, dtype=torch.float64))

    def smooth_cost(strides):
        n, products, channels, terms = (size, size), 0.0, 3, TERMS[convention]
        for own in strides:
            m = tuple(a / stride + larger for a, stride in zip(n, own, strict=True))
            if method == "fused":
                products += channels * terms * (3 * m[0] * n[0] * n[1] + 9 * m[0] * m[1] * n[1])
                products += 16 * 9 * channels * terms * m[0] * m[1]
            else:
                products += 16 * 9 * channels * n[0] * n[1]
                products += 16 * terms * resize_cost(n, m, own)
            n, channels = m, 16
        return products

    assert penalty.initial == pytest.approx(smooth_cost(strides), rel=1e-9)
    penalty().backward()
    for pool, expected in zip(model.pools, slopes(smooth_cost, strides), strict=True):
        assert pool.strides.grad.tolist() == pytest.approx(expected, rel=1e-6)


def test_gradient_where_the_costs_order_decides_is_that_of_the_method_that_runs():
    x = images(64)
    for stride in (1.2, 8.0):
        gradients = {}
        for method in METHODS:
            model = Given([stride], method=method, kernel_size=5)
            flops_penalty(model, x)().backward()
            gradients[method] = model.pools[0].strides.grad
        model = Given([stride], kernel_size=5)
        runs = "separate" if runs_convolutions(lambda: model(x)) else "fused"  # noqa: B023
        assert torch.equal(gradients["auto"], gradients[runs])
        assert not torch.equal(gradients["fused"], gradients["separate"])


def test_the_old_name_of_anti_aliasing_spectral_pooling_warns():
    with pytest.warns(DeprecationWarning, match="AntiAliasingSpectralPool"):
        assert diffstride_torch.AntiAliasing is AntiAliasingSpectralPool
    with pytest.raises(AttributeError, match="no attribute 'Aliasing'"):
        diffstride_torch.Aliasing  # noqa: B018
