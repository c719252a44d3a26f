import pytest
import torch
from diffstride_torch import DiffStride2d, SpectralPool2d
from diffstride_torch.models import PreActBlock, preact_resnet18, small_resnet

IMAGES = torch.linspace(-1, 1, 2 * 28 * 28).reshape(2, 1, 28, 28)


def block_sizes(network, images):
    sizes, x = [], network.stem(images)
    for block in network.blocks:
        x = block(x)
        sizes.append(tuple(x.shape[1:]))
    return sizes


@pytest.mark.parametrize(
    ("options", "sizes"),
    [
        ({"pooling": "conv"}, [(16, 10, 10), (32, 5, 5), (64, 2, 2)]),
        ({"pooling": "spectral"}, [(16, 9, 9), (32, 4, 4), (64, 2, 2)]),
        ({"pooling": "diffstride"}, [(16, 18, 18), (32, 18, 18), (64, 14, 14)]),
        (
            {"pooling": "diffstride", "convention": "relative"},
            [(16, 12, 12), (32, 8, 8), (64, 6, 6)],
        ),
    ],
)
def test_sizes(options, sizes):
    network = small_resnet(strides=(3.0, 2.0, 3.0), **options).eval()
    assert block_sizes(network, IMAGES) == sizes
    assert network(IMAGES).shape == (2, 10)


@pytest.mark.parametrize("pooling", ["conv", "spectral", "diffstride"])
def test_a_pair_of_strides_is_height_and_width(pooling):
    network = small_resnet(pooling=pooling, strides=((1.0, 3.0),), channels=(2, 3)).eval()
    ((_, height, width),) = block_sizes(network, IMAGES)
    assert width < height
    assert network.strides == [(1.0, 3.0)]


@pytest.mark.parametrize(("stride", "used"), [(2.4, 2.0), (2.5, 3.0), (1.0, 1.0)])
def test_strided_convolution_rounds_halves_up(stride, used):
    block = PreActBlock(2, 3, stride, pooling="conv")
    assert block.strides == (used, used)
    assert block.conv1.stride == block.shortcut.stride == (int(used), int(used))


@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_both_branches_share_one_layer(pooling):
    network = small_resnet(pooling=pooling, strides=(3.0, 2.0, 3.0))
    kind = {"spectral": SpectralPool2d, "diffstride": DiffStride2d}[pooling]
    assert sum(isinstance(module, kind) for module in network.modules()) == 3
    calls = []
    network.blocks[0].pool.register_forward_hook(lambda *_: calls.append(1))
    network(IMAGES)
    assert len(calls) == 2


def test_strides_get_gradients_from_both_branches():
    torch.manual_seed(0)
    block = PreActBlock(2, 3, 2.0, convention="relative").double().eval()
    x = torch.randn(2, 2, 12, 12, dtype=torch.float64)

    def gradient():
        (result,) = torch.autograd.grad(block(x).square().sum(), block.pool.strides)
        return result

    both = gradient()
    assert (both != 0).all()
    torch.nn.init.zeros_(block.conv2.weight)
    shortcut = gradient()
    assert (shortcut != 0).all()
    assert not torch.allclose(both, shortcut)


@pytest.mark.parametrize("convention", ["paper", "relative"])
def test_pointwise_convolution_commutes_with_the_layer(convention):
    torch.manual_seed(0)
    block = PreActBlock(3, 5, (2.3, 1.7), convention=convention).double()
    x = torch.randn(2, 3, 20, 23, dtype=torch.float64)
    torch.testing.assert_close(
        block.shortcut(block.pool(x)), block.pool(block.shortcut(x)), rtol=0, atol=1e-13
    )


def test_block_without_stride_keeps_its_input_as_shortcut():
    block = PreActBlock(3, 3)
    torch.nn.init.zeros_(block.conv2.weight)
    x = torch.randn(2, 3, 8, 8)
    assert torch.equal(block(x), x)
    assert PreActBlock(3, 4)(x).shape == (2, 4, 8, 8)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pooling": "max"}, "pooling: 'max' is not one of conv, spectral, diffstride"),
        ({"strides": (2.0, 0.5, 2.0)}, "stride: 0.5 is not allowed"),
        ({"strides": (2.0, float("nan"), 2.0)}, "stride: nan is not allowed"),
        ({"strides": ()}, "strides: at least one block"),
        ({"channels": (8, 16)}, "channels: 2 entries for 3 strides"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        small_resnet(**options)


@pytest.mark.parametrize("pooling", ["spectral", "diffstride"])
def test_a_pointwise_convolution_commutes_with_the_pooling(pooling):
    torch.manual_seed(0)
    block = PreActBlock(5, 7, 2.3, pooling=pooling).double()
    x = torch.randn(2, 5, 18, 15, dtype=torch.float64, requires_grad=True)
    parameters = (x, *block.shortcut.parameters(), *block.pool.parameters())
    results = []
    for y in (block.shortcut(block.pool(x)), block.pool(block.shortcut(x))):
        results.append((y, *torch.autograd.grad(y, parameters, torch.cos(y.detach()))))
    for pooled_first, convolved_first in zip(*results, strict=True):
        torch.testing.assert_close(pooled_first, convolved_first, rtol=1e-12, atol=1e-12)


def test_resnet18_is_the_authors_network():
    network = preact_resnet18()
    assert [type(block.pool).__name__ for block in network.blocks] == [
        *("Identity", "Identity"),
        *("DiffStride2d", "Identity") * 3,
    ]
    assert isinstance(network.stem.pool, DiffStride2d)
    assert network.stem.strides == (1.0, 1.0)
    assert [block.shortcut is None for block in network.blocks] == [
        *(True, True),
        *(False, True) * 3,
    ]
    # 17 3x3 convolutions, 3 pointwise ones and the classifier, counted by hand.
    convolutions = 9 * (3 * 64 + 4 * 64**2 + 64 * 128 + 3 * 128**2)
    convolutions += 9 * (128 * 256 + 3 * 256**2 + 256 * 512 + 3 * 512**2)
    pointwise = 64 * 128 + 128 * 256 + 256 * 512
    norms = 2 * (4 * 64 + 64 + 3 * 128 + 128 + 3 * 256 + 256 + 3 * 512 + 512)
    strides = 2 * 4
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == convolutions + pointwise + norms + strides + 512 * 10 + 10
    images = torch.randn(2, 3, 32, 32)
    assert network(images).shape == (2, 10)
    assert block_sizes(network.eval(), images)[1::2] == [
        *((64, 32, 32), (128, 24, 24)),
        *((256, 20, 20), (512, 18, 18)),
    ]


def test_resnet18_refuses_a_wrong_number_of_entries():
    with pytest.raises(ValueError, match=r"strides: 3 entries.*5 in all"):
        preact_resnet18(strides=(2.0, 2.0, 2.0))
    with pytest.raises(ValueError, match=r"channels: 4 entries.*5 in all"):
        preact_resnet18(channels=(8, 8, 16, 32))
