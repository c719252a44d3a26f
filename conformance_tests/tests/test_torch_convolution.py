"""Convolutions with learnt strides: PyTorch's function, its modules, and layers given one."""

import copy
import inspect
import itertools
import pickle
import re

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    SpectralPool2d,
    complexity_penalty,
    conv_diff_stride,
    diff_stride,
    flops_penalty,
    freeze,
    output_sizes,
    param_groups,
    plain_autodiff,
    project_strides,
    stride_summary,
)
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch_values import assert_close, loss, random, strides_of

from diffstride_core import kernels

METHODS = ("fused", "separate")

each_method = pytest.mark.parametrize("method", METHODS)
# Forward-mode differentiation loads PyTorch's own scripted decompositions.
forward_mode = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")
# Of the compiler's own.
while_compiling = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)

WINDOW = {"smoothness": 0.5}
# Input, weight, strides, and how it is convolved and resized.
CASES = {
    "2d": ((2, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "groups-dilated-circular": (
        (2, 4, 12, 15),
        (6, 2, 3, 3),
        (1.7, 2.4),
        {"groups": 2, "dilation": (1, 2), "padding_mode": "circular", "convention": "paper"},
    ),
    "depthwise": (
        (2, 3, 13, 15),
        (6, 1, 5, 1),
        (2.6, 1.3),
        {"groups": 3, "norm": "ortho", **WINDOW},
    ),
    "depthwise-circular-backward": (
        (2, 3, 12, 15),
        (3, 1, 1, 7),
        (1.7, 2.4),
        {"groups": 3, "padding_mode": "circular", "norm": "backward", **WINDOW},
    ),
    "tensorflow": (
        (2, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), {"convention": "tensorflow", "smoothness": 1.5}
    ),
    "shared": ((2, 3, 12, 14), (4, 3, 3, 3), (2.6,), WINDOW),
    "masked": ((2, 3, 9, 10), (4, 3, 3, 3), (1.6, 1.8), {"cropping": False, **WINDOW}),
    "unbounded": ((2, 3, 9, 10), (4, 3, 3, 3), (1.13, 1.9), {"limits": None, **WINDOW}),
    "enlarged": ((2, 3, 9, 10), (4, 3, 3, 3), (1.7, 1.9), {"sizes": (16, 7), **WINDOW}),
    "beyond-the-map": ((2, 3, 9, 10), (4, 3, 3, 5), (1.7, 1.9), {"dilation": (20, 4), **WINDOW}),
    "circular-as-far-as-the-map": (
        (2, 3, 9, 10),
        (4, 3, 3, 3),
        (1.7, 1.9),
        {"dilation": (9, 10), "padding_mode": "circular", **WINDOW},
    ),
    "pointwise": ((2, 3, 12, 15), (4, 3, 1, 1), (1.7, 2.4), WINDOW),
    # Where even the constant's frequency counts as on the ramp, so that the bias has a slope.
    "ramp-of-all": (
        (2, 3, 9, 10),
        (4, 3, 3, 3),
        (1.7, 1.9),
        {"convention": "paper", "smoothness": 1e6, "limits": None},
    ),
    "channels-last": (
        (2, 12, 15, 4),
        (6, 2, 3, 3),
        (1.7, 2.4),
        {"groups": 2, "channels_last": True, **WINDOW},
    ),
    "no-batch": ((3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "two-axes-of-batch": ((2, 1, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "empty-batch": ((0, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "1d": ((2, 3, 13), (4, 3, 5), (1.7,), {"dilation": 2, **WINDOW}),
    "1d-channels-last": (
        (13, 4), (4, 1, 3), (1.7,), {"groups": 4, "channels_last": True, **WINDOW}
    ),
    "3d": (
        (2, 4, 6, 8, 7),
        (2, 2, 3, 1, 5),
        (1.2, 1.7, 1.9),
        {"groups": 2, "dilation": (1, 3, 1), "smoothness": 1.0},
    ),
    "3d-circular": (
        (1, 2, 6, 8, 7),
        (3, 2, 1, 3, 3),
        (1.2, 1.7, 1.9),
        {"padding_mode": "circular", "smoothness": 1.0},
    ),
}  # fmt: skip


def each_case(test):
    can_crop = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
    return pytest.mark.parametrize("name", CASES)(can_crop(test))


# A kernel of each kind, at strides where the window has no kink.
SMOOTH = {
    "1d": ((2, 13), (2, 2, 3), (1.7,), {"convention": "paper", "smoothness": 2.0}),
    "groups": (
        (4, 8, 11),
        (4, 2, 3, 1),
        (2.6, 2.9),
        {"groups": 2, "convention": "paper", "smoothness": 1.0, "norm": "ortho"},
    ),
    "circular": (
        (2, 8, 9),
        (3, 2, 1, 3),
        (2.3, 2.6),
        {"padding_mode": "circular", "convention": "nominal", "smoothness": 0.5},
    ),
    "dilated-channels-last": (
        (8, 9, 2),
        (2, 1, 3, 3),
        (2.6,),
        {
            "groups": 2,
            "dilation": 2,
            "channels_last": True,
            "convention": "paper",
            "smoothness": 1.0,
        },
    ),
}
each_smooth = pytest.mark.parametrize("name", SMOOTH)


def tensors(shape, weight_shape, strides, *, dtype=torch.float64, requires_grad=True):
    """Return x, weight, strides and bias."""
    x, weight = random(*shape), random(*weight_shape, seed=1)
    bias = random(weight_shape[0], seed=2)
    made = [x.to(dtype), weight.to(dtype), strides_of(*strides), bias.to(dtype)]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def case(name, method):
    """Return the tensors of a case, and a function of them."""
    *shapes, options = CASES[name]

    def f(x, weight, s, bias=None):
        return conv_diff_stride(x, weight, s, bias=bias, method=method, **options)

    return tensors(*shapes), f


def smooth(name, method):
    """Return tensors and a function of them that is smooth there, with its sizes fixed."""
    shape, weight_shape, strides, options = SMOOTH[name]
    rank = len(weight_shape) - 2
    axes = range(-rank - 1, -1) if options.get("channels_last") else range(-rank, 0)
    window = {key: options[key] for key in ("convention", "smoothness") if key in options}
    sizes = output_sizes(shape, strides, axes=tuple(axes), **window)

    def f(x, weight, s, bias):
        return conv_diff_stride(x, weight, s, bias=bias, sizes=sizes, method=method, **options)

    return tensors(shape, weight_shape, strides), f


def convolved_and_resized(
    x,
    weight,
    s,
    bias=None,
    *,
    dilation=1,
    groups=1,
    padding_mode="zeros",
    channels_last=False,
    **options,
):
    """Return what PyTorch's own convolution makes of a padded input, resized."""
    kernel = weight.shape[2:]
    rank = len(kernel)
    dilation = (dilation,) * rank if isinstance(dilation, int) else dilation
    reach = [d * (k // 2) for d, k in zip(dilation, kernel, strict=True)]
    if channels_last:
        x = x.movedim(-1, -rank - 1)
    lead = x.shape[: -rank - 1]
    x = x.reshape(-1 if x.numel() else 0, *x.shape[-rank - 1 :])
    mode = "constant" if padding_mode == "zeros" else padding_mode
    if x.numel():
        x = functional.pad(x, [r for r in reversed(reach) for _ in range(2)], mode=mode)
    else:
        sizes = [n + 2 * r for n, r in zip(x.shape[2:], reach, strict=True)]
        x = x.new_zeros(0, x.shape[1], *sizes) + x.sum()
    convolve = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}[rank]
    y = convolve(x, weight, bias, dilation=dilation, groups=groups)
    y = diff_stride(y.reshape(*lead, *y.shape[1:]), s, axes=tuple(range(-rank, 0)), **options)
    return y.movedim(-rank - 1, -1) if channels_last else y


def value_and_gradients(f, *arrays):
    y = f(*arrays)
    return y, *torch.autograd.grad(loss(y), arrays)


def assert_near(actual, expected, tolerance=1e-12):
    """Compare tensors to within a fraction of the largest entry."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.numel():
        limit = tolerance * expected.abs().max()
        torch.testing.assert_close(actual, expected, rtol=0, atol=limit.item())


class Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, and convolutions that are not pointwise."""

    def __init__(self):
        super().__init__()
        self.multiply_adds, self.convolutions = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.convolutions += name == "convolution" and max(args[1].shape[2:]) > 1
        if name in ("mm", "bmm", "baddbmm"):
            self.multiply_adds += result.numel() * args[-1].shape[-2]
        return result


# --- The function: values and gradients ---------------------------------------------------------


@each_method
@each_case
@pytest.mark.parametrize("has_bias", [True, False])
def test_equal_to_pytorchs_convolution_and_a_resize(name, has_bias, method):
    arrays, f = case(name, method)
    arrays = arrays if has_bias else arrays[:3]
    options = CASES[name][-1]

    def expected(*arrays):
        return convolved_and_resized(*arrays, **options)

    for a, b in zip(
        value_and_gradients(f, *arrays), value_and_gradients(expected, *arrays), strict=True
    ):
        assert_near(a, b)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_strides_of_any_shape_keep_it_in_the_gradient(shape):
    x, weight, _, bias = tensors(*CASES["2d"][:3])
    results = []
    for method in METHODS:
        s = torch.full(shape, 1.8, dtype=torch.float64, requires_grad=True)
        y = conv_diff_stride(x, weight, s, bias=bias, method=method, **WINDOW)
        (gradient,) = torch.autograd.grad(loss(y), s)
        assert gradient.shape == shape
        results.append(gradient)
    assert_close(*results)


@pytest.mark.parametrize("strides", [(0.3, -1.0), (100.0, 1e6)])
def test_bounds_are_passed_straight_through(strides):
    x, weight, _, bias = tensors(*CASES["2d"][:3])
    results = []
    for method in METHODS:
        s = strides_of(*strides, requires_grad=True)
        y = conv_diff_stride(x, weight, s, bias=bias, method=method)
        results.append(torch.autograd.grad(loss(y), s)[0])
    assert results[0].abs().min() > 0
    assert_close(*results)


@each_method
@each_smooth
def test_gradient_equals_finite_differences(name, method):
    arrays, f = smooth(name, method)
    assert gradcheck(f, arrays, atol=1e-7, rtol=1e-6, fast_mode=True)


@each_method
@each_smooth
def test_second_derivatives_equal_finite_differences(name, method):
    arrays, f = smooth(name, method)
    assert gradgradcheck(f, arrays, atol=1e-6, rtol=1e-5, fast_mode=True)


@each_smooth
def test_double_backward_equals_plain_autodiff_of_the_separate_evaluation(name):
    def second_order(method):
        arrays, f = smooth(name, method)
        gradients = torch.autograd.grad(loss(f(*arrays)), arrays, create_graph=True)
        assert all(gradient.requires_grad for gradient in gradients)
        penalty = sum((gradient**2).sum() for gradient in gradients)
        return *gradients, *torch.autograd.grad(penalty, arrays)

    with plain_autodiff():
        expected = second_order("separate")
    for a, b in zip(second_order("fused"), expected, strict=True):
        assert b.abs().max() > 0
        assert_close(a, b, 1e-10)


@each_method
@each_case
def test_plain_autodiff_gives_the_same_values_and_gradients(name, method):
    arrays, f = case(name, method)
    attached = value_and_gradients(f, *arrays)
    with plain_autodiff():
        plain = value_and_gradients(f, *arrays)
    for a, b in zip(plain, attached, strict=True):
        assert_near(a, b)


@forward_mode
@each_method
@each_smooth
def test_forward_mode(name, method):
    arrays, f = smooth(name, method)
    options = {"check_forward_ad": True, "check_backward_ad": False}
    assert gradcheck(f, arrays, atol=1e-7, rtol=1e-6, fast_mode=True, **options)


@forward_mode
@each_method
def test_hessian_in_every_order_of_modes(method):
    (x, weight, s, bias), f = smooth("groups", method)
    x, weight, s, bias = (tensor.detach() for tensor in (x, weight, s, bias))

    def of_strides(s):
        return loss(f(x, weight, s, bias))

    expected = torch.func.jacrev(torch.func.jacrev(of_strides))(s)
    assert expected[0, 1].abs() > 0
    for outer, inner in itertools.product((torch.func.jacrev, torch.func.jacfwd), repeat=2):
        assert_close(outer(inner(of_strides))(s), expected, 1e-10)


# --- The function: what it keeps and computes ---------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_bias", [True, False])
def test_only_the_inputs_are_kept(has_bias, dtype):
    arrays = tensors(*CASES["2d"][:3], dtype=dtype)[: 4 if has_bias else 3]
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        x, weight, s, *bias = arrays
        options = {"bias": bias[0]} if bias else {}
        y = conv_diff_stride(x, weight, s, method="fused", **options, **WINDOW)
    assert {t.data_ptr() for t in packed} == {t.data_ptr() for t in arrays}
    assert sum(t.untyped_storage().nbytes() for t in packed) == sum(t.nbytes for t in arrays)
    # Nothing stands between the output and the leaves: the graph has one node.
    leaves = [function.variable for function, _ in y.grad_fn.next_functions if function]
    assert {id(leaf) for leaf in leaves} == {id(array) for array in arrays}


def test_changing_what_was_kept_is_noticed():
    (x, weight, s, bias), f = case("2d", "fused")
    y = f(x, weight, s, bias)
    with torch.no_grad():
        weight.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@each_method
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4)), ids=str)
def test_gradients_that_are_needed(needs, method):
    arrays, f = case("groups-dilated-circular", method)
    _, *expected = value_and_gradients(f, *arrays)
    leaves = [a.detach().requires_grad_(need) for a, need in zip(arrays, needs, strict=True)]
    y = f(*leaves)
    assert y.requires_grad == any(needs)
    if any(needs):
        loss(y).backward()
    for leaf, need, gradient in zip(leaves, needs, expected, strict=True):
        assert (leaf.grad is None) != need
        if need:
            assert_close(leaf.grad, gradient)


def test_gradients_that_nobody_needs_cost_nothing():
    arrays, f = case("2d", "fused")

    def backward(*needs):
        leaves = [a.detach().requires_grad_(need) for a, need in zip(arrays, needs, strict=True)]
        y = f(*leaves)
        with Products() as products:
            y.sum().backward()
        return products.multiply_adds

    of_x, of_weight, of_strides, of_all = (
        backward(*needs)
        for needs in (
            (True, False, False, False),
            (False, True, False, False),
            (False, False, True, False),
            (True,) * 4,
        )
    )
    assert max(of_x, of_weight, of_strides) < of_all < of_x + of_weight + of_strides


@each_method
def test_no_gradient_is_followed_where_none_is_asked_for(method):
    arrays, f = case("2d", method)
    with torch.no_grad():
        assert not f(*arrays).requires_grad
    assert_close(f(*(a.detach() for a in arrays)), f(*arrays).detach(), 1e-14)
    with torch.inference_mode():
        assert_close(f(*(a.detach() for a in arrays)), f(*arrays).clone(), 1e-14)


@each_method
@each_case
def test_inputs_are_not_modified(name, method):
    arrays, f = case(name, method)
    before = [(a.detach().clone(), a._version) for a in arrays]
    loss(f(*arrays)).backward()
    with torch.no_grad():
        f(*arrays)
    for array, (value, version) in zip(arrays, before, strict=True):
        assert torch.equal(array.detach(), value)
        assert array._version == version


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("name", ["2d", "groups-dilated-circular", "depthwise"])
def test_large_batches_are_taken_in_blocks(name, kind, dtype, monkeypatch):
    shape, *others, options = CASES[name]
    arrays = tensors((7, *shape[1:]), *others, dtype=dtype)
    x = arrays[0].detach().to(memory_format=kind).requires_grad_()

    def run():
        x_, weight, s, bias = x, *arrays[1:]
        y = conv_diff_stride(x_, weight, s, bias=bias, method="fused", **options)
        return y, *torch.autograd.grad(y, (x_, weight, s, bias), torch.cos(y.detach()))

    whole = run()
    for elements in (1, 3 * x[0].numel(), 10 * x[0].numel()):
        monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", elements)
        for part, expected in zip(run(), whole, strict=True):
            # Sums in another order, which bfloat16 rounds.
            limits = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-7}
            assert_near(part, expected, limits[dtype])


def convolves(f):
    """Return whether a function calls a convolution of PyTorch's own."""
    with torch.no_grad(), Products() as products:
        f()
    return products.convolutions > 0


@pytest.mark.parametrize(
    ("method", "strides", "expected"),
    [
        ("auto", (1.1, 1.1), True),
        ("auto", (16.0, 16.0), False),
        ("fused", (1.1, 1.1), False),
        ("separate", (16.0, 16.0), True),
    ],
)
def test_method_decides_what_is_evaluated(method, strides, expected):
    x, weight = random(2, 8, 32, 32), random(8, 8, 5, 5)
    assert convolves(lambda: conv_diff_stride(x, weight, strides, method=method)) is expected


def test_a_long_axis_is_convolved_separately():
    x, weight = random(1, 16, 2049), random(64, 16, 9)
    assert convolves(lambda: conv_diff_stride(x, weight, 500.0))
    assert not convolves(lambda: conv_diff_stride(x[..., :2048], weight, 500.0))


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


# --- The modules --------------------------------------------------------------------------------

RANKS = {
    1: (nn.Conv1d, DiffStride1d, DiffStrideConv1d),
    2: (nn.Conv2d, DiffStride2d, DiffStrideConv2d),
    3: (nn.Conv3d, DiffStride3d, DiffStrideConv3d),
}
# Rank, what the convolution is made with, and what the layer behind it.
MODULES = {
    "1d": (1, {"kernel_size": 5, "dilation": 2}, {"smoothness": 0.5}),
    "2d": (2, {"kernel_size": 3}, {"convention": "paper"}),
    "groups": (
        2,
        {"kernel_size": (3, 5), "groups": 2, "dilation": (2, 1), "bias": False},
        {"shared": True, "norm": "ortho", "smoothness": 0.5},
    ),
    "circular": (
        2,
        {"kernel_size": (1, 3), "padding_mode": "circular"},
        {"limits": (None, 1.4), "cropping": False},
    ),
    "reflect": (2, {"kernel_size": 3, "padding_mode": "reflect"}, {"smoothness": 0.5}),
    "replicate": (1, {"kernel_size": 3, "padding_mode": "replicate"}, {"smoothness": 0.5}),
    "pointwise": (2, {"kernel_size": 1}, {"smoothness": 0.5}),
    "3d": (3, {"kernel_size": (3, 1, 3)}, {"smoothness": 1.0, "limits": None}),
}
each_module = pytest.mark.parametrize("name", MODULES)
SIZES = (14, 15, 10)


def pair(name, method="auto", dtype=torch.float64, placement="after"):
    """Return a convolution with strides to learn, and one and a layer in a row of equal values."""
    rank, conv_options, pool_options = MODULES[name]
    own, layer, conv = RANKS[rank]
    stride = 1.7 if "shared" in pool_options else (1.7, 2.25, 1.5)[:rank]
    options = {"dtype": dtype, **pool_options}
    torch.manual_seed(3)
    placed = {"method": method, "placement": placement}
    module = conv(4, 6, stride=stride, **placed, **conv_options, **options)
    torch.manual_seed(3)
    row = own(4, 6, padding="same", dtype=dtype, **conv_options), layer(stride, **options)
    return module, nn.Sequential(*(row if placement == "after" else reversed(row)))


def maps(name, *batch, dtype=torch.float64):
    return random(*batch, 4, *SIZES[: MODULES[name][0]], dtype=dtype)


def with_gradients(module, x):
    """Return an output, and the gradients in the input and all parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(loss(y), (x, *module.parameters()))


def make(**options):
    options = {"placement": "after", **options}
    torch.manual_seed(0)
    return DiffStrideConv2d(3, 4, **{"kernel_size": 3, "stride": 2.5, **options})


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
        "  3, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1)\n"
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
    expected = make(**options)(x)
    for module in (make(**options).to(dtype), make(**options, dtype=dtype)):
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
            "method must be 'separate' or 'auto' here, got 'fused', .* padding_mode must be",
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


# --- The layer before the convolution -----------------------------------------------------------


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
    expected, limit = make(**options)(x), 4 * torch.finfo(dtype).eps
    module = make(**options, dtype=dtype)
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


# --- Layers that are given a convolution --------------------------------------------------------


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
        (make(), TypeError, "conv must be a convolution alone, .* a DiffStrideConv2d"),
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
