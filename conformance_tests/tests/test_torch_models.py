"""The residual networks: sizes, counts and weights, the order of strides, and what is refused."""

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
    SpectralPool2d,
    diff_stride,
    flops_penalty,
    spectral_pool,
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
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

POOLINGS = ("conv", "spectral", "diffstride")
PLACEMENTS = ("before", "after")
CONVENTIONS = ("paper", "nominal", "tensorflow")
BLOCKS = (PreActBlock, BasicBlock)
# Every network for small and large images, thin enough to run in milliseconds.
BUILDERS = {
    "preact_resnet18": (preact_resnet18, (4, 4, 6, 8, 10)),
    "preact_resnet56": (preact_resnet56, (3, 3, 4, 5)),
    "resnet18": (resnet18, (4, 4, 6, 8, 10)),
}


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


# --- blocks ----------------------------------------------------------------------------------


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize(("stride", "used"), [(2.4, 2), (2.5, 3), (1.0, 1), ((1.0, 3.0), (1, 3))])
def test_strided_convolution_rounds_halves_up(block, stride, used):
    used = used if isinstance(used, tuple) else (used, used)
    module = block(2, 3, stride, pooling="conv")
    assert module.strides == used
    strided = [conv.stride for conv in module.modules() if isinstance(conv, nn.Conv2d)]
    assert sorted(strided) == sorted([used, (1, 1), used])


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_both_branches_share_one_layer(block, pooling, placement, convention):
    module = block(2, 3, 2.0, pooling=pooling, placement=placement, convention=convention)
    kind = {"spectral": SpectralPool2d, "diffstride": DiffStride2d}[pooling]
    (pool,) = (m for m in module.modules() if isinstance(m, SpectralPool2d | DiffStride2d))
    assert type(pool) is kind
    assert pool.settings.convention.name == convention
    calls = []
    pool.register_forward_hook(lambda *_: calls.append(1))
    module(torch.randn(2, 2, 16, 16))
    # In front of the first convolution one call serves both.
    assert len(calls) == {"before": 1, "after": 2}[placement]


@pytest.mark.parametrize("build", [preact_resnet18, preact_resnet56, resnet18, small_resnet])
def test_windows_and_limits_are_those_asked_for(build):
    options = {"convention": "nominal", "smoothness": 0.5, "limits": (1.5, 3.0)}
    pools = [pool for pool in build(**options).modules() if isinstance(pool, DiffStride2d)]
    settings = [pool.settings for pool in pools]
    assert settings
    for layer in settings:
        assert (layer.convention.name, layer.smoothness) == ("nominal", 0.5)
        assert layer.limits == (1.5, 3.0)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_windows_and_limits_are_checked_whatever_the_pooling(pooling):
    with pytest.raises(ValueError, match="smoothness must be"):
        resnet18(pooling=pooling, smoothness=-1.0)
    with pytest.raises(ValueError, match="limits"):
        PreActBlock(2, 3, pooling=pooling, limits=(3.0, 2.0))


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("placement", PLACEMENTS)
def test_strides_get_gradients_from_both_branches(block, placement):
    torch.manual_seed(0)
    module = block(2, 3, 2.0, placement=placement).double().eval()
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)

    def gradient():
        (result,) = torch.autograd.grad(module(x).square().sum(), module.pool.strides)
        return result

    both = gradient()
    assert (both != 0).all()
    nn.init.zeros_(module.conv2.weight)
    shortcut = gradient()
    assert (shortcut != 0).all()
    assert not torch.allclose(both, shortcut)


def convolved(block, name, x, stride=1):
    weight = block.get_parameter(f"{name}.weight")
    return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def normed(block, name, x):
    """Normalise as a block's layer does, but without changing its running averages."""
    norm = block.get_submodule(name)
    mean, variance = norm.running_mean.clone(), norm.running_var.clone()
    return functional.batch_norm(x, mean, variance, norm.weight, norm.bias, training=block.training)


def preact_by_hand(block, x, pool, stride, placement):
    conv, norm = partial(convolved, block), partial(normed, block)
    projects = block.shortcut is not None
    if placement == "before" and projects:
        p = pool(torch.relu(norm("norm1", x)))
        main = conv("conv2", torch.relu(norm("norm2", conv("conv1", p, stride))))
        return conv("shortcut", p, stride) + main
    if placement == "before":
        p = pool(x)
        h = torch.relu(norm("norm1", p))
        return p + conv("conv2", torch.relu(norm("norm2", conv("conv1", h, stride))))
    h = torch.relu(norm("norm1", x))
    main = conv("conv2", torch.relu(norm("norm2", pool(conv("conv1", h, stride)))))
    return main + (conv("shortcut", pool(h), stride) if projects else pool(x))


def basic_by_hand(block, x, pool, stride, placement):
    conv, norm = partial(convolved, block), partial(normed, block)
    p = pool(x)
    h = conv("conv1", p, stride) if placement == "before" else pool(conv("conv1", x, stride))
    main = norm("bn2", conv("conv2", torch.relu(norm("bn1", h))))
    if len(list(block.downsample.children())):
        p = norm("downsample.1", conv("downsample.0", p, stride))
    return torch.relu(p + main)


@pytest.mark.parametrize(
    ("block", "by_hand"), [(PreActBlock, preact_by_hand), (BasicBlock, basic_by_hand)]
)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("placement", PLACEMENTS)
@pytest.mark.parametrize("training", [True, False])
def test_blocks_compute_what_they_say(block, by_hand, pooling, placement, training):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 16, 14, dtype=torch.float64)
    for projects in (False, True):
        # Without a projection a stride is 1 to begin with, but may be learnt.
        stride = (2.0, 3.0) if projects else (1.0, 1.0)
        module = block(3, 3, stride, pooling=pooling, placement=placement)
        shake(module)
        module.double().train(training)
        conv_stride, pool, sizes = (1, 1), lambda x: x, (16, 14)
        if pooling == "conv":
            conv_stride = tuple(map(int, stride))
            sizes = (8, 5) if projects else sizes
        elif pooling == "spectral":
            pool = partial(spectral_pool, strides=stride)
            sizes = (8, 4) if projects else sizes
        else:
            learnt = (1.7, 2.2)
            with torch.no_grad():
                module.pool.strides.copy_(torch.tensor(learnt))
            pool = partial(diff_stride, strides=module.pool.strides.detach())
            sizes = (10, 7)
        expected = by_hand(module, x, pool, conv_stride, placement)
        y = module(x)
        assert y.shape == (2, 3, *sizes)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("project", [True, False])
@pytest.mark.parametrize(
    "options",
    [
        {"pooling": "conv"},
        {"pooling": "spectral"},
        # Without bounds the paper's window keeps everything at stride 1.
        {"pooling": "diffstride", "convention": "paper", "limits": None},
    ],
)
def test_placements_are_equal_where_nothing_is_discarded(block, project, options):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 12, 9, dtype=torch.float64)
    plain = block(3, 3, project=project)
    shake(plain)
    expected = plain.double().eval()(x)
    for placement in PLACEMENTS:
        module = block(3, 3, 1.0, project=project, placement=placement, **options).double()
        module.load_state_dict(plain.state_dict(), strict=False)
        torch.testing.assert_close(module.eval()(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [*BUILDERS, "small_resnet"])
def test_the_placement_makes_no_difference_to_strided_convolutions(name):
    images, networks = torch.randn(2, 3, 32, 28), []
    for placement in PLACEMENTS:
        torch.manual_seed(0)
        networks.append(any_network(name, pooling="conv", placement=placement, in_channels=3))
    before, after = (network.eval()(images) for network in networks)
    assert torch.equal(before, after)


@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_a_pointwise_convolution_commutes_with_the_pooling(pooling, convention):
    torch.manual_seed(0)
    block = PreActBlock(5, 7, (2.3, 1.7), pooling=pooling, convention=convention).double()
    x = torch.randn(2, 5, 18, 15, dtype=torch.float64, requires_grad=True)
    parameters = (x, *block.shortcut.parameters(), *block.pool.parameters())
    results = []
    for y in (block.shortcut(block.pool(x)), block.pool(block.shortcut(x))):
        results.append((y, *torch.autograd.grad(y, parameters, torch.cos(y.detach()))))
    for pooled_first, convolved_first in zip(*results, strict=True):
        torch.testing.assert_close(pooled_first, convolved_first, rtol=1e-12, atol=1e-11)


class Convolutions(TorchDispatchMode):
    """Notes the input's size and the kernel of every convolution."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket is torch.ops.aten.convolution:
            self.found.append((tuple(args[0].shape[2:]), tuple(args[1].shape[2:])))
        return func(*args, **(kwargs or {}))


def convolutions_of(module, x):
    with torch.no_grad(), Convolutions() as convolutions:
        module(x)
    return convolutions.found


@pytest.mark.parametrize("name", [*BUILDERS, "small_resnet"])
@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_every_method_gives_the_same_network(name, pooling):
    # In front of the convolutions the layers are not fused with them.
    options = {"pooling": pooling, "placement": "after", "in_channels": 3}
    torch.manual_seed(0)
    if name == "small_resnet":
        network = small_resnet(strides=(2.0, 1.5, 2.5), **options)
    else:
        strides = (1.3, None, 2.0, 1.5, 2.5) if name.endswith("18") else (1.3, 2.0, 1.5, 2.5)
        network = thin(name, stem="small", strides=strides, **options)
    shake(network)
    network.double().eval()
    x, results, counts = torch.randn(2, 3, 32, 28, dtype=torch.float64), [], []
    for method in ("separate", "fused", "auto"):
        for place in network.places:
            place.method = method
        y = network(x)
        gradients = torch.autograd.grad(y.square().sum(), list(network.parameters()))
        results.append((y, *gradients))
        counts.append(len(convolutions_of(network, x)))
    # Every place has one convolution whose output is resized at once.
    assert counts[0] - counts[1] == len(network.places) > 2
    for others in results[1:]:
        for found, expected in zip(others, results[0], strict=True):
            limit = 1e-11 * expected.abs().max().item()
            torch.testing.assert_close(found, expected, rtol=0, atol=limit)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
@pytest.mark.parametrize(("stride", "is_fused"), [(1.2, False), (8.0, True)])
def test_a_block_takes_the_cheaper_way(block, pooling, stride, is_fused):
    module = block(32, 32, stride, pooling=pooling, placement="after")
    x = torch.randn(1, 32, 48, 40)
    at_full_size = ((48, 40), (3, 3)) in convolutions_of(module, x)
    assert at_full_size == (not is_fused)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("method", ["auto", "fused", "separate"])
def test_behind_the_layer_no_convolution_is_at_full_size(block, method):
    module = block(4, 4, 2.0, placement="before")
    module.method = method
    found = convolutions_of(module, torch.randn(1, 4, 48, 40))
    assert sorted(found) == [((24, 20), (1, 1)), ((24, 20), (3, 3)), ((24, 20), (3, 3))]


def test_the_stem_takes_the_cheaper_way():
    x = torch.randn(1, 64, 48, 40)
    for stride, is_fused in ((1.2, False), (8.0, True)):
        stem = Stem(64, 64, stride)
        assert bool(convolutions_of(stem, x)) == (not is_fused)
        assert torch.equal(stem.weight, stem.state_dict()["weight"])


@pytest.mark.parametrize("pooling", POOLINGS)
def test_a_place_without_a_layer_to_learn_is_a_convolution(pooling):
    for module in (Stem(3, 4, None, pooling=pooling), Stem(3, 4, 2.0, pooling="conv")):
        module.method = "fused"  # Which nothing asks for.
        y = module(torch.ones(1, 3, 8, 8))
        stride = module.stride
        expected = functional.conv2d(torch.ones(1, 3, 8, 8), module.weight, None, stride, 1)
        assert torch.equal(y, expected)


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize(
    ("channels", "stride", "project", "projects"),
    [
        ((3, 3), None, False, False),
        ((3, 3), 1.0, False, False),
        ((3, 3), (1.0, 1.2), False, True),
        ((3, 3), None, True, True),
        ((3, 4), None, False, True),
        ((3, 4), 1.0, False, True),
    ],
)
def test_a_projection_does_not_depend_on_the_pooling(
    block, pooling, channels, stride, project, projects
):
    module = block(*channels, stride, project=project, pooling=pooling)
    pointwise = [
        m for m in module.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (1, 1)
    ]
    assert len(pointwise) == projects
    height, width = module(torch.randn(2, 3, 16, 16)).shape[-2:]
    assert height == 16
    # 16/1.2 = 13.3; strided convolutions round 1.2 to 1.
    cropped = {"conv": 16, "spectral": 13, "diffstride": 14}[pooling]
    assert width == (cropped if stride == (1.0, 1.2) else 16)


def test_a_block_that_keeps_everything_keeps_its_input_as_shortcut():
    x = torch.randn(2, 3, 8, 8)
    block = PreActBlock(3, 3)
    nn.init.zeros_(block.conv2.weight)
    assert torch.equal(block(x), x)
    block = BasicBlock(3, 3)
    nn.init.zeros_(block.bn2.weight)
    assert torch.equal(block(x), torch.relu(x))


# --- the order of strides --------------------------------------------------------------------

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


# --- sizes, parameters, multiply-adds of the authors' networks -------------------------------

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


# --- bad arguments ---------------------------------------------------------------------------

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
    ({"strides": 2.0}, TypeError, "strides must be a sequence, one entry a place, got 2.0"),
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
    page = (Path(__file__).parents[2] / "docs/torch/models.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        exec(compile("\n".join(blocks), "docs/torch/models.md", "exec"), {})
