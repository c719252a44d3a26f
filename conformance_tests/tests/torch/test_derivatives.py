"""The PyTorch functions: derivatives of every kind, and what they keep."""

import threading

import numpy as np
import pytest
import torch
from diffstride_conformance import oracle
from diffstride_torch import (
    complexity,
    diff_stride,
    output_sizes,
    plain_autodiff,
    spectral_pool,
    spectral_resize,
)
from support.torch_functions import each_engine
from support.torch_values import assert_close, loss, random, strides_of
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode

# Forward-mode differentiation loads PyTorch's own scripted decompositions.
FORWARD_MODE_WARNING = r"ignore:`torch\.jit\.script.*` is deprecated"

# shape, strides, options: every rank, both conventions, norms, a shared stride, axes anywhere.
SMOOTH = {
    "1d": ((2, 13), (1.7,), {"axes": (-1,), "convention": "paper", "smoothness": 2.0}),
    "1d-nominal": ((2, 13), (1.7,), {"axes": (-1,), "convention": "nominal"}),
    "1d-nominal-wide": (
        (14,), (2.1,), {"axes": (0,), "convention": "nominal", "smoothness": 0.6}
    ),
    "2d-ortho": (
        (8, 11), (2.6, 2.9), {"convention": "paper", "smoothness": 1.0, "norm": "ortho"}
    ),
    "2d-nominal-backward": (
        (8, 9), (2.3, 2.6), {"convention": "nominal", "smoothness": 0.5, "norm": "backward"}
    ),
    "2d-shared": ((9, 8), (2.6,), {"convention": "paper", "smoothness": 1.0}),
    "2d-channels-last": (
        (8, 9, 2), (2.6, 2.3), {"convention": "paper", "smoothness": 1.0, "axes": (1, 0)}
    ),
    "2d-masked": (
        (6, 7), (1.6, 1.8), {"convention": "paper", "smoothness": 2.0, "cropping": False}
    ),
    "2d-unbounded": (
        (6, 7), (1.13, 1.9), {"convention": "paper", "smoothness": 3.0, "limits": None}
    ),
    "3d": (
        (4, 5, 6),
        (1.7, 1.9, 2.3),
        {"axes": (-3, -2, -1), "convention": "paper", "smoothness": 1.0, "sizes": (4, 4, 7)},
    ),
    "3d-nominal-shared": (
        (4, 6, 5), (1.4,), {"axes": (0, 1, 2), "convention": "nominal", "smoothness": 0.6}
    ),
}  # fmt: skip
each_smooth = pytest.mark.parametrize("name", SMOOTH)
forward_mode = pytest.mark.filterwarnings(FORWARD_MODE_WARNING)


def smooth(name, method="auto"):
    """Return x, strides and a function of both that is smooth there, with its sizes fixed."""
    shape, strides, options = SMOOTH[name]
    axes = options.get("axes", (-2, -1))
    window = {"smoothness": None, "limits": (None, None), "cropping": True}
    window = {key: options.get(key, value) for key, value in window.items()}
    window["convention"] = options["convention"]
    sizes = options.get("sizes") or oracle.output_sizes(shape, strides, axes=axes, **window)
    del window["cropping"]
    used = oracle.used_strides([shape[axis] for axis in axes], strides, **window)
    assert used == strides * (len(axes) // len(strides))
    del window["limits"]
    for i, (axis, stride, size) in enumerate(zip(axes, used, sizes, strict=True)):
        v, _ = oracle.ramp(shape[axis], stride, last=i == len(axes) - 1, **window)
        kept = v[: size // 2 + 1]
        assert np.all(np.abs(v) > 1e-3)
        assert np.all(np.abs(v - 1) > 1e-3)
        assert np.any((kept > 0) & (kept < 1))
        if options["convention"] == "nominal":  # where the two ramps meet
            width = options.get("smoothness", 0.25) * shape[axis] / (2 * stride)
            assert abs(width - 1) > 1e-3
    if options.get("cropping", True):
        options = {**options, "sizes": sizes}
    x = random(*shape, requires_grad=True)
    s = strides_of(*strides, requires_grad=True)
    return x, s, lambda x, s: diff_stride(x, s, method=method, **options)


class Products(TorchDispatchMode):
    """Counts matrix products."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        self.count += name in ("mm", "bmm", "matmul", "addmm", "baddbmm")
        return func(*args, **(kwargs or {}))


# --- Reverse mode -------------------------------------------------------------------------------


@each_engine
@each_smooth
def test_gradient_equals_finite_differences(name, method):
    x, s, f = smooth(name, method)
    assert gradcheck(f, (x, s), atol=1e-7, rtol=1e-6, fast_mode=True)


@each_engine
@each_smooth
def test_second_derivatives_equal_finite_differences(name, method):
    x, s, f = smooth(name, method)
    assert gradgradcheck(f, (x, s), atol=1e-6, rtol=1e-5, fast_mode=True)


@each_engine
@each_smooth
def test_double_backward_equals_plain_autodiff(name, method):
    x, s, f = smooth(name, method)

    def second_order():
        dx, ds = torch.autograd.grad(loss(f(x, s)), (x, s), create_graph=True)
        assert dx.requires_grad
        assert ds.requires_grad
        penalty = (dx**2).sum() + (ds**2).sum()
        return (dx, ds, *torch.autograd.grad(penalty, (x, s)))

    attached = second_order()
    with plain_autodiff():
        plain = second_order()
    assert attached[3].abs().min() > 0
    for a, p in zip(attached, plain, strict=True):
        assert_close(a, p, 1e-10)


@each_engine
@pytest.mark.parametrize(
    ("size", "stride", "options", "second"),
    [
        (33, 2.3, {"convention": "paper", "smoothness": 4.0}, lambda N, S, R: N / (R * S**3)),
        (24, 1.7, {"convention": "paper", "smoothness": 2.5}, lambda N, S, R: N / (R * S**3)),
        (24, 3.7, {"convention": "nominal", "smoothness": 0.25}, None),
        (32, 1.7, {"convention": "nominal", "smoothness": 0.5}, lambda N, S, R: 0.0),
    ],
    ids=["paper-odd", "paper-even", "nominal-narrow", "nominal-wide"],
)
def test_second_derivative_follows_its_formula(size, stride, options, second, method):
    if second is None:  # The ramp is one frequency wide.
        assert options["smoothness"] * size / (2 * stride) < 1

        def second(N, S, R):
            return N / S**3

    arguments = {**options, "last": True}
    v, _ = oracle.ramp(size, stride, **arguments)
    mu, dmu = oracle.mask(size, stride, **arguments)
    in_band = (v > 1e-4) & (v <= 1 + 1e-4)
    assert 0 < in_band.sum() < len(v)
    d2mu = np.where(in_band, second(size, stride, options["smoothness"]), 0.0)

    (out_size,) = output_sizes((size,), [stride], axes=-1, **options)
    x, g = random(2, size, requires_grad=True), random(2, out_size, seed=1, requires_grad=True)
    s = strides_of(stride, requires_grad=True)
    y = diff_stride(x, s, sizes=(out_size,), axes=-1, method=method, **options)
    dx, ds = torch.autograd.grad(y, (x, s), g, create_graph=True)
    mixed, d2 = torch.autograd.grad(ds, (x, s), retain_graph=True)
    in_cotangent = torch.autograd.grad(ds, g, retain_graph=True)[0]
    (of_dx,) = torch.autograd.grad((dx * dx.detach()).sum(), s)

    A, dA, d2A = (
        torch.from_numpy(oracle.axis_matrix(size, out_size, weights)) for weights in (mu, dmu, d2mu)
    )
    hx, hg = x.detach(), g.detach()
    assert_close(ds[0].detach(), (hg * (hx @ dA.T)).sum())
    assert_close(d2[0], (hg * (hx @ d2A.T)).sum())
    assert_close(mixed, hg @ dA)
    assert_close(in_cotangent, hx @ dA.T)
    assert_close(of_dx[0], ((hg @ dA) * (hg @ A)).sum())


@each_engine
def test_first_and_second_derivative_on_a_tie_are_one_sided(method):
    # N = 32, S = 2, R = 4: bins sit exactly on v = 0 and v = 1; the former is out, the latter in.
    size, stride = 32, 2.0
    options = {"axes": (1, 2), "sizes": (24, 2), "limits": None, "convention": "paper"}
    v, _ = oracle.ramp(size, stride, smoothness=4.0, convention="paper")
    assert 0.0 in v
    assert 1.0 in v
    x, g = random(3, size, 2), random(3, 24, 2, seed=1)
    s = strides_of(stride, 1.0, requires_grad=True)
    y = diff_stride(x, s, method=method, **options)
    (ds,) = torch.autograd.grad(y, s, g, create_graph=True)
    (d2,) = torch.autograd.grad(ds[0], s)
    with plain_autodiff():
        y = diff_stride(x, s, method=method, **options)
        (plain,) = torch.autograd.grad(y, s, g)
    reference = oracle.diff_stride(x.numpy(), [stride, 1.0], g.numpy(), **options)
    assert_close(ds.detach(), torch.from_numpy(reference.dstrides))
    assert_close(plain, ds.detach())
    # d mu/dS is proportional to 1/S^2 on a fixed set of bins.
    assert_close(d2[0], -2 * ds[0].detach() / stride)


@pytest.mark.parametrize("shape", [(), (1,), (2,)])
def test_strides_of_any_shape_keep_it_in_the_gradient(shape):
    x = random(12, 14)
    s = torch.full(shape, 1.8, dtype=torch.float64, requires_grad=True)
    y = diff_stride(x, s)
    loss(y).backward()
    assert s.grad.shape == shape
    separate = strides_of(1.8, 1.8, requires_grad=True)
    loss(diff_stride(x, separate)).backward()
    assert_close(s.grad.sum(), separate.grad.sum())


def test_gradients_accumulate_over_two_uses():
    x = random(12, 14, requires_grad=True)
    s = strides_of(1.8, 1.6, requires_grad=True)
    once = torch.autograd.grad(loss(diff_stride(x, s)), (x, s))
    for _ in range(2):
        loss(diff_stride(x, s)).backward()
    assert_close(x.grad, 2 * once[0])
    assert_close(s.grad, 2 * once[1])


def test_complexity_has_second_derivatives():
    strides = [strides_of(1.3, 2.0, requires_grad=True), strides_of(1.7, requires_grad=True)]
    assert gradcheck(lambda *s: complexity(s), strides)
    assert gradgradcheck(lambda *s: complexity(s), strides)


def test_resize_and_pool_have_a_gradient_in_x_alone():
    x = random(2, 9, 10, requires_grad=True)
    assert gradcheck(lambda x: spectral_resize(x, (5, 13)), (x,))
    assert gradcheck(lambda x: spectral_pool(x, (1.5, 2.0)), (x,))
    assert gradgradcheck(lambda x: spectral_resize(x, (5, 13)), (x,))


# --- What the attached gradient keeps and computes ----------------------------------------------


@each_engine
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_only_the_inputs_are_kept(method, dtype):
    x = random(2, 12, 15).to(dtype).requires_grad_()
    s = strides_of(1.7, 2.4, dtype=torch.float32, requires_grad=True)
    packed = []

    def pack(tensor):
        packed.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        y = diff_stride(x, s, method=method)
    kept = {tensor.untyped_storage().data_ptr() for tensor in packed}
    assert kept == {x.untyped_storage().data_ptr(), s.untyped_storage().data_ptr()}
    assert sum(t.untyped_storage().nbytes() for t in packed) == x.nbytes + s.nbytes
    # Nothing stands between the output and the leaves: the graph has one node.
    assert {function.variable for function, _ in y.grad_fn.next_functions if function} == {x, s}


def test_changing_what_was_kept_is_noticed():
    x = random(12, 15, requires_grad=True)
    s = strides_of(1.7, 2.4, requires_grad=True)
    y = diff_stride(x, s)
    with torch.no_grad():
        s.add_(0.1)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("order", [(-2, -1), (-1, -2)])
def test_gradients_that_nobody_needs_cost_nothing(order):
    x, s = random(3, 12, 15), strides_of(1.7, 2.4)

    def backward(needs_x, needs_s):
        a = x.clone().requires_grad_(needs_x)
        b = s.clone().requires_grad_(needs_s)
        y = diff_stride(a, b, axes=order, method="matmul")
        with Products() as products:
            y.sum().backward()
        return a.grad, b.grad, products.count

    dx, ds, both = backward(True, True)
    only_dx, none, for_x = backward(True, False)
    assert none is None
    assert_close(only_dx, dx)
    none, only_ds, for_s = backward(False, True)
    assert none is None
    assert_close(only_ds, ds)
    # Two operators built, two adjoints; no derivative matrix, nothing resized anew.
    assert for_x == 4
    assert for_x < for_s < both


def test_output_requires_a_gradient_only_where_an_input_does():
    x, s = random(12, 15), strides_of(1.7, 2.4)
    assert not diff_stride(x, s).requires_grad
    assert diff_stride(x, s.clone().requires_grad_()).requires_grad
    assert diff_stride(x.clone().requires_grad_(), s).requires_grad
    with torch.no_grad():
        assert not diff_stride(x.clone().requires_grad_(), s).requires_grad


def is_attached(y):
    """Whether a single node leads from the output back to the leaves."""
    return all(
        function is None or hasattr(function, "variable")
        for function, _ in y.grad_fn.next_functions
    )


@each_engine
@each_smooth
def test_plain_autodiff_gives_the_same_values_and_gradients(name, method):
    x, s, f = smooth(name, method)
    y = f(x, s)
    gradients = torch.autograd.grad(loss(y), (x, s))
    with plain_autodiff():
        plain = f(x, s)
        plain_gradients = torch.autograd.grad(loss(plain), (x, s))
    assert is_attached(y)
    assert not is_attached(plain)
    assert_close(plain, y, 1e-14)
    assert_close(plain_gradients[0], gradients[0])
    assert_close(plain_gradients[1], gradients[1])


@pytest.mark.parametrize("strides", [(0.3, -1.0), (100.0, 1e6)])
def test_plain_autodiff_passes_bounds_straight_through(strides):
    x, s = random(32, 16), strides_of(*strides, requires_grad=True)
    attached = torch.autograd.grad(loss(diff_stride(x, s)), s)
    with plain_autodiff():
        plain = torch.autograd.grad(loss(diff_stride(x, s)), s)
    assert attached[0].abs().min() > 0
    assert_close(plain[0], attached[0])


@forward_mode
@each_engine
@pytest.mark.parametrize("name", ["1d", "1d-nominal-wide", "2d-ortho", "2d-shared"])
def test_forward_mode(name, method):
    x, s, f = smooth(name, method)
    assert gradcheck(
        f,
        (x, s),
        check_forward_ad=True,
        check_backward_ad=False,
        atol=1e-7,
        rtol=1e-6,
        fast_mode=True,
    )


@forward_mode
@each_engine
def test_jvp_jacfwd_and_hessian(method):
    x, s, f = smooth("2d-ortho", method)
    x, s = x.detach(), s.detach()

    def g(s):
        return loss(f(x, s))

    gradient = torch.func.grad(g)(s)
    hessian = torch.func.jacrev(torch.func.jacrev(g))(s)
    value, tangent = torch.func.jvp(g, (s,), (strides_of(1.0, -2.0),))
    _, of_x = torch.func.jvp(lambda x: f(x, s), (x,), (x,))
    assert_close(value, g(s))
    assert_close(tangent, gradient[0] - 2 * gradient[1])
    assert_close(torch.func.jacfwd(g)(s), gradient)
    assert_close(torch.func.hessian(g)(s), hessian, 1e-10)
    assert_close(torch.func.jacfwd(torch.func.jacfwd(g))(s), hessian, 1e-10)
    assert_close(torch.func.jacrev(torch.func.jacfwd(g))(s), hessian, 1e-10)
    assert hessian[0, 1].abs() > 0
    assert_close(of_x, f(x, s))


@forward_mode
@each_engine
def test_dual_numbers(method):
    x, s, f = smooth("2d-ortho", method)
    dx, ds = random(*x.shape, seed=2), strides_of(1.0, -2.0)
    expected = (f(x, s + 1e-6 * ds) - f(x, s - 1e-6 * ds)) / 2e-6 + f(dx, s)
    for recorded in (True, False):  # Forward mode does not ask whether gradients are recorded.
        with torch.set_grad_enabled(recorded), forward_ad.dual_level():
            y = f(forward_ad.make_dual(x, dx), forward_ad.make_dual(s, ds))
            value, tangent = forward_ad.unpack_dual(y)
        assert_close(value, f(x, s), 1e-14)
        assert_close(tangent, expected, 1e-7)
    assert is_attached(f(x, s))


@forward_mode
def test_forward_mode_of_the_complexity_penalty():
    layers = [strides_of(1.7, 2.4), strides_of(1.3, 3.1)]
    tangents = [strides_of(1.0, -2.0), strides_of(0.5, 0.7)]

    def penalty(*layers):
        return complexity(layers)

    _, tangent = torch.func.jvp(penalty, tuple(layers), tuple(tangents))
    gradients = torch.func.grad(penalty, argnums=(0, 1))(*layers)
    assert_close(tangent, sum((g * t).sum() for g, t in zip(gradients, tangents, strict=True)))
    ahead, behind = (
        penalty(*(s + step * t for s, t in zip(layers, tangents, strict=True)))
        for step in (1e-6, -1e-6)
    )
    assert_close(tangent, (ahead - behind) / 2e-6, 1e-8)


def test_plain_autodiff_ends_with_its_block():
    x, s, f = smooth("2d-ortho")
    with pytest.raises(KeyError), plain_autodiff():
        raise KeyError
    assert is_attached(f(x, s))
    with plain_autodiff():
        with plain_autodiff():
            pass
        assert not is_attached(f(x, s))
        seen = []
        thread = threading.Thread(target=lambda: seen.append(is_attached(f(x, s))))
        thread.start()
        thread.join()
        assert seen == [True]
    assert is_attached(f(x, s))
