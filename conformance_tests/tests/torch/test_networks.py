"""The residual networks: strides, sizes, weights, and what is refused."""

import math
import re
import warnings
from functools import partial
from pathlib import Path

import diffstride_torch
import pytest
import torch
import torchvision
from diffstride_torch import (
    DiffStride2d,
    flops_penalty,
)
from diffstride_torch.models import (
    BasicBlock,
    PreActBlock,
    PreActResNet,
    ResNet,
    Stem,
    preact_resnet18,
    preact_resnet56,
    resnet18,
    small_resnet,
)
from support.torch_residual import BLOCKS, BUILDERS, PLACEMENTS, POOLINGS, any_network, shake, thin
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def layers(network):
    return [name for name, module in network.named_modules() if isinstance(module, DiffStride2d)]


def parameter_count(network):
    return sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)


def output_sizes(network, modules, images):
    """Return height and width of the modules' outputs, and count the convolutions' multiply-adds.

    Per image; the counter takes a multiply-add for two operations.
    """
    sizes = []
    hooks = [
        module.register_forward_hook(lambda _, __, y: sizes.append(tuple(y.shape[-2:])))
        for module in modules
    ]
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network.eval()(images)
    for hook in hooks:
        hook.remove()
    operations = counter.get_flop_counts()["Global"][torch.ops.aten.convolution]
    return sizes, operations // 2 // len(images)


ORDERS = [
    # builder, stem, strides, names of the layers by their place
    ("18", "small", (1.0, 1.0, 2.0, 2.0, 2.0), "stem 2 3 4"),
    ("18", "small", (1.0, 1.0, 3.0, 2.0, 3.0), "stem 2 3 4"),
    ("18", "small", (1.0, None, 2.0, 2.0, 2.0), "stem 2 3 4"),
    ("18", "small", [1, (1, 1), 2, 2, 2], "stem 2 3 4"),
    ("18", "small", (None, None, 2.0, None, 3.0), "2 4"),
    ("18", "small", (1.0, 2.0, 2.0, 2.0), "1 2 3 4"),
    ("18", "small", (2.0, 2.0, 3.0), "2 3 4"),
    ("18", "small", (None, None, None), ""),
    ("18", "small", None, "stem 2 3 4"),
    ("18", "imagenet", (1.0, 2.0, 2.0, 2.0), "1 2 3 4"),
    ("18", "imagenet", (None, 2.0, 2.0, 2.0), "2 3 4"),
    ("18", "imagenet", (2.0, 2.0, 2.0), "2 3 4"),
    ("18", "imagenet", (None, 1.0, 2.0, 2.0, 2.0), "2 3 4"),
    ("18", "imagenet", None, "1 2 3 4"),
    ("56", "small", (1.0, 1.0, 2.0, 2.0), "stem 1 2 3"),
    ("56", "small", (None, 2.0, None, 2.0), "1 3"),
    ("56", "small", None, "stem 1 2 3"),
    ("56", "imagenet", (None, 1.0, 2.0, 2.0), "1 2 3"),
    ("56", "imagenet", None, "1 2 3"),
]


def pool_name(name, place):
    """Return the name of a place's layer, which is also where it stands in the network."""
    if place == "stem":
        return {"resnet18": "conv1.pool"}.get(name, "stem.pool")
    if name == "resnet18":
        return f"layer{place}.0.pool"
    return f"blocks.{(int(place) - 1) * {'preact_resnet18': 2, 'preact_resnet56': 9}[name]}.pool"


@pytest.mark.parametrize("name", BUILDERS)
def test_entries_give_layers_in_their_places(name):
    for depth, stem, strides, places in ORDERS:
        if not name.endswith(depth):
            continue
        network = thin(name, stem=stem, strides=strides)
        assert layers(network) == [pool_name(name, place) for place in places.split()]
        given = [(1.0, 1.0) if entry == (1, 1) else entry for entry in strides or []]
        if strides is None:
            given = {
                "18 small": [1.0, None, 2.0, 2.0, 2.0],
                "18 imagenet": [1.0, 2.0, 2.0, 2.0],
                "56 small": [1.0, 1.0, 2.0, 2.0],
                "56 imagenet": [None, 1.0, 2.0, 2.0],
            }[f"{depth} {stem}"]
        if depth == "18" and len(given) == 5:
            given[1] = None
        assert network.strides == [(s, s) for s in given if s is not None]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_the_networks_strides_are_those_of_its_places_in_order(name, pooling):
    strides = (1.0, None, 2.5, (2.0, 1.0), 3.0) if name.endswith("18") else (2.0, 1.0, None, 3.0)
    expected = [(s if isinstance(s, tuple) else (s, s)) for s in strides if s is not None]
    network = thin(name, pooling=pooling, strides=strides, stem="small")
    if pooling == "conv":
        expected = [tuple(math.floor(value + 0.5) for value in pair) for pair in expected]
    assert network.strides == expected


def test_the_networks_strides_are_those_learnt_so_far():
    network = small_resnet(strides=(2.0, None, (3.0, 1.5)))
    with torch.no_grad():
        network.blocks[2].pool.strides.copy_(torch.tensor([2.5, 1.25]))
    assert network.strides == [(2.0, 2.0), (2.5, 1.25)]


# Pooling, convention, the stride of the last three stages -> height and width of the stem's and of
# each stage's output, and the multiply-adds of the convolutions in 1e9 as the authors' code has
# them, in units of the last digit.
AUTHORS = [
    ("diffstride", "paper", (2, 2, 2), [32, 32, 24, 20, 18], 4.21),
    ("diffstride", "tensorflow", (2, 2, 2), [32, 32, 24, 20, 18], 4.21),
    ("spectral", "tensorflow", (2, 2, 2), [32, 32, 16, 8, 4], 0.74),
    ("conv", "paper", (2, 2, 2), [32, 32, 16, 8, 4], 0.56),
    ("diffstride", "paper", (3, 2, 3), [32, 32, 20, 18, 14], 2.93),
    ("diffstride", "tensorflow", (3, 2, 3), [32, 32, 20, 18, 14], 2.93),
    ("spectral", "tensorflow", (3, 2, 3), [32, 32, 10, (4, 5), 2], 0.40),
    ("conv", "paper", (3, 2, 3), [32, 32, 11, 6, 2], 0.33),
]


def multiply_adds_by_hand(areas, strided, projects_first):
    """Count the 20 convolutions of ResNet-18 from the areas of its maps.

    The first convolution of a stage works at its input's size unless it is strided; the shortcut's
    does too where it comes before the pooling.
    """
    channels = (64, 64, 128, 256, 512)
    total = areas[0] * 9 * 3 * channels[0]
    for stage in range(1, 5):
        inputs, outputs = channels[stage - 1 : stage + 1]
        before, after = areas[stage - 1 : stage + 1]
        total += 9 * inputs * outputs * (after if strided else before)
        total += 3 * 9 * outputs * outputs * after
        if inputs != outputs:
            total += inputs * outputs * (before if projects_first and not strided else after)
    return total


@pytest.mark.parametrize(("pooling", "convention", "strides", "sizes", "authors"), AUTHORS)
def test_resnet18_has_the_authors_sizes_and_multiply_adds(
    pooling, convention, strides, sizes, authors
):
    network = preact_resnet18(
        pooling=pooling,
        placement="after",
        convention=convention,
        strides=(1.0, 1.0, *map(float, strides)),
    )
    for place in network.places:
        place.method = "separate"  # as the authors' networks are
    modules = (network.stem, *network.blocks[1::2])
    found, multiply_adds = output_sizes(network, modules, torch.zeros(1, 3, 32, 32))
    assert found == [size if isinstance(size, tuple) else (size, size) for size in sizes]
    # Their shortcut is convolved before it is pooled. Ours comes after the pooling, with which it
    # commutes, so that it costs less: 4.19 instead of 4.21 at the first strides.
    areas = [height * width for height, width in found]
    strided = pooling == "conv"
    assert multiply_adds == multiply_adds_by_hand(areas, strided, projects_first=False)
    assert round(multiply_adds_by_hand(areas, strided, projects_first=True) / 1e9, 2) == authors


def test_networks_have_the_authors_parameters():
    assert parameter_count(preact_resnet18(pooling="conv")) == 11_172_170
    network = preact_resnet18()
    assert parameter_count(network) == 11_172_170 + 4 * 2
    convolutions = [module for module in network.modules() if isinstance(module, nn.Conv2d)]
    assert len(convolutions) == 20
    assert all(conv.bias is None for conv in convolutions)
    network = preact_resnet56()
    assert parameter_count(network) == 855_842
    assert len(network.strides) == 4
    # The first block of each stage projects, the first stage's between 16 and 16 channels too.
    projecting = [i for i, block in enumerate(network.blocks) if block.shortcut is not None]
    assert projecting == [0, 9, 18]


@pytest.mark.parametrize("name", [*BUILDERS, "small_resnet"])
@pytest.mark.parametrize(
    ("pooling", "size"),
    # Odd sizes come on the way; spectral pooling rounds them down.
    [("spectral", (32, 48)), ("diffstride", (32, 48)), ("diffstride", (28, 41))],
)
def test_in_front_of_the_convolutions_layers_cost_their_resizes_alone(name, pooling, size):
    images = torch.zeros(1, 3, *size)
    strided, ours = (
        any_network(name, pooling=pooling, in_channels=3) for pooling in ("conv", pooling)
    )
    counts = []
    for network in (strided, ours):
        kind = BasicBlock if name == "resnet18" else PreActBlock
        blocks = [module for module in network.modules() if isinstance(module, kind)]
        counts.append(output_sizes(network, blocks, images))
    # Sizes and convolutions are the strided network's.
    assert counts[0] == counts[1]
    if pooling == "diffstride":
        penalty = flops_penalty(ours, images)
        resizes = sum(map(penalty.of_layer, penalty.layers))
        (linear,) = (module for module in ours.modules() if isinstance(module, nn.Linear))
        assert resizes > 0
        assert penalty.multiply_adds() == counts[0][1] + linear.weight.numel() + resizes


@pytest.mark.parametrize(
    ("pooling", "convention", "sizes"),
    [
        ("conv", "paper", (10, 5, 2)),
        ("spectral", "paper", (9, 4, 2)),
        ("spectral", "nominal", (9, 4, 2)),
        ("diffstride", "paper", (18, 18, 14)),
        ("diffstride", "nominal", (10, 5, 2)),
    ],
)
def test_sizes_of_the_small_network(pooling, convention, sizes):
    network = small_resnet(pooling=pooling, strides=(3.0, 2.0, 3.0), convention=convention)
    found, _ = output_sizes(network, network.blocks, torch.zeros(1, 1, 28, 28))
    assert found == [(size, size) for size in sizes]
    assert network.stem.weight.shape == (8, 1, 3, 3)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_pair_of_strides_is_height_and_width(pooling):
    network = small_resnet(pooling=pooling, strides=((1.0, 3.0),), channels=(2, 3))
    ((height, width),), _ = output_sizes(network, network.blocks, torch.zeros(1, 1, 28, 28))
    assert width < height
    assert network.strides == [(1.0, 3.0)]


@pytest.mark.parametrize("name", BUILDERS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("stem", ["small", "imagenet"])
def test_images_become_logits(name, pooling, stem):
    network = thin(name, pooling=pooling, stem=stem, in_channels=2)
    assert isinstance(network, ResNet if name == "resnet18" else PreActResNet)
    inputs = []
    first_block = network.layer1[0] if name == "resnet18" else network.blocks[0]
    first_block.register_forward_pre_hook(lambda _, args: inputs.append(args[0].shape))
    side = {"small": 24, "imagenet": 96}[stem]
    logits = network(torch.randn(2, 2, side, side + 12))
    assert logits.shape == (2, 5)
    ((_, _, height, width),) = inputs
    # The fixed stem divides both sizes by 4.
    assert (height, width) == {"small": (24, 36), "imagenet": (24, 27)}[stem]
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


# --- weights ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*BUILDERS, "small_resnet"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_weights_load_across_placements(name, pooling):
    networks = [
        any_network(name, pooling=pooling, placement=placement, in_channels=3)
        for placement in PLACEMENTS
    ]
    for network, other in (networks, networks[::-1]):
        shake(network)
        expected = network.state_dict()
        assert list(expected) == list(other.state_dict())
        other.load_state_dict(expected)
        for value, loaded in zip(expected.values(), other.state_dict().values(), strict=True):
            assert torch.equal(value, loaded)


@pytest.mark.parametrize("name", [*BUILDERS, "small_resnet"])
@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_weights_of_strided_convolutions_load(name, pooling):
    build = partial(any_network, name)
    options = [{"strides": (2.0, 1.0, 1.5)}]
    if name != "small_resnet":
        full = (1.0, None, 2.0, 1.2, 3.0) if name.endswith("18") else (2.0, 1.0, 1.2, 2.0)
        large = (1.0, 1.2, 2.0, 3.0) if name.endswith("18") else (None, 1.0, 1.2, 2.0)
        options = [{"strides": full, "stem": "small"}, {"strides": large, "stem": "imagenet"}]
    for option in options:
        conv = build(pooling="conv", **option)
        shake(conv)
        network = build(pooling=pooling, **option)
        before = network.strides
        result = network.load_state_dict(conv.state_dict(), strict=False)
        assert result.unexpected_keys == []
        assert result.missing_keys == [f"{layer}.strides" for layer in layers(network)]
        assert len(result.missing_keys) == (len(before) if pooling == "diffstride" else 0)
        assert network.strides == before
        for key, value in conv.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)


def test_resnet18_is_torchvisions():
    theirs = torchvision.models.resnet18(num_classes=7)
    shake(theirs)
    ours = resnet18(pooling="conv", num_classes=7)
    assert list(ours.state_dict()) == list(theirs.state_dict())
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 64, 96)
    for training in (False, True):
        results = []
        for network in (theirs, ours):
            logits = network.train(training)(images)
            network.zero_grad()
            logits.square().mean().backward()
            gradients = [parameter.grad for parameter in network.parameters()]
            results.append((logits, *gradients, *network.buffers()))
        for a, b in zip(*results, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("build", [preact_resnet18, resnet18])
def test_convolutions_begin_as_torchvisions(build):
    torch.manual_seed(0)
    for conv in build().modules():
        if isinstance(conv, nn.Conv2d):
            fan_out = conv.out_channels * math.prod(conv.kernel_size)
            # Six standard errors of the smallest convolution's; other fans differ by sqrt(2).
            assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / fan_out), rel=0.1)


@pytest.mark.parametrize("strides", [None, (2.0, 3.0, 1.0), (3.0, 2.0, 2.0, 3.0)])
def test_torchvisions_strided_networks_are_ours(strides):
    ours = resnet18(pooling="conv", strides=strides)
    theirs = torchvision.models.resnet18()
    if strides is not None:
        # Torchvision takes no strides; its own rule for a stage's first block is applied anew.
        theirs.inplanes = 64
        steps = [1] * (4 - len(strides)) + [int(stride) for stride in strides]
        for i, (channels, step) in enumerate(zip((64, 128, 256, 512), steps, strict=True)):
            stage = theirs._make_layer(
                torchvision.models.resnet.BasicBlock, channels, 2, stride=step
            )
            setattr(theirs, f"layer{i + 1}", stage)
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(ours.eval()(images), theirs.eval()(images))


@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_torchvisions_weights_load_into_any_pooling(pooling):
    theirs = torchvision.models.resnet18()
    shake(theirs)
    for strides in ((1.0, 2.0, 2.0, 2.0), (2.0, 2.0, 2.0), (None, None, 2.0, 3.0, 2.5)):
        network = resnet18(pooling=pooling, strides=strides, stem="imagenet")
        result = network.load_state_dict(theirs.state_dict(), strict=False)
        assert result.unexpected_keys == []
        assert result.missing_keys == [f"{layer}.strides" for layer in layers(network)]
        for key, value in theirs.state_dict().items():
            assert torch.equal(network.state_dict()[key], value)


def test_the_torch_package_does_not_import_torchvision():
    for path in Path(diffstride_torch.__file__).parent.rglob("*.py"):
        assert not re.search(r"^\s*(import|from) torchvision", path.read_text(), re.M), path


NAN, INF = float("nan"), float("inf")
BAD_EVERYWHERE = [
    ({"pooling": "max"}, ValueError, "pooling must be one of 'conv', 'spectral', 'diffstride'"),
    ({"pooling": None}, TypeError, "pooling must be one of"),
    ({"convention": "tf"}, ValueError, "convention must be one of 'nominal', 'paper'"),
    ({"convention": "tf", "pooling": "conv"}, ValueError, "convention must be one of"),
    ({"placement": "behind"}, ValueError, "placement must be one of 'before', 'after', got 'beh"),
    ({"placement": "", "pooling": "conv"}, ValueError, "placement must be one of"),
    ({"placement": None}, TypeError, "placement must be one of"),
    ({"in_channels": 0}, ValueError, "in_channels must be at least 1, got 0"),
    ({"num_classes": 1.5}, TypeError, "num_classes must be an int"),
    ({"strides": 2.0}, TypeError, "strides must be a sequence, one entry per place, got 2.0"),
    ({"strides": "222"}, TypeError, "strides must be a sequence"),
]
BAD_ENTRIES = [
    (0.5, ValueError, r"strides\[2\] must be at least 1, got \(0.5,\)"),
    ((2.0, 0.0), ValueError, r"strides\[2\] must be at least 1, got \(2.0, 0.0\)"),
    (NAN, ValueError, r"strides\[2\] must be finite, got \(nan,\)"),
    ((INF, 1.0), ValueError, r"strides\[2\] must be finite, got \(inf, 1.0\)"),
    ((1.0, 2.0, 3.0), ValueError, r"strides\[2\] must have .* 2 or 1 for 2 axes, got 3"),
    ("2", TypeError, r"strides\[2\] must be real numbers"),
    (True, TypeError, r"strides\[2\] must be real numbers"),
]
BAD_COUNTS = {
    "18": [
        ({"strides": (2.0, 2.0)}, r"must have 5 \(stem, stages 1-4\) or 4 \(stages 1-4\) or 3 "),
        ({"strides": (2.0,) * 6}, r"got 6: \(2.0, "),
        ({"strides": ()}, r"or 3 \(stages 2-4\) entries, got 0: \(\)"),
        ({"strides": (1, 2, 2, 2, 2), "stem": "small"}, r"strides\[1\] must be 1 or None .* got 2"),
        (
            {"strides": (1, None, 2, 2, 2), "stem": "imagenet"},
            r"strides\[0\] must be None for stem='imagenet'.* got 1",
        ),
        (
            {"strides": (None, (1.0, 1.5), 2, 2, 2), "stem": "imagenet"},
            r"strides\[1\] must be 1 or None .* got \(1.0, 1.5\)",
        ),
        ({"channels": (4, 4, 4, 4)}, "channels must have 5 entries, one for the stem and one"),
        ({"channels": (4, 4, 0, 4, 4)}, r"channels must be at least 1, got \(4, 4, 0, 4, 4\)"),
    ],
    "56": [
        ({"strides": (1, 2, 2)}, r"strides must have 4 \(stem, stages 1-3\) entries, got 3"),
        ({"strides": (1, 1, 2, 2, 2)}, r"strides must have 4 .* got 5"),
        (
            {"strides": (1, 1, 2, 2), "stem": "imagenet"},
            r"strides\[0\] must be None for stem='imagenet'.* got 1",
        ),
        ({"channels": (4,) * 5}, "channels must have 4 entries, one for the stem and one"),
    ],
}


@pytest.fixture
def no_work(monkeypatch):
    """Fail where a network is begun before all of its arguments are checked."""

    def refuse(*_, **__):
        raise AssertionError("a layer was made")

    monkeypatch.setattr(nn.Module, "__init__", refuse)


@pytest.mark.parametrize("build", [preact_resnet18, preact_resnet56, resnet18, small_resnet])
@pytest.mark.usefixtures("no_work")
def test_bad_arguments_are_refused_before_any_work(build):
    for options, error, message in BAD_EVERYWHERE:
        with pytest.raises(error, match=message):
            build(**options)
    for entry, error, message in BAD_ENTRIES:
        with pytest.raises(error, match=message):
            build(strides=(None, 1.0, entry, 2.0))


@pytest.mark.parametrize("build", [preact_resnet18, preact_resnet56, resnet18])
@pytest.mark.usefixtures("no_work")
def test_what_does_not_fit_a_network_is_refused(build):
    with pytest.raises(ValueError, match="stem must be one of 'small', 'imagenet', got 'large'"):
        build(stem="large")
    for options, message in BAD_COUNTS[build.__name__[-2:]]:
        with pytest.raises(ValueError, match=message):
            build(**options)


@pytest.mark.usefixtures("no_work")
def test_what_does_not_fit_the_small_network_is_refused():
    with pytest.raises(ValueError, match="strides must have at least one entry, one for each"):
        small_resnet(strides=())
    with pytest.raises(ValueError, match="channels must have 4 entries, one for the stem and one"):
        small_resnet(channels=(8, 16))


@pytest.mark.parametrize("make", [*BLOCKS, Stem])
def test_a_block_and_a_stem_refuse_the_same(make):
    for stride, message in ((0.5, "stride must be at least 1"), (NAN, "stride must be finite")):
        for pooling in POOLINGS:
            with pytest.raises(ValueError, match=message):
                make(2, 3, stride, pooling=pooling)
    with pytest.raises(ValueError, match="pooling must be one of"):
        make(2, 3, pooling="max")
    with pytest.raises(ValueError, match="convention must be one of"):
        make(2, 3, pooling="conv", convention="tf")


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_block_refuses_another_placement(block, pooling):
    with pytest.raises(ValueError, match="placement must be one of 'before', 'after', got 'in'"):
        block(2, 3, 2.0, pooling=pooling, placement="in")


def test_the_fixed_stem_has_no_stride():
    with pytest.raises(ValueError, match=r"stride must be None for kind='imagenet', got 2\.0"):
        Stem(2, 3, 2.0, kind="imagenet")
    with pytest.raises(ValueError, match="kind must be one of 'small', 'imagenet', got 'large'"):
        Stem(2, 3, kind="large")


# --- the page --------------------------------------------------------------------------------


def test_the_pages_code_runs(tmp_path, monkeypatch):
    page = (Path(__file__).parents[3] / "docs/torch/models.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile("\n".join(blocks), "docs/torch/models.md", "exec"), {})
