"""Convolutions with learnt strides as modules."""

import copy
import inspect
import pickle

import pytest
import torch
from diffstride_torch import (
    DiffStrideConv2d,
    complexity_penalty,
    param_groups,
    project_strides,
)
from support.torch_convolutions import (
    METHODS,
    MODULES,
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
from support.torch_values import assert_close, random
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@each_module
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_a_module_is_a_convolution_and_a_layer(name, method):
    if name in ("reflect", "replicate") and method == "fused":
        with pytest.raises(ValueError, match="padding_mode must be 'zeros' or 'circular'"):
            pair(name, method)
        return
    module, row = pair(name, method)
    for batch in ((2,), ()):
        x = maps(name, *batch)
        for a, b in zip(with_gradients(module, x), with_gradients(row, x), strict=True):
            assert_near(a, b)


@each_module
def test_parameters_are_those_of_pytorchs_convolution(name):
    module, row = pair(name, dtype=torch.float32)
    own, kind = row[0], RANKS[MODULES[name][0]][0]
    assert isinstance(module, kind)
    names = [*own.state_dict(), "pool.strides"]
    assert list(module.state_dict()) == [*names, "pool._extra_state"]
    assert [key for key, _ in module.named_parameters()] == names
    for key, value in own.state_dict().items():
        assert torch.equal(module.state_dict()[key], value)

    torch.manual_seed(9)
    own.reset_parameters()
    assert not torch.equal(module.weight, own.weight)
    with pytest.raises(RuntimeError, match=r'Missing key.*"pool.strides"'):
        module.load_state_dict(own.state_dict())
    strides = torch.full_like(module.pool.strides, 1.25)
    module.load_state_dict({**module.state_dict(), **own.state_dict(), "pool.strides": strides})
    assert torch.equal(module.weight, own.weight)
    assert torch.equal(module.pool.strides, strides)


@pytest.mark.parametrize(
    ("rank", "args", "options"),
    [
        (2, (3, 2, 1), {}),
        (2, (3, 2, (1, 1), (1, 1), 2, True, "circular"), {}),
        (2, ((3, 5), (2.5, 2.0)), {"padding": [1, 2]}),
        (2, (3, 2), {"padding": "same", "dilation": (1, 3)}),
        (2, (5, 2, 4), {"dilation": 2, "bias": False}),
        (2, (1, 2, 0), {}),
        (2, (1,), {"padding": "valid", "padding_mode": "reflect"}),
        (1, (7, 2, 3), {"padding_mode": "replicate"}),
        (1, (3, 2, (2,), 2), {}),
        (3, ((3, 1, 5), 2, (1, 0, 2)), {}),
    ],
)
def test_arguments_are_those_of_pytorchs_convolution(rank, args, options):
    own, _, conv = RANKS[rank]
    module = conv(4, 6, *args, **options)
    kernel, _, *rest = (*args, 2.0)[: max(2, len(args))]
    plain = own(4, 6, kernel, 1, *rest, **options)
    assert (
        list(inspect.signature(conv).parameters)[:9] == list(inspect.signature(own).parameters)[:9]
    )
    state = plain.state_dict()
    assert module.load_state_dict(state, strict=False) == (["pool.strides"], [])
    x = random(2, 4, *SIZES[:rank], dtype=torch.float32)
    assert plain(x).shape[2:] == x.shape[2:]
    torch.testing.assert_close(module(x), plain(module.pool(x)), rtol=0, atol=1e-5)


def test_only_our_own_arguments_differ_from_pytorchs_convolution():
    for own, _, conv in RANKS.values():
        theirs, ours = (inspect.signature(kind).parameters for kind in (own, conv))
        assert not theirs.keys() - ours.keys()
        changed = [name for name in theirs if ours[name].default != theirs[name].default]
        assert {name: ours[name].default for name in changed} == {"stride": 2.0, "padding": "same"}
        assert all(
            parameter.kind is parameter.KEYWORD_ONLY for parameter in list(ours.values())[9:]
        )


@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize(
    ("padding", "options", "error"),
    [
        (0, {}, ValueError),
        (2, {}, ValueError),
        (-1, {}, ValueError),
        ("valid", {}, ValueError),
        ("SAME", {}, ValueError),
        ((1, 1, 1, 1), {}, ValueError),
        ((), {}, ValueError),
        (1, {"kernel_size": 1}, ValueError),
        (1, {"dilation": 2}, ValueError),
        (1.0, {}, TypeError),
        (True, {}, TypeError),
        (None, {}, TypeError),
        (((1, 1),), {}, TypeError),
    ],
)
def test_a_padding_that_does_not_keep_the_size_is_refused(rank, padding, options, error):
    with pytest.raises(error, match=r"^padding must .* got "):
        RANKS[rank][2](3, 4, **{"kernel_size": 3, "padding": padding, **options})


def test_a_padding_that_keeps_the_size_along_one_axis_alone_is_refused():
    with pytest.raises(ValueError, match=r"'same' and \(1, 2\) do, .* got \(1, 1\)"):
        make(kernel_size=(3, 5), padding=(1, 1))


def test_an_output_has_the_size_that_the_strides_give():
    x, conv = random(2, 3, 32, 40, dtype=torch.float32), make(stride=(2.0, 3.0))
    assert conv(x).shape == (2, 4, *conv.pool.output_sizes(x.shape)) == (2, 4, 16, 14)
    with torch.no_grad():
        conv.pool.strides.copy_(torch.tensor([4.0, 1.5]))
    assert conv(x).shape[2:] == conv.pool.output_sizes(x.shape) == (8, 27)


def test_repr():
    text = repr(DiffStrideConv2d(3, 16, 3, stride=(2.0, 3.0)))
    assert text == (
        "DiffStrideConv2d(\n"
        "  3, 16, kernel_size=(3, 3), padding=(1, 1)\n"
        "  (pool): DiffStride2d(strides=[2, 3], convention='nominal', smoothness=0.25)\n"
        ")"
    )
    assert "padding=(1, 1), placement='after', method='fused'\n" in repr(make(method="fused"))


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))],
    ids=["deepcopy", "pickle"],
)
@pytest.mark.parametrize("options", [{"method": "fused"}, {"kernel_size": 1}], ids=str)
def test_copies_are_equal_and_independent(copied, options):
    module, x = make(**options), random(2, 3, 32, 32, dtype=torch.float32)
    twin = copied(module)
    expected = module(x)
    assert torch.equal(twin(x), expected)
    assert twin.method == module.method
    with torch.no_grad():
        twin.pool.strides.fill_(5.0)
        twin.weight.zero_()
    assert twin(x).shape != expected.shape
    assert torch.equal(module(x), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_strides_survive_conversion_to_half_precision(dtype):
    options = {"method": "fused", "stride": 2.6001}
    x = random(2, 3, 32, 32, dtype=torch.float32)
    wide = make(**options)
    expected, half = wide(x), make(**options, dtype=dtype)
    half.load_state_dict(wide.state_dict())
    for module in (make(**options).to(dtype), half):
        assert module.weight.dtype == module.bias.dtype == dtype
        assert module.pool.strides.dtype == torch.float32
        assert module.pool.strides.tolist() == pytest.approx([2.6001] * 2, rel=1e-7)
        y = module(x.to(dtype))
        assert y.dtype == dtype
        assert (y - expected).abs().max() < 3 * torch.finfo(dtype).eps * expected.abs().max()
    assert module.double().pool.strides.dtype == torch.float64


def test_device_of_all_parameters():
    module = make(device="meta")
    assert {parameter.device.type for parameter in module.parameters()} == {"meta"}


@pytest.mark.parametrize("norm", ["forward", "ortho", "backward"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_pointwise_convolution_comes_second_where_that_is_cheaper(method, bias, norm):
    options = {"kernel_size": 1, "bias": bias, "norm": norm, "dtype": torch.float64}
    module, x = make(method=method, **options), random(2, 3, 32, 32)
    row = nn.Sequential(nn.Conv2d(3, 4, 1, bias=bias), module.pool)
    row[0].weight, row[0].bias = module.weight, module.bias
    for a, b in zip(with_gradients(module, x), with_gradients(row, x), strict=True):
        assert_near(a, b)
    # Bias and method may be changed later.
    module.method = "separate"
    assert_near(module(x), row(x))
    module.method, module.bias = "auto", nn.Parameter(random(4))
    row[0].bias = module.bias
    assert_near(module(x), row(x))


@pytest.mark.parametrize(("channels", "expected"), [((2, 16), "fused"), ((16, 2), "separate")])
def test_a_pointwise_convolution_of_many_channels_to_few_comes_first(channels, expected):
    module = DiffStrideConv2d(*channels, 1, 2.0)
    x, counted = random(2, channels[0], 32, 32).float(), {}
    module.placement = "after"
    for module.method in (*METHODS, "auto"):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            module(x)
        counted[module.method] = counter.get_total_flops()
    assert counted["fused"] != counted["separate"]
    assert counted["auto"] == counted[expected]


def test_the_method_is_an_attribute():
    module = DiffStrideConv2d(16, 16, 5, 9.0, dtype=torch.float64)
    x = random(1, 16, 32, 32)
    expected, module.placement = [], "after"
    for method, is_convolved in (("auto", False), ("separate", True), ("fused", False)):
        module.method = method
        assert convolves(lambda: module(x)) is is_convolved
        expected.append(module(x))
    for y in expected[1:]:
        assert_near(y, expected[0])
    module.method = "fast"
    with pytest.raises(ValueError, match="method must be one of 'auto', 'fused', 'separate'"):
        module(x)
    pointwise = make(kernel_size=1)
    pointwise.method = "fast"
    with pytest.raises(ValueError, match="method must be one of"):
        pointwise(x.float())


def test_training():
    torch.manual_seed(0)
    module = nn.Sequential(make(limits=(None, 3.0)), nn.ReLU(), nn.Conv2d(4, 1, 1))
    x = random(4, 3, 32, 32, dtype=torch.float32)
    weights, strides = param_groups(module, lr=0.1, stride_lr=100.0, weight_decay=0.1)
    conv = module[0]
    assert [id(p) for p in strides["params"]] == [id(conv.pool.strides)]
    assert strides["weight_decay"] == 0.0
    assert {id(p) for p in weights["params"]} == {
        id(p) for p in module.parameters() if p is not conv.pool.strides
    }
    assert complexity_penalty(module).item() == pytest.approx(1 / 2.5**2)
    optimizer = torch.optim.SGD([weights, strides])
    before = copy.deepcopy(dict(module.named_parameters()))
    loss = module(x).square().mean() + complexity_penalty(module)
    loss.backward()
    optimizer.step()
    assert (conv.pool.strides > 3.0).all()
    project_strides(module)
    assert conv.pool.strides.tolist() == [3.0, 3.0]
    for name, value in module.named_parameters():
        assert not torch.equal(value, before[name])
    assert module(x).shape[2:] == conv.pool.output_sizes(x.shape)


def test_a_stride_that_is_not_learnt():
    module = make(trainable=False)
    module(random(2, 3, 32, 32, dtype=torch.float32)).sum().backward()
    assert module.pool.strides.grad is None
    assert module.weight.grad is not None


def test_hooks_of_a_module_are_called_once_and_see_its_output():
    module = make(method="fused")
    x = random(2, 3, 32, 32, dtype=torch.float32, requires_grad=True)
    seen = []
    module.register_forward_pre_hook(lambda _, inputs: (2 * inputs[0],))
    module.register_forward_hook(lambda _, inputs, y: seen.append(y))
    module.register_full_backward_hook(lambda _, dx, g: seen.append(g[0].shape))
    y = module(x)
    y.sum().backward()
    assert torch.equal(seen[0], y)
    assert seen[1:] == [y.shape]
    assert_close(y, make(method="separate")(2 * x), 1e-5)


@pytest.mark.parametrize("norm", [weight_norm, spectral_norm])
@each_method
def test_parametrised_weights(norm, method):
    module = norm(make(method=method, dtype=torch.float64)).eval()
    row = nn.Sequential(norm(nn.Conv2d(3, 4, 3, padding=1).double()), copy.deepcopy(module.pool))
    state = {key.removeprefix("pool."): value for key, value in module.state_dict().items()}
    row[1].load_state_dict({key: state.pop(key) for key in ("strides", "_extra_state")})
    row[0].load_state_dict(state)
    row.eval()
    x = random(2, 3, 32, 32)
    found, expected = with_gradients(module, x), with_gradients(row, x)
    assert len(found) == len(expected) == 2 + len(list(module.parameters()))
    order = [key for key, _ in module.named_parameters()]
    other = [("pool." if key[0] == "1" else "") + key[2:] for key, _ in row.named_parameters()]
    by_name = dict(zip(other, expected[2:], strict=True))
    for a, b in zip(found, (*expected[:2], *(by_name[key] for key in order)), strict=True):
        assert_near(a, b)


@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_a_parametrised_weight_is_computed_once(method):
    class Counted(nn.Module):
        count = 0

        def forward(self, weight):
            self.count += 1
            return 2 * weight

    module, counted = make(method=method), Counted()
    nn.utils.parametrize.register_parametrization(module, "weight", counted)
    counted.count = 0
    module(random(2, 3, 32, 32, dtype=torch.float32))
    assert counted.count == 1


@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("kernel_size", [1, 5])
def test_autocast_of_a_module(kernel_size, method):
    module = make(kernel_size=kernel_size, stride=6.0, method=method)
    x = random(2, 3, 32, 32, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(x)
        y.float().square().sum().backward()
    assert y.dtype == torch.bfloat16
    assert module.pool.strides.grad.dtype == module.weight.grad.dtype == torch.float32
    expected = make(kernel_size=kernel_size, stride=6.0, method="separate")(x)
    assert (y - expected).abs().max() < 0.02 * expected.abs().max()


@while_compiling
@pytest.mark.slow
@pytest.mark.parametrize("method", [*METHODS, "auto"])
@pytest.mark.parametrize("name", ["2d", "groups", "pointwise"])
def test_compiled_module(name, method):
    torch._dynamo.reset()
    module, _ = pair(name, method)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    for batch in (2, 3, 5):
        x = maps(name, batch)
        found = with_gradients(compiled, x)
        for a, b in zip(found, with_gradients(module, x), strict=True):
            assert_near(a, b, 1e-13)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kernel_size": (3, 4)}, ValueError, r"kernel_size must be odd.* got \(3, 4\)"),
        ({"kernel_size": (3, 3, 3)}, ValueError, "kernel_size must have 1 or 2 entries"),
        ({"kernel_size": 0}, ValueError, "kernel_size must have 1 or 2 entries of at least 1"),
        ({"kernel_size": 3.0}, TypeError, "kernel_size must be an int"),
        ({"dilation": 0}, ValueError, "dilation must have 1 or 2 entries of at least 1, got 0"),
        ({"groups": 2}, ValueError, "in_channels must be divisible by groups"),
        ({"padding_mode": "same"}, ValueError, "padding_mode must be one of"),
        ({"stride": 0.5}, ValueError, "stride must be at least 1"),
        ({"stride": (2.0, 2.0, 2.0)}, ValueError, "stride must have one entry per axis"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto', 'fused', 'separate'"),
        ({"method": None}, TypeError, "method must be one of"),
        ({"placement": "behind"}, ValueError, "placement must be one of 'before', 'after', got"),
        ({"placement": True}, TypeError, "placement must be one of 'before', 'after', got True"),
        ({"convention": "papr"}, ValueError, "convention must be one of"),
        ({"norm": "none"}, ValueError, "norm must be one of"),
        (
            {"padding_mode": "reflect", "method": "fused"},
            ValueError,
            "method must be 'separate' or 'auto' here, got 'fused': padding_mode must be",
        ),
    ],
)
def test_wrong_options_of_a_module_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        make(**options)


@pytest.mark.parametrize(
    ("x", "error", "message"),
    [
        (torch.ones(2, 5, 32, 32), ValueError, "in_channels / groups of x.* for 5 channels"),
        (torch.ones(2, 3, 32, 32).long(), TypeError, "x must be real floating point"),
        (torch.ones(2, 3, 32, 32).double(), TypeError, "conv.weight must have the dtype of x"),
        (torch.ones(1, 3, 3000, 8), ValueError, "at most 2048 samples .* method 'fused'"),
        (torch.ones(1, 2, 3, 32, 32), ValueError, "x must have 3 or 4 dimensions, but has 5"),
    ],
)
def test_wrong_inputs_of_a_fused_module_are_refused(x, error, message):
    with pytest.raises(error, match=message):
        make(method="fused")(x)
