"""conv_diff_stride: values, derivatives of every kind, and what they keep."""

import itertools

import pytest
import torch
from diffstride_torch import (
    conv_diff_stride,
    diff_stride,
    output_sizes,
    plain_autodiff,
)
from support.torch_convolutions import (
    CASES,
    METHODS,
    WINDOW,
    Products,
    assert_near,
    case,
    convolves,
    each_method,
    tensors,
    value_and_gradients,
)
from support.torch_values import assert_close, loss, random, strides_of
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional

from diffstride_core.testing import block_elements

# Forward-mode differentiation loads PyTorch's own scripted decompositions.
forward_mode = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")


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
def test_large_batches_are_taken_in_blocks(name, kind, dtype):
    shape, *others, options = CASES[name]
    arrays = tensors((7, *shape[1:]), *others, dtype=dtype)
    x = arrays[0].detach().to(memory_format=kind).requires_grad_()

    def run():
        x_, weight, s, bias = x, *arrays[1:]
        y = conv_diff_stride(x_, weight, s, bias=bias, method="fused", **options)
        return y, *torch.autograd.grad(y, (x_, weight, s, bias), torch.cos(y.detach()))

    whole = run()
    for elements in (1, 3 * x[0].numel(), 10 * x[0].numel()):
        with block_elements(elements):
            parts = run()
        for part, expected in zip(parts, whole, strict=True):
            # Sums in another order, which bfloat16 rounds.
            limits = {torch.float64: 1e-13, torch.float32: 1e-6, torch.bfloat16: 2**-7}
            assert_near(part, expected, limits[dtype])


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
