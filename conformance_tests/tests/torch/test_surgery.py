"""Models made anew with DiffStride: which layers they get, and where."""

import copy

import pytest
import torch
import torchvision
from diffstride_torch import (
    AntiAliasingSpectralPool,
    DiffStride2d,
    DiffStrideConv2d,
    flops_penalty,
    freeze,
    project_strides,
    replace_downsampling,
    stride_summary,
)
from support.amounts import quick_first
from support.torch_networks import Branches, build, conv, images, independent_multiply_adds
from torch import nn
from torch.utils.checkpoint import checkpoint
from torchvision.models.feature_extraction import create_feature_extractor

MODELS = {
    # Name: operations replaced, layers that they share.
    "resnet18": (8, 5),
    "resnet50": (8, 5),
    "mobilenet_v3_small": (5, 5),
    "densenet121": (5, 5),
    "convnext_tiny": (4, 4),
}


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
        self.body = create_feature_extractor(
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


class WithQueries(nn.Module):
    """Attention with learnt queries, and with a mask that may be left out."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.query = nn.Linear(8, 8)
        self.queries = nn.Parameter(torch.randn(1, 4, 8))

    def forward(self, x, mask=None):
        x = self.stem(x).flatten(2).transpose(1, 2)
        queries = self.query(self.queries.expand(x.shape[0], -1, -1))
        return nn.functional.scaled_dot_product_attention(queries, x, x, attn_mask=mask)


def test_a_parameter_and_an_absent_mask_among_the_arguments():
    model = WithQueries()
    report = replace_downsampling(model, images())
    assert [done.name for done in report.replaced] == ["stem"]
    assert report.multiply_adds_after > report.multiply_adds_before > 0


def test_a_second_replacement_finds_the_layers_of_the_first():
    model = WithQueries()
    replace_downsampling(model, images())
    with pytest.raises(ValueError, match="DiffStride layers that it has already: 1"):
        replace_downsampling(model, images())
