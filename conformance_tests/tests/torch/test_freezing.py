"""Frozen models, and models whose sizes meet in unusual ways."""

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    DiffStrideConv2d,
    FixedResize,
    SpectralPool2d,
    flops_penalty,
    freeze,
    replace_downsampling,
)
from support.torch_networks import SIZE, build, conv, images, independent_multiply_adds
from torch import nn


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
    with pytest.raises(ValueError, match=r"model Sequential cannot be copied, which freezing"):
        freeze(uncopied, images(32))
    with pytest.raises(ValueError, match="got Sequential with none"):
        freeze(nn.Sequential(conv(2)))
    with pytest.raises(ValueError, match=r"layer '0' must see exactly one input size .* got none"):
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
