"""Multiply-adds of whole networks, and their gradients."""

import io

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStrideConv1d,
    DiffStrideConv2d,
    FlopsBudget,
    flops_penalty,
    project_strides,
    replace_downsampling,
    stride_summary,
)
from diffstride_torch.models import small_resnet
from support.amounts import quick_first
from support.torch_networks import (
    STRIDES,
    TERMS,
    at_whole_sizes,
    build,
    conv,
    images,
    independent_multiply_adds,
    resize_cost,
    slopes,
)
from torch import nn


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

    with pytest.raises(ValueError, match=r"Attention: it is unknown how the (cost|output size)"):
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


@pytest.mark.parametrize(
    ("module", "size"),
    [(DiffStrideConv1d(2, 8, 3), (1500,)), (DiffStrideConv2d(2, 4, 3), (40, 900))],
)
def test_a_larger_stride_costs_less_whatever_the_engine(module, size):
    # Sizes with large prime factors are multiplied, others are transformed.
    model = nn.Sequential(module, nn.ReLU(), type(module)(module.out_channels, 8, 3))
    penalty = flops_penalty(model, torch.zeros(1, 2, *size))
    costs = []
    for stride in torch.linspace(1, 5, 200):
        with torch.no_grad():
            module.pool.strides[-1] = stride
        costs.append(penalty.multiply_adds())
    assert costs == sorted(costs, reverse=True)
    assert max(costs[i] / costs[i + 1] for i in range(199)) < 1.1


@pytest.mark.parametrize("size", [(1021, 2003), (1009, 1031), (521, 523), (1024, 1031)])
def test_a_larger_stride_costs_less_on_two_long_axes(size):
    model = nn.Sequential(DiffStride2d((2.0, 3.0)))
    penalty = flops_penalty(model, torch.zeros(1, 1, *size))
    costs = []
    for stride in torch.linspace(1.5, 3.5, 100):
        with torch.no_grad():
            model[0].strides[0] = stride
        costs.append(penalty.multiply_adds())
    assert costs == sorted(costs, reverse=True)


def test_a_long_axis_counts_as_a_product_of_limited_length():
    for size, counted in ((384, 384), (2000, 384)):
        model = nn.Sequential(DiffStride1d(4.0))
        assert flops_penalty(model, torch.zeros(1, 3, size)).initial == 3 * counted * size // 4
    model = nn.Sequential(DiffStride2d((4.0, 2.0)))
    penalty = flops_penalty(model, torch.zeros(1, 3, 1024, 1024))
    # The axis that shrinks most comes first.
    assert penalty.initial == 3 * (512 * 256 * 1024 + 384 * 256 * 512)


def test_a_counter_is_saved_with_its_model():
    torch.manual_seed(0)
    model = small_resnet()
    x = torch.zeros(1, 1, 24, 24)
    model.budget = FlopsBudget(model, x, target=900_000)
    model.penalty = flops_penalty(model, x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    assert loaded.budget.layers == [block.pool for block in loaded.blocks]
    for module in (model, loaded):
        with torch.no_grad():
            module.blocks[0].pool.strides.fill_(2.7)
    for name in ("budget", "penalty"):
        old, new = getattr(model, name), getattr(loaded, name)
        assert new.multiply_adds() == old.multiply_adds()
        assert new().item() == old().item()
        gradients = torch.autograd.grad(new(), [layer.strides for layer in new.layers])
        assert all(gradient.isfinite().all() for gradient in gradients)
