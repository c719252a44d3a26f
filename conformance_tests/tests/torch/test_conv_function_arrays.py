"""conv_diff_stride: precision, layouts, transforms, and what is refused."""

import itertools

import pytest
import torch
from diffstride_torch import (
    conv_diff_stride,
)
from support.torch_convolutions import (
    CASES,
    METHODS,
    WINDOW,
    assert_near,
    case,
    each_method,
    tensors,
    value_and_gradients,
    while_compiling,
)
from support.torch_values import assert_close, loss, random, strides_of

from diffstride_core import kernels

# --- The function: precision, layouts, devices --------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("name", ["2d", "groups-dilated-circular", "3d"])
def test_accuracy_at_other_precisions(name, dtype):
    *shapes, options = CASES[name]
    arrays = tensors(*shapes, dtype=dtype)

    def evaluated(arrays, method):
        def f(x, weight, s, bias):
            y = conv_diff_stride(x, weight, s, bias=bias, method=method, **options)
            assert y.dtype == x.dtype
            return y.double()

        return value_and_gradients(f, *arrays)

    y, dx, dweight, ds, dbias = evaluated(arrays, "fused")
    expected = evaluated([a.detach().double().requires_grad_() for a in arrays], "separate")
    # The cotangent, a function of rounded outputs, is rounded too.
    limit = 5e-6 if dtype == torch.float32 else 4 * torch.finfo(dtype).eps
    assert dx.dtype == dweight.dtype == dbias.dtype == dtype
    assert ds.dtype == torch.float64
    for found, wanted, slack in zip(
        (y, dx, dweight, ds, dbias), expected, (0.25, 2, 2, 8, 2), strict=True
    ):
        assert (found - wanted).abs().max() <= slack * limit * wanted.abs().max()


@each_method
@pytest.mark.parametrize("backward_inside", [True, False])
def test_autocast_convolves_in_its_own_precision(method, backward_inside):
    def run(dtype, enabled):
        arrays = tensors(*CASES["2d"][:3], dtype=torch.float32)
        cast = [a if i == 2 else a.to(dtype) for i, a in enumerate(arrays)]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            x, weight, s, bias = cast
            y = conv_diff_stride(x, weight, s, bias=bias, method=method, **WINDOW)
            assert torch.is_autocast_enabled("cpu") == enabled
            if backward_inside:
                y.float().square().sum().backward()
        if not backward_inside:
            y.float().square().sum().backward()
        return y.detach(), *(a.grad for a in arrays)

    y, *gradients = run(torch.float32, enabled=True)
    assert y.dtype == torch.bfloat16
    expected, *wanted = run(torch.bfloat16, enabled=False)
    assert torch.equal(y, expected)
    for a, b in zip(gradients, wanted, strict=True):
        assert a.dtype == (torch.float64 if a is gradients[2] else torch.float32)
        assert torch.equal(a, b)


@each_method
def test_autocast_leaves_double_precision_alone(method):
    (x, weight, s, bias), f = case("2d", method)
    with torch.autocast("cpu", torch.bfloat16):
        y = f(x, weight, s, bias)
    assert y.dtype == torch.float64
    assert_near(y, f(x, weight, s, bias))


LAYOUTS = {
    "transposed": lambda: random(2, 4, 15, 12).transpose(-1, -2),
    "permuted": lambda: random(12, 15, 2, 4).permute(2, 3, 0, 1),
    "sliced": lambda: random(4, 4, 24, 30)[::2, :, 1::2, ::2],
    "expanded": lambda: random(1, 4, 12, 1).expand(2, 4, 12, 15),
    "channels-last": lambda: random(2, 4, 12, 15).to(memory_format=torch.channels_last),
    "offset": lambda: random(3, 4, 12, 15)[1:],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("weight_layout", ["contiguous", "transposed", "channels-last"])
def test_memory_layout_does_not_matter(layout, weight_layout):
    options = CASES["groups-dilated-circular"][-1]
    weight = random(6, 2, 3, 3, seed=1)
    if weight_layout == "transposed":
        weight = weight.transpose(-1, -2).contiguous().transpose(-1, -2)
    elif weight_layout == "channels-last":
        weight = weight.to(memory_format=torch.channels_last)

    def run(*arrays):
        x, weight, bias = (a.detach().requires_grad_() for a in arrays)
        s = strides_of(1.7, 2.4, requires_grad=True)
        y = conv_diff_stride(x, weight, s, bias=bias, method="fused", **options)
        # An expanded cotangent.
        y.sum().backward()
        return y.detach(), x.grad, weight.grad, s.grad, bias.grad

    arrays = LAYOUTS[layout](), weight, random(1, seed=2).expand(6)
    expected = run(*(a.clone(memory_format=torch.contiguous_format) for a in arrays))
    for a, b in zip(run(*arrays), expected, strict=True):
        assert_close(a, b)


@each_method
@pytest.mark.parametrize("name", ["2d", "groups-dilated-circular", "1d", "3d", "no-batch"])
def test_of_a_contiguous_input_the_output_is_contiguous(name, method):
    arrays, f = case(name, method)
    y, dx, *_ = value_and_gradients(f, *arrays)
    assert y.is_contiguous()
    assert dx.is_contiguous()


@pytest.mark.parametrize("rank", [2, 3])
def test_channels_last_stays(rank):
    kind = {2: torch.channels_last, 3: torch.channels_last_3d}[rank]
    x = random(2, 3, *(12, 9, 10)[:rank]).to(memory_format=kind).requires_grad_()
    s, weight = strides_of(1.7, 2.4, 1.9)[:rank], random(4, 3, *(3,) * rank)
    y = conv_diff_stride(x, weight, s, method="fused", **WINDOW)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    for made in (y, dx):
        assert made.is_contiguous(memory_format=kind)
        assert not made.is_contiguous()


@each_method
def test_meta_tensors_give_shapes(method):
    arrays = tensors(*CASES["2d"][:3], requires_grad=False)
    x, weight, s, bias = (a.to("meta").requires_grad_() for a in arrays)
    y = conv_diff_stride(x, weight, s, bias=bias, sizes=(12, 10), method=method, **WINDOW)
    assert (y.shape, y.device.type) == ((2, 4, 12, 10), "meta")
    y.sum().backward()
    assert [a.grad.shape for a in (x, weight, s, bias)] == [a.shape for a in arrays]
    with pytest.raises(ValueError, match="sizes must be given"):
        conv_diff_stride(x, weight, s, method=method)


@each_method
@pytest.mark.parametrize("name", ["2d", "channels-last", "groups-dilated-circular", "pointwise"])
@pytest.mark.parametrize("elements", [1, 2**19])
def test_operations_in_place(name, method, elements, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", elements)
    arrays, f = case(name, method)
    y, expected = f(*arrays).relu_(), f(*arrays).relu()
    assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(loss(y), arrays),
        torch.autograd.grad(loss(expected), arrays),
        strict=True,
    ):
        assert_close(a, b)


# --- The function: torch.func, torch.compile ----------------------------------------------------


@each_method
def test_vmap(method):
    x, weight, s, bias = tensors(*CASES["2d"][:3], requires_grad=False)

    def f(x, weight, s, bias):
        return conv_diff_stride(x, weight, s, bias=bias, sizes=(10, 9), method=method, **WINDOW)

    arrays = x, weight, s, bias
    many = [torch.stack([a, a + 0.1, 1.3 * a]) for a in arrays]
    for mapped in itertools.product([False, True], repeat=4):
        if not any(mapped):
            continue
        given = [
            several if m else one for one, several, m in zip(arrays, many, mapped, strict=True)
        ]
        found = torch.vmap(f, in_dims=tuple(0 if m else None for m in mapped))(*given)
        looped = [
            f(*(a[i] if m else a for a, m in zip(given, mapped, strict=True))) for i in range(3)
        ]
        assert_close(found, torch.stack(looped))


@each_method
@pytest.mark.parametrize("elements", [1, 2**19])
def test_many_cotangents_at_once(method, elements, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", elements)
    arrays, f = case("2d", method)
    y = f(*arrays)
    many = random(3, *y.shape)
    found = torch.autograd.grad(y, arrays, many, is_grads_batched=True)
    looped = [torch.autograd.grad(f(*arrays), arrays, g) for g in many]
    for a, b in zip(found, zip(*looped, strict=True), strict=True):
        assert_near(a, torch.stack(b))


@each_method
def test_vmap_of_grad(method):
    x, weight, s, bias = tensors(*CASES["2d"][:3], requires_grad=False)

    def f(x, weight, s, bias):
        return loss(conv_diff_stride(x, weight, s, bias=bias, method=method, **WINDOW))

    of_one = torch.func.grad(f, argnums=(0, 1, 2, 3))
    per_sample = torch.vmap(of_one, in_dims=(0, None, None, None))(x, weight, s, bias)
    looped = [of_one(one, weight, s, bias) for one in x]
    for found, expected in zip(per_sample, zip(*looped, strict=True), strict=True):
        assert_close(found, torch.stack(expected))


@while_compiling
@pytest.mark.slow
@pytest.mark.parametrize("name", ["2d", "groups-dilated-circular", "channels-last", "3d"])
@pytest.mark.parametrize("method", [*METHODS, "auto"])
def test_compiled_equals_eager(name, method):
    torch._dynamo.reset()
    *shapes, options = CASES[name]
    arrays = tensors(*shapes)
    sizes = (6, 8, 6)[: arrays[2].numel()]

    def f(x, weight, s, bias):
        return conv_diff_stride(x, weight, s, bias=bias, sizes=sizes, method=method, **options)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    for a, b in zip(
        value_and_gradients(compiled, *arrays), value_and_gradients(f, *arrays), strict=True
    ):
        assert_near(a, b, 1e-13)
    detached = [a.detach() for a in arrays]
    assert_close(compiled(*detached), f(*detached), 1e-13)


# --- The function: what is refused --------------------------------------------------------------


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"x": [[1.0]]}, TypeError, "x must be a torch.Tensor, got list"),
        ({"x": torch.ones(2, 3, 12, 15).long()}, TypeError, "x must be real floating point"),
        ({"weight": None}, TypeError, "weight must be a torch.Tensor, got NoneType"),
        (
            {"weight": random(4, 3, 3, 3, dtype=torch.float32)},
            TypeError,
            r"weight must have the dtype of x, torch\.float64, got torch\.float32",
        ),
        (
            {"weight": random(4, 3, 3, 3).to("meta")},
            ValueError,
            "weight must be on the device of x, cpu, got meta",
        ),
        ({"weight": random(4, 3)}, ValueError, r"weight must have the shape .* got \(4, 3\)"),
        (
            {"x": random(3, 12)},
            ValueError,
            r"x must have channels and 2 spatial axes, .* got shape \(3, 12\)",
        ),
        ({"weight": random(4, 3, 3, 2)}, ValueError, r"odd kernel sizes.*\(4, 3, 3, 2\)"),
        ({"weight": random(4, 2, 3, 3)}, ValueError, r"in_channels / groups of x.* 3 channels"),
        ({"groups": 2}, ValueError, "out_channels divisible by groups.* groups 2 for 3 channels"),
        ({"groups": 0}, ValueError, "groups must have one entry of at least 1, got 0"),
        ({"groups": 1.5}, TypeError, "groups must be an int"),
        ({"bias": random(3)}, ValueError, r"bias must have shape \(4,\), got \(3,\)"),
        ({"bias": random(4).half()}, TypeError, "bias must have the dtype of x"),
        ({"dilation": (1, 2, 3)}, ValueError, r"dilation must have 1 or 2 entries .*\(1, 2, 3\)"),
        ({"dilation": 0}, ValueError, "dilation must have 1 or 2 entries of at least 1, got 0"),
        ({"padding_mode": "reflect"}, ValueError, "padding_mode must be one of 'zeros'"),
        (
            {"padding_mode": "circular", "dilation": 13},
            ValueError,
            r"padding_mode must be 'zeros' where .* reach of \(13, 13\) and sizes \(12, 15\)",
        ),
        ({"channels_last": 1}, TypeError, "channels_last must be True or False, got 1"),
        ({"method": "matmul"}, ValueError, "method must be one of 'auto', 'fused', 'separate'"),
        ({"strides": (2.0, 2.0, 2.0)}, ValueError, "strides must have one entry per axis"),
        ({"strides": strides_of(2.0).half()}, TypeError, "strides must be float32 or float64"),
        ({"strides": float("nan")}, ValueError, "strides must be finite"),
        ({"sizes": (3,)}, ValueError, "sizes must have"),
        (
            {"x": random(1, 3, 2049, 1), "method": "fused"},
            ValueError,
            r"x must have at most 2048 samples .* method 'fused', .* got sizes \(2049, 1\)",
        ),
    ],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_wrong_arguments_are_refused(changed, error, message):
    options = {"x": random(2, 3, 12, 15), "weight": random(4, 3, 3, 3), "strides": 2.0, **changed}
    with pytest.raises(error, match=message):
        conv_diff_stride(**options)
