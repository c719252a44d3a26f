"""The layer before the convolution, and layers that are given one."""

import copy
import itertools
import pickle
import re

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv2d,
    SpectralPool2d,
    flops_penalty,
    freeze,
    stride_summary,
)
from support.torch_convolutions import (
    METHODS,
    RANKS,
    SIZES,
    assert_near,
    convolves,
    each_method,
    each_module,
    make,
    maps,
    pair,
    while_compiling,
    with_gradients,
)
from support.torch_values import assert_close, loss, random
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize(
    ("method", "placement", "expected"),
    [
        ("auto", None, "before"),
        ("auto", "before", "before"),
        ("auto", "after", "after"),
        *itertools.product(METHODS, (None, "after"), ("after",)),
    ],
)
def test_where_the_layer_stands(method, placement, expected):
    assert make(method=method, placement=placement).placement == expected


@each_method
def test_a_method_is_one_for_the_layer_after_the_convolution(method):
    message = f"placement must be 'after' or None with method '{method}', .* got 'before'"
    with pytest.raises(ValueError, match=message):
        make(method=method, placement="before")
    module, x = make(placement="before"), random(2, 3, 32, 32, dtype=torch.float32)
    module.method = method
    with pytest.raises(ValueError, match=message):
        module(x)
    module.placement = "after"
    assert_close(module(x), make(method=method)(x), 1e-6)


@each_module
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_a_module_is_a_layer_and_a_convolution(name):
    module, row = pair(name, placement="before")
    for batch in ((2,), (0,), ()):
        x = maps(name, *batch)
        found, (y, dx, ds, *others) = with_gradients(module, x), with_gradients(row, x)
        for a, b in zip(found, (y, dx, *others, ds), strict=True):
            assert_near(a, b)


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_a_drop_in_for_a_strided_convolution(rank, kernel):
    own, _, conv = RANKS[rank]
    for stride, size in itertools.product((1, 2, 3, 4), (9, 12, 13)):
        args = 3, 4, kernel, stride, kernel // 2
        plain, module = own(*args), conv(*args)
        assert module.load_state_dict(plain.state_dict(), strict=False) == (["pool.strides"], [])
        x = torch.zeros(1, 3, *(size, 11, 8)[:rank])
        assert module(x).shape == plain(x).shape
    for placement in ("before", "after"):
        made = conv(*args, placement=placement)
        made.load_state_dict(module.state_dict())
        assert torch.equal(made.weight, module.weight)


def test_a_module_costs_what_the_strided_convolution_costs_and_the_layer():
    module = DiffStrideConv2d(16, 32, 3, groups=4, padding_mode="circular")
    x = random(2, 16, 32, 28, dtype=torch.float32)
    strided = nn.Conv2d(16, 32, 3, 2, 1, groups=4, padding_mode="circular")

    def multiply_adds(part, x):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            part(x)
        return counter.get_total_flops() // 2

    # Per image: without the layer's matrices, which every batch makes once.
    of_all, of_strided, of_layer = (
        multiply_adds(part, x) - multiply_adds(part, x[:1])
        for part in (module, strided, module.pool)
    )
    assert of_all == of_strided + of_layer
    flops = flops_penalty(module, x)
    assert flops.initial == of_all
    assert flops.of_layer(module.pool) == of_layer
    assert flops.at_output_of(module.pool) == of_strided
    (row,) = stride_summary(module, flops).rows
    assert row.names == ("pool",)
    assert [axis.output_size for axis in row.axes] == [16, 14]


@pytest.mark.parametrize(
    ("copied", "options"),
    [
        (copy.deepcopy, {}),
        (lambda module: pickle.loads(pickle.dumps(module)), {}),
        (lambda module: freeze(module, torch.zeros(1, 3, 32, 28)), {"padding_mode": "reflect"}),
        (lambda module: freeze(module, torch.zeros(1, 3, 32, 28)), {"padding_mode": "circular"}),
    ],
    ids=["deepcopy", "pickle", "frozen-reflect", "frozen-circular"],
)
def test_copies_keep_the_placement(copied, options):
    module = make(placement="before", **options)
    x = random(2, 3, 32, 28, dtype=torch.float32)
    twin = copied(module)
    assert twin.placement == "before"
    assert_close(twin(x), module(x), 1e-6)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
def test_a_parametrised_weight_behind_the_layer(norm):
    module = norm(make(placement="before", dtype=torch.float64)).eval()
    plain = norm(nn.Conv2d(3, 4, 3, padding=1).double()).eval()
    state = module.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("pool.")})
    x = random(2, 3, 32, 28)
    assert_near(module(x), plain(module.pool(x)))
    plain = make(placement="before", dtype=torch.float64)
    assert flops_penalty(module, x).initial == flops_penalty(plain, x).initial


def test_operations_in_place_behind_a_module():
    module, x = make(placement="before", dtype=torch.float64), random(2, 3, 32, 28)
    in_place = nn.Sequential(module, nn.ReLU(inplace=True))
    found = with_gradients(in_place, x)
    for a, b in zip(found, with_gradients(nn.Sequential(module, nn.ReLU()), x), strict=True):
        assert_close(a, b)


@pytest.mark.parametrize("rank", [2, 3])
def test_a_module_leaves_channels_last(rank):
    kind = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    module = RANKS[rank][2](4, 6, 3).to(memory_format=kind)
    x = random(2, 4, *(12, 9, 10)[:rank], dtype=torch.float32).to(memory_format=kind)
    y = module(x)
    assert y.is_contiguous(memory_format=kind)
    assert not y.is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_module_in_half_precision(dtype):
    x = random(2, 3, 32, 32, dtype=torch.float32)
    options = {"stride": 2.6001, "placement": "before"}
    wide = make(**options)
    expected, limit = wide(x), 4 * torch.finfo(dtype).eps
    module = make(**options, dtype=dtype)
    module.load_state_dict(wide.state_dict())
    assert module.pool.strides.dtype == torch.float32
    y = module(x.to(dtype))
    assert y.dtype == dtype
    assert (y - expected).abs().max() < limit * expected.abs().max()
    module = make(**options)
    with torch.autocast("cpu", dtype):
        y = module(x)
        y.float().square().sum().backward()
    assert y.dtype == dtype
    assert module.pool.strides.grad.dtype == module.weight.grad.dtype == torch.float32
    assert (y - expected).abs().max() < limit * expected.abs().max()


@while_compiling
@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dynamic"), [("2d", True), ("2d", False), ("groups", None), ("reflect", True)]
)
def test_a_compiled_module_resizes_its_input(name, dynamic):
    torch._dynamo.reset()
    module, _ = pair(name, placement="before")
    module(maps(name, 1))  # A size that no eager call has seen would be compiled twice.
    compiled = torch.compile(module, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for batch in (2, 3):
        x = maps(name, batch)
        for a, b in zip(with_gradients(compiled, x), with_gradients(module, x), strict=True):
            assert_near(a, b, 1e-13)


@pytest.mark.parametrize("shape", [(2, 5, 32, 32), (3, 32), (1, 2, 3, 32, 32), ()])
def test_a_shape_that_does_not_fit_is_refused_before_the_layer_sees_it(shape):
    module = make(placement="before")
    message = f"x must have 3 channels and 2 spatial axes, .* got shape {re.escape(str(shape))}"
    with pytest.raises(ValueError, match=message):
        module(torch.ones(shape))
    assert module.pool.plans_seen() == ()
    with pytest.raises(TypeError, match=r"x must be a torch\.Tensor, got list"):
        module([[1.0]])


def conv2d(*, kernel_size=5, padding="same", seed=0, **options):
    torch.manual_seed(seed)
    return nn.Conv2d(16, 16, kernel_size, padding=padding, **options).double()


def layers():
    layer, x = DiffStride2d((5.0, 9.0)), random(2, 16, 32, 28)
    return {
        "DiffStride": layer,
        "SpectralPool": SpectralPool2d((5.0, 9.0)),
        "FixedResize": freeze(nn.Sequential(conv2d(), layer), x)[1],
    }


@each_method
@pytest.mark.parametrize("kind", layers())
@pytest.mark.parametrize("lead", [(2,), ()], ids=str)
def test_a_layer_given_a_convolution_resizes_what_it_makes(kind, lead, method):
    layer, conv = layers()[kind], conv2d()
    x = random(*lead, 16, 32, 28, requires_grad=True)
    parameters = (x, *conv.parameters(), *layer.parameters())

    def evaluated(y):
        return y, *torch.autograd.grad(loss(y), parameters)

    for a, b in zip(
        evaluated(layer(x, conv, method=method)), evaluated(layer(conv(x))), strict=True
    ):
        assert_near(a, b)
    assert convolves(lambda: layer(x, conv, method=method)) is (method == "separate")
    assert not convolves(lambda: layer(x, conv))


@pytest.mark.parametrize("rank", RANKS)
def test_layers_of_every_rank_are_given_convolutions(rank):
    own, layer_class, _ = RANKS[rank]
    torch.manual_seed(0)
    conv, layer = own(3, 4, 3, padding=1).double(), layer_class(1.7, smoothness=1.0)
    x = random(2, 3, *SIZES[:rank])
    assert_near(layer(x, conv, method="fused"), layer(conv(x)))


@pytest.mark.parametrize(
    "options",
    [
        {"padding": (2, 0), "kernel_size": (5, 1)},
        {"padding": "valid", "kernel_size": 1},
        {"padding": 4, "dilation": 2},
        {"padding_mode": "circular"},
        {"bias": False},
    ],
    ids=str,
)
def test_convolutions_that_keep_the_size_are_fused(options):
    conv, layer, x = conv2d(**options), layers()["DiffStride"], random(2, 16, 32, 28)
    assert_near(layer(x, conv, method="fused"), layer(conv(x)))


class Doubled(nn.Conv2d):
    def forward(self, x):
        return 2 * super().forward(x)


class Squared(nn.Conv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight**2, bias)


class SquaredConv(DiffStrideConv2d):
    def _conv_forward(self, x, weight, bias):
        return super()._conv_forward(x, weight**2, bias)


class SquashedConv(DiffStrideConv2d):
    def convolve(self, x):
        return torch.tanh(super().convolve(x))


def with_hook(conv):
    conv.register_forward_hook(lambda _, __, y: 2 * y)
    return conv


def with_pre_hook(conv):
    conv.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    return conv


def with_forward_of_its_own(conv):
    forward = conv.forward
    conv.forward = lambda x: 2 * forward(x)
    return conv


@pytest.mark.parametrize(
    ("make_conv", "reason"),
    [
        (lambda: with_hook(conv2d()), "conv must have no hooks"),
        (lambda: with_pre_hook(conv2d()), "conv must have no hooks"),
        (lambda: nn.utils.weight_norm(conv2d()), "conv must have no hooks"),
        (lambda: with_forward_of_its_own(conv2d()), "Conv2d overrides it"),
        (lambda: Doubled(16, 16, 5, padding=2).double(), "Doubled overrides it"),
        (lambda: Squared(16, 16, 5, padding=2).double(), "Squared overrides it"),
        (lambda: conv2d(padding_mode="reflect"), "padding_mode must be 'zeros' or 'circular'"),
        (lambda: conv2d(kernel_size=4), r"kernel must be odd along every axis, but is \(4, 4\)"),
        (lambda: conv2d(kernel_size=(2, 5), dilation=(2, 1)), "kernel must be odd"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_what_a_convolution_does_else_is_done(make_conv, reason):
    conv = make_conv()
    layer, x = layers()["DiffStride"], random(2, 16, 32, 28)
    expected = layer(conv(x))
    for method in ("auto", "separate"):
        assert_near(layer(x, conv, method=method), expected)
    with pytest.raises(ValueError, match=f"method must be 'separate' or 'auto' here, .*{reason}"):
        layer(x, conv, method="fused")


@pytest.mark.parametrize("kind", [SquaredConv, SquashedConv])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_a_subclass_of_a_module_convolves_as_it_says(kind, kernel_size):
    module = kind(16, 16, kernel_size, 9.0, dtype=torch.float64)
    x = random(2, 16, 32, 28)
    assert_near(module(x), module.convolve(module.pool(x)))
    module.placement = "after"
    assert_near(module(x), module.pool(module.convolve(x)))


def test_axes_that_are_not_the_maps_are_resized_behind_the_convolution():
    x = random(2, 16, 32, 28)
    for axes, cls in (((-1,), DiffStride1d), ((1, 3), DiffStride2d), ((-3, -2, -1), DiffStride3d)):
        conv = conv2d()
        layer = cls(1.5, axes=axes, dtype=torch.float64)
        expected = layer(conv(x))
        seen = layer.plans_seen()
        assert_near(layer(x, conv), expected)
        # Sizes of what it did not resize would bound its strides.
        assert layer.plans_seen() == seen
        frozen = freeze(GivenConvolution(layer, conv), x)
        assert_near(frozen(x), expected)
        with pytest.raises(ValueError, match="must resize all spatial axes, and no other"):
            layer(x, conv, method="fused")


class GivenConvolution(nn.Module):
    """A layer given a convolution by name."""

    def __init__(self, pool, conv):
        super().__init__()
        self.pool, self.conv = pool, conv

    def forward(self, x):
        return self.pool(conv=self.conv, x=x)


def test_a_layer_in_any_order_of_axes():
    layer = DiffStride2d((2.5, 9.0), axes=(-1, -2))
    x, conv = random(2, 16, 32, 28), conv2d()
    assert_near(layer(x, conv, method="fused"), layer(conv(x)))


@pytest.mark.parametrize(
    ("conv", "error", "message"),
    [
        (nn.Linear(3, 4), TypeError, "conv must be a torch.nn.Conv1d, .* got Linear"),
        (nn.ConvTranspose2d(3, 4, 3), TypeError, "got ConvTranspose2d"),
        (make(), TypeError, "conv must be a plain convolution, .* a DiffStrideConv2d"),
        (
            nn.Conv2d(3, 4, 3, stride=2, padding=1),
            ValueError,
            "conv must have stride 1 and padding",
        ),
        (nn.Conv2d(3, 4, 3), ValueError, "padding that keeps the size"),
        (nn.Conv2d(3, 4, 3, padding="valid"), ValueError, "padding that keeps the size"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_wrong_convolutions_are_refused(conv, error, message, method):
    with pytest.raises(error, match=message):
        DiffStride2d(2.0)(torch.ones(2, 3, 32, 32), conv, method=method)


def test_a_bias_of_another_dtype_is_refused():
    conv = conv2d()
    conv.bias = nn.Parameter(conv.bias.float())
    with pytest.raises(TypeError, match=r"conv\.bias must have the dtype of x"):
        DiffStride2d(2.0)(random(2, 16, 32, 28), conv, method="fused")
