"""Models made anew with convolutions that have learnt strides."""

import diffstride_torch
import pytest
import torch
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
    replace_downsampling,
)
from diffstride_torch.models import preact_resnet18
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
from torch.utils._python_dispatch import TorchDispatchMode

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
        for own, pool in zip(self.convs, self.pools, strict=True):
            x = pool(conv=own, method=self.method, x=x)
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
        for own, layer in zip(self.convs, self.layers, strict=True):
            x = layer(x, own, method=self.method)
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
