"""The blocks of the residual networks."""

from functools import partial

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    SpectralPool2d,
    diff_stride,
    spectral_pool,
)
from diffstride_torch.models import (
    BasicBlock,
    PreActBlock,
    Stem,
    preact_resnet18,
    preact_resnet56,
    resnet18,
    small_resnet,
)
from support.torch_residual import BLOCKS, BUILDERS, PLACEMENTS, POOLINGS, any_network, shake, thin
from torch import nn
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

CONVENTIONS = ("paper", "nominal", "tensorflow")


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
