"""The PyTorch functions: derivatives of every kind, transforms, layouts, precision, compilation."""

import math
import sys
import threading

import numpy as np
import pytest
import torch
from diffstride_backends import registry, torch_backend
from diffstride_backends.torch_backend import _tables
from diffstride_conformance import oracle
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed
from diffstride_conformance.run import run_case
from diffstride_torch import (
    NothingToCropWarning,
    complexity,
    conv_diff_stride,
    diff_stride,
    output_sizes,
    plain_autodiff,
    spectral_pool,
    spectral_resize,
)
from torch.autograd import forward_ad, gradcheck, gradgradcheck
from torch.utils._python_dispatch import TorchDispatchMode
from torch_values import assert_close, loss, random, strides_of

from diffstride_core import bases, kernels

ENGINES = ("matmul", "fft")

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

# Dynamo's own way of tracing any autograd function, up to 2.13 at least.
COMPILER_WARNING = (
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be instantiated:"
    "DeprecationWarning"
)

each_engine = pytest.mark.parametrize("method", ENGINES)
each_smooth = pytest.mark.parametrize("name", SMOOTH)
forward_mode = pytest.mark.filterwarnings(FORWARD_MODE_WARNING)
compiled_by_dynamo = pytest.mark.filterwarnings(COMPILER_WARNING)
some_cannot_crop = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


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


# --- plain_autodiff and forward mode ------------------------------------------------------------


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


# --- Half precision and autocast ----------------------------------------------------------------

HALF_CASES = [
    case for case in all_cases() if math.prod(case.shape) < 20000 and is_posed(case, "bfloat16")
]
HALF_CASES = HALF_CASES[:: len(HALF_CASES) // 40]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HALF_CASES, ids=lambda case: case.name)
def test_half_precision(case, dtype):
    assert run_case(registry.get("torch"), case, dtype)


@pytest.mark.parametrize("backward_inside", [True, False])
@each_engine
@pytest.mark.parametrize("plain", [True, False])
def test_autocast_changes_nothing(method, backward_inside, plain):
    def run(enabled):
        x = random(2, 3, 24, 21, dtype=torch.float32, requires_grad=True)
        s = strides_of(1.7, 2.4, dtype=torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            if plain:
                with plain_autodiff():
                    y = diff_stride(x, s, method=method)
            else:
                y = diff_stride(x, s, method=method)
            assert torch.is_autocast_enabled("cpu") == enabled
            if backward_inside and not plain:
                loss(y).backward()
        if not (backward_inside and not plain):
            loss(y).backward()
        return y.detach(), x.grad, s.grad

    for inside, outside in zip(run(True), run(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


def test_float32_reaches_float64_accuracy_in_the_operator():
    # A bfloat16 or TF32 product anywhere would be off by 1e-3.
    x = random(4, 64, 64, dtype=torch.float32)
    y = diff_stride(x, [2.3, 1.7])
    reference = diff_stride(x.double(), [2.3, 1.7])
    assert (y - reference).abs().max() < 5e-6 * reference.abs().max()


# --- Operations in place behind a function ------------------------------------------------------


def shifted_in_place(y):
    y += y.new_ones(y.shape[-1:])
    return y.relu_()


@each_engine
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "in blocks", "no batch"])
@pytest.mark.parametrize("strides", [(1.7, 2.4), (1.0, 1.0)])
def test_operations_in_place(layout, strides, method, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 1 if layout == "in blocks" else 2**19)
    x, s = random(2, 3, 12, 15), strides_of(*strides, requires_grad=True)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    x = (x[0, 0] if layout == "no batch" else x).requires_grad_()

    def f():
        # At strides of 1, the identity.
        return diff_stride(x, s, limits=None, convention="paper", method=method)

    y, expected = shifted_in_place(f()), (f() + 1).relu()
    assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(loss(y), (x, s)),
        torch.autograd.grad(loss(expected), (x, s)),
        strict=True,
    ):
        assert_close(a, b)


@each_engine
def test_an_output_without_gradients_takes_one_in_place(method):
    x, weight = random(2, 3, 12, 15), torch.ones(1, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y = diff_stride(x, 1.7, method=method)
    total = y.sum()
    y *= weight
    assert_close(torch.autograd.grad(y.sum(), weight), (total[None],))


@each_engine
def test_operations_in_place_within_transforms(method):
    x, s = random(2, 3, 12, 15), strides_of(1.7, 2.4)

    def f(x, s):
        return diff_stride(x, s, sizes=(10, 9), method=method)

    def values(change):
        f_of_s = torch.func.grad(lambda x, s: loss(change(f(x, s))), 1)
        return torch.vmap(change_of(change), (0, None))(x, s), torch.vmap(f_of_s, (0, None))(x, s)

    def change_of(change):
        return lambda x, s: change(f(x, s))

    for a, b in zip(values(torch.relu_), values(torch.relu), strict=True):
        assert_close(a, b)


def test_a_penalty_is_scaled_in_place():
    for layers in ([strides_of(1.7)], [strides_of(1.7, 2.4), strides_of(1.3)]):
        leaves = [layer.requires_grad_() for layer in layers]
        penalty = complexity(leaves)
        penalty *= 0.5
        expected = torch.autograd.grad(0.5 * complexity(leaves), leaves)
        assert_close(torch.autograd.grad(penalty, leaves), expected)


# --- torch.func ---------------------------------------------------------------------------------


@each_engine
@pytest.mark.parametrize("in_dim", [0, 2])
def test_vmap_over_the_batch(method, in_dim):
    x, s = random(5, 12, 15).movedim(0, in_dim), strides_of(1.7, 2.4)
    mapped = torch.vmap(lambda x: diff_stride(x, s, method=method), in_dims=in_dim)(x)
    looped = [diff_stride(part, s, method=method) for part in x.movedim(in_dim, 0)]
    assert_close(mapped, torch.stack(looped))


@each_engine
def test_vmap_over_strides(method):
    x = random(2, 12, 15)
    many = torch.stack([strides_of(1.7, 2.4), strides_of(0.4, 1.2), strides_of(3.0, 50.0)])

    def f(s, x=x):
        return diff_stride(x, s, sizes=(10, 9), method=method)

    assert_close(torch.vmap(f)(many), torch.stack([f(s) for s in many]))
    xs = random(3, 2, 12, 15, seed=1)
    both = torch.vmap(f)(many, xs)
    assert_close(both, torch.stack([f(s, x) for s, x in zip(many, xs, strict=True)]))


@each_engine
def test_vmap_over_strides_of_a_batch_that_would_be_taken_in_blocks(method, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 1)
    x, many = random(3, 20, 18), torch.tensor([[1.7, 2.4], [1.75, 2.3]])

    def f(strides):
        return diff_stride(x, strides, sizes=(14, 10), method=method)

    assert_close(torch.vmap(f)(many), torch.stack([f(strides) for strides in many]))


@each_engine
def test_vmap_of_grad(method):
    xs, s = random(3, 12, 15), strides_of(1.7, 2.4)

    def f(x, s, **options):
        return loss(diff_stride(x, s, method=method, **options))

    per_sample = torch.vmap(torch.func.grad(f, argnums=(0, 1)), in_dims=(0, None))(xs, s)
    looped = [torch.func.grad(f, argnums=(0, 1))(x, s) for x in xs]
    for i in range(2):
        assert_close(per_sample[i], torch.stack([gradients[i] for gradients in looped]))

    many = torch.stack([s, s + 0.1, s - 0.3])
    per_stride = torch.vmap(
        torch.func.grad(lambda s, x: f(x, s, sizes=(10, 9))), in_dims=(0, None)
    )(many, xs)
    looped = [torch.func.grad(lambda s: f(xs, s, sizes=(10, 9)))(s) for s in many]
    assert_close(per_stride, torch.stack(looped))


@pytest.mark.parametrize(
    "transform",
    [
        torch.vmap,
        lambda f: torch.vmap(torch.func.grad(lambda s: f(s).sum())),
        lambda f: torch.vmap(torch.func.jacrev(f)),
        lambda f: lambda s: torch.vmap(torch.vmap(f))(s[None]),
    ],
    ids=["vmap", "vmap-grad", "vmap-jacrev", "vmap-vmap"],
)
def test_batched_strides_without_sizes_are_refused(transform):
    x = random(12, 15)
    mapped = transform(lambda s: diff_stride(x, s))
    with pytest.raises(ValueError, match=r"sizes must be given .*output_sizes\(x\.shape"):
        mapped(torch.full((3, 2), 1.7))


def test_strides_under_grad_alone_have_values():
    x, s = random(12, 15), strides_of(1.7, 2.4)
    shapes = []

    def f(s):
        y = diff_stride(x, s)
        shapes.append(tuple(y.shape))
        return loss(y)

    gradient = torch.func.grad(f)(s)
    assert shapes[-1] == output_sizes((12, 15), s)
    leaf = s.clone().requires_grad_()
    f(leaf).backward()
    assert_close(gradient, leaf.grad)


@pytest.mark.parametrize("before", ["inference", "vmap-grad", "fake"])
def test_tables_made_in_another_mode_are_not_reused_outside_it(before):
    from torch._subclasses.fake_tensor import FakeTensorMode

    x, s = random(3, 12, 15), strides_of(1.7, 2.4, requires_grad=True)

    def f(x, s):
        return loss(diff_stride(x, s, sizes=(12, 10), method="matmul"))

    def second_order():
        (gradient,) = torch.autograd.grad(f(x, s), s, create_graph=True)
        with plain_autodiff():
            plain = torch.autograd.grad(f(x, s), s)
        return (*torch.autograd.grad(gradient.sum(), s), *plain)

    expected = second_order()
    _tables.cache_clear()
    if before == "inference":
        with torch.inference_mode():
            f(x, s)
    elif before == "fake":
        with FakeTensorMode() as mode:
            f(mode.from_tensor(x), mode.from_tensor(s))
    else:
        with plain_autodiff():
            torch.vmap(torch.func.grad(f), in_dims=(0, None))(x, s.detach())
    for size, out_size in ((12, 12), (15, 10)):
        basis = bases.AxisBasis(size, out_size, bases.half_spectrum)
        for table in _tables(basis, torch.float64, torch.device("cpu")):
            assert type(table) is torch.Tensor
            assert not table.is_inference()
            assert not torch._C._functorch.is_functorch_wrapped_tensor(table)
    for actual, wanted in zip(second_order(), expected, strict=True):
        assert type(actual) is torch.Tensor
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 13), {"axes": -1}),
        ((2, 256), {"axes": -1}),  # From here on by FFTs.
        ((2, 301), {"axes": -1, "convention": "paper"}),
        ((2, 256), {"axes": -1, "cropping": False}),
        ((2, 257), {"axes": -1, "sizes": (300,)}),
        ((2, 260, 3), {"axes": 1, "method": "fft"}),
        ((2, 12, 15), {"method": "fft", "sizes": (12, 9)}),
    ],
)
def test_many_cotangents_at_once(shape, options):
    x = random(*shape, requires_grad=True)
    s = strides_of(1.7, requires_grad=True)
    y = diff_stride(x, s, **options)
    many = random(3, *y.shape)
    found = torch.autograd.grad(
        y, (x, s), many, is_grads_batched=True, retain_graph=True, create_graph=True
    )
    looped = [torch.autograd.grad(y, (x, s), g, retain_graph=True) for g in many]
    for a, b in zip(found, zip(*looped, strict=True), strict=True):
        assert_close(a, torch.stack(b))


def test_vectorized_second_derivatives_of_long_axes():
    x, s = random(2, 256), strides_of(1.7)

    def f(s):
        return loss(diff_stride(x, s, axes=-1))

    hessian = torch.autograd.functional.hessian
    assert_close(hessian(f, s, vectorize=True), hessian(f, s))


@pytest.mark.parametrize("size", [100, 256, 300])
def test_vectorized_jacobian_of_a_resize(size):
    x = random(256)

    def f(x):
        return spectral_resize(x, size, axes=-1)

    jacobian = torch.autograd.functional.jacobian
    assert_close(jacobian(f, x, vectorize=True), jacobian(f, x))


# --- torch.compile and torch.export -------------------------------------------------------------

# The compiler instantiates the autograd function, which torch itself warns of.
while_compiling = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
@each_engine
def test_compiled_equals_eager(method):
    torch._dynamo.reset()

    def f(x, s):
        return diff_stride(x, s, sizes=(12, 10), method=method)

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    x, s = random(3, 12, 15, requires_grad=True), strides_of(1.7, 2.4, requires_grad=True)
    for strides in (s, (s.detach() + 0.2).requires_grad_()):
        y, expected = compiled(x, strides), f(x, strides)
        # The tables are constants of the graph, made by NumPy in double precision.
        assert_close(y, expected, 1e-14)
        gradients = torch.autograd.grad(loss(y), (x, strides))
        for a, b in zip(gradients, torch.autograd.grad(loss(expected), (x, strides)), strict=True):
            assert_close(a, b, 1e-13)


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
def test_compiled_resize():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: spectral_resize(x, (7, 20)), fullgraph=True, backend="aot_eager"
    )
    x = random(2, 12, 15)
    assert_close(compiled(x), spectral_resize(x, (7, 20)), 1e-14)


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
@pytest.mark.parametrize("no_grad", [True, False])
def test_compiled_where_nobody_differentiates(no_grad):
    torch._dynamo.reset()

    def f(x, s):
        return diff_stride(x, s, sizes=(10, 8), method="matmul")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    s = strides_of(1.7, 2.4, requires_grad=no_grad)
    with torch.set_grad_enabled(not no_grad):
        for batch in (2, 3, 5):  # The third of which reuses a graph for any batch.
            x = random(batch, 12, 15)
            assert_close(compiled(x, s), f(x, s), 1e-14)


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
def test_compiled_for_several_sizes():
    torch._dynamo.reset()

    def f(x, s):
        return diff_stride(x, s, sizes=(10, 8), method="matmul")

    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    s = strides_of(1.7, 2.4)
    for shape in ((2, 12, 15), (2, 13, 15), (3, 14, 12)):
        x = random(*shape)
        assert_close(compiled(x, s), f(x, s), 1e-14)


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
@pytest.mark.parametrize(
    "f",
    [
        lambda x: diff_stride(x, [1.7, 2.4]),
        lambda x: diff_stride(x, [1.7, 2.4], sizes=(10, 8)),
        lambda x: diff_stride(x, 2, convention="tensorflow"),
        lambda x: spectral_pool(x, 2.0),
        lambda x: conv_diff_stride(x[:, None], x.new_ones(2, 1, 3, 3), (1.7, 2)),
    ],
    ids=["diff_stride", "diff_stride-sizes", "tensorflow", "spectral_pool", "conv_diff_stride"],
)
def test_compiled_with_strides_given_as_numbers(f):
    torch._dynamo.reset()
    x = random(2, 12, 15)
    assert_close(torch.compile(f, fullgraph=True, backend="aot_eager")(x), f(x), 1e-14)


@pytest.mark.slow
@compiled_by_dynamo
def test_compiled_numbers_decide_sizes():
    torch._dynamo.reset()

    def f(x, stride):
        return x * complexity([stride, [2.0]]) + output_sizes((40, 40), stride)[0]

    compiled = torch.compile(f, fullgraph=True, backend="eager")
    # The second of which is a symbol, and compiled for all strides of its size.
    for stride in (2, 2.4, 2.401, 3.0):
        assert_close(compiled(x := random(3), stride), f(x, stride))


def test_compiled_where_nothing_can_be_cropped():
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda x: x + output_sizes((7, 40), 2.0, convention="paper")[0],
        fullgraph=True,
        backend="eager",
    )
    with pytest.warns(NothingToCropWarning):
        assert_close(compiled(torch.zeros(2)), torch.full((2,), 7.0))


def test_compiled_without_sizes_says_that_they_are_needed():
    torch._dynamo.reset()
    compiled = torch.compile(lambda x, s: diff_stride(x, s), backend="eager", fullgraph=False)
    with pytest.raises(ValueError, match="sizes must be given"):
        compiled(random(12, 15), strides_of(1.7, 2.4))


@while_compiling
@pytest.mark.slow
@compiled_by_dynamo
@pytest.mark.parametrize("strict", [True, False])
def test_exported_equals_eager(strict):
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.s = torch.nn.Parameter(strides_of(1.7, 2.4))

        def forward(self, x):
            return diff_stride(x, self.s, sizes=(12, 10), method="matmul")

    _tables.cache_clear()
    model, x = Model(), random(2, 12, 15)
    exported = torch.export.export(model, (x,), strict=strict).module()
    y = model(x)
    assert type(y) is torch.Tensor
    assert_close(exported(x), y, 1e-13)


# --- Layouts, devices, dtypes -------------------------------------------------------------------

LAYOUTS = {
    "contiguous": lambda: random(2, 3, 12, 15),
    "transposed": lambda: random(2, 3, 15, 12).transpose(-1, -2),
    "permuted": lambda: random(12, 15, 2, 3).permute(2, 3, 0, 1),
    "sliced": lambda: random(4, 3, 24, 30)[::2, :, 1::2, ::2],
    "expanded": lambda: random(1, 3, 12, 1).expand(2, 3, 12, 15),
    "channels-last": lambda: random(2, 3, 12, 15).to(memory_format=torch.channels_last),
    "offset": lambda: random(3, 3, 12, 15)[1:],
}


@each_engine
@pytest.mark.parametrize("axes", [(-2, -1), (1, 3), (3, 0), (2,)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
@some_cannot_crop
def test_memory_layout_does_not_matter(layout, axes, method):
    def run(x):
        x = x.detach().requires_grad_()
        s = strides_of(*(1.7, 2.4)[: len(axes)], requires_grad=True)
        y = diff_stride(x, s, axes=axes, method=method)
        # An expanded cotangent.
        y.sum().backward()
        return y.detach(), x.grad, s.grad

    x = LAYOUTS[layout]()
    before = x.clone()
    expected = run(x.clone(memory_format=torch.contiguous_format))
    for a, b in zip(run(x), expected, strict=True):
        assert_close(a, b)
    assert torch.equal(x, before)


@pytest.mark.parametrize("rank", [4, 5])
def test_channels_last_stays_and_copies_nothing(rank):
    kind = {4: torch.channels_last, 5: torch.channels_last_3d}[rank]
    x = random(2, 3, *(14, 12, 15)[: rank - 2]).to(memory_format=kind).requires_grad_()
    s, axes = strides_of(1.7, 2.4, requires_grad=True), (-2, -1)

    class Copies(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if args and isinstance(args[0], torch.Tensor) and args[0].numel() >= x.numel() // 4:
                copied.append(function.overloadpacket.__name__)
            return function(*args, **(kwargs or {}))

    copied = []
    with torch.no_grad(), Copies():
        y = diff_stride(x, s, axes=axes)
    assert y.is_contiguous(memory_format=kind)
    assert not {"clone", "copy_", "contiguous"} & set(copied)
    y = diff_stride(x, s, axes=axes)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=kind)
    assert dx.is_contiguous(memory_format=kind)


@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("kind", [torch.contiguous_format, torch.channels_last], ids=str)
def test_large_batches_are_resized_in_blocks(convention, dtype, kind, monkeypatch):
    x = random(7, 3, 12, 16).to(dtype, memory_format=kind).requires_grad_()
    s = strides_of(1.7, 2.4, requires_grad=True)

    def run():
        y = diff_stride(x, s, smoothness=0.9, convention=convention)
        return y, *torch.autograd.grad(y, (x, s), torch.cos(y.detach()))

    whole = run()
    for elements in (1, 3 * 3 * 12 * 16, 6 * 3 * 12 * 16):
        monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", elements)
        for part, expected in zip(run(), whole, strict=True):
            assert part.dtype == expected.dtype
            assert part.stride() == expected.stride()
            torch.testing.assert_close(part, expected)


@each_engine
@pytest.mark.parametrize("batch", [(), (0,), (1,), (3,), (2, 3), (2, 0, 3), (2, 1, 2, 2)], ids=str)
def test_any_number_of_batch_dimensions(batch, method):
    x = random(*batch, 12, 15, requires_grad=True)
    s = strides_of(1.7, 2.4, requires_grad=True)
    y = diff_stride(x, s, method=method)
    assert y.shape == (*batch, *output_sizes(x.shape, s))
    y.sum().backward()
    assert x.grad.shape == x.shape
    if x.numel() == 0:
        assert torch.equal(s.grad, torch.zeros_like(s))
        return
    flat = diff_stride(x.detach().reshape(-1, 12, 15), s, method=method)
    assert_close(y, flat.reshape(y.shape))


def test_inputs_are_not_modified():
    x, s = random(2, 12, 15, requires_grad=True), strides_of(0.3, 99.0, requires_grad=True)
    before = x.detach().clone(), s.detach().clone(), x._version, s._version
    diff_stride(x, s).sum().backward()
    spectral_resize(x, (3, 4)).sum().backward()
    complexity([s]).backward()
    assert torch.equal(x.detach(), before[0])
    assert torch.equal(s.detach(), before[1])
    assert (x._version, s._version) == before[2:]


def test_the_output_shares_no_memory_with_the_input():
    # The identity included.
    x = random(8, 8)
    for y in (
        diff_stride(x, [1.0, 1.0], limits=None, sizes=(8, 8), convention="paper"),
        spectral_resize(x, (8, 8)),
        spectral_pool(x, 1.0),
    ):
        assert_close(y, x)
        y.zero_()
        assert x.abs().min() > 0


@pytest.mark.parametrize("stride_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str
)
def test_dtypes_are_those_of_the_inputs(dtype, stride_dtype):
    x = random(12, 15).to(dtype).requires_grad_()
    s = strides_of(1.7, 2.4, dtype=stride_dtype, requires_grad=True)
    y = diff_stride(x, s)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == dtype
    assert s.grad.dtype == stride_dtype
    assert y.device == x.device


@pytest.mark.parametrize(
    "strides",
    [
        1.75,
        2,
        [1.75, 1.75],
        (1.75, 2),
        np.array([1.75, 2.5]),
        np.float32(1.75),
        torch.tensor(1.75),
        strides_of(1.75),
    ],
    ids=repr,
)
def test_strides_given_in_any_form(strides):
    x = random(12, 14)
    values = torch.as_tensor(strides, dtype=torch.float64).reshape(-1)
    expected = diff_stride(x, values)
    assert torch.equal(diff_stride(x, strides), expected)
    assert tuple(expected.shape) == output_sizes(x.shape, strides)


@pytest.mark.parametrize("options", [{"sizes": (10, 8)}, {}], ids=["sizes", "no-sizes"])
def test_strides_are_read_only_where_they_decide_the_size(options, monkeypatch):
    """On a device, that is, where reading costs a transfer and waits for what was launched."""
    monkeypatch.setattr(torch_backend, "_is_on_host", lambda tensor: False)
    reads = []
    for name in ("tolist", "item", "cpu", "numpy", "__bool__", "__float__"):
        original = getattr(torch.Tensor, name)

        def counted(self, *args, original=original, name=name, **kwargs):
            reads.append(name)
            return original(self, *args, **kwargs)

        monkeypatch.setattr(torch.Tensor, name, counted)
    x, s = random(12, 15), strides_of(1.7, 2.4, requires_grad=True)
    diff_stride(x, s, **options).sum().backward()
    assert reads == ([] if options else ["tolist"])


def test_meta_tensors_give_shapes():
    x = torch.empty(2, 3, 12, 15, device="meta")
    s = torch.empty(2, device="meta", requires_grad=True)
    y = diff_stride(x, s, sizes=(12, 10))
    assert y.shape == (2, 3, 12, 10)
    assert y.device.type == "meta"
    y.sum().backward()
    assert s.grad.shape == (2,)
    with pytest.raises(ValueError, match="sizes must be given"):
        diff_stride(x, s)


def test_strides_on_another_device_are_refused():
    x, s = torch.empty(12, 15, device="meta"), strides_of(1.7, 2.4)
    with pytest.raises(ValueError, match=r"strides must be on the device of x, meta, got cpu"):
        diff_stride(x, s)


def test_default_dtype_and_device_do_not_reach_inside():
    x, s = random(2, 12, 15), strides_of(1.7, 2.4)
    expected = diff_stride(x, s)
    _tables.cache_clear()
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            y = diff_stride(x, s)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(y, expected)


def calls_of(function):
    """The file and name of each function of the project's files that a call runs through."""
    calls = []

    def note(frame, event, _):
        file, is_ours = frame.f_code.co_filename, "diffstride_" in frame.f_globals["__name__"]
        if event == "call" and is_ours and file.endswith(".py"):  # no hash of a dataclass
            calls.append((file, frame.f_code.co_name))

    sys.setprofile(note)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@torch.no_grad()
def test_a_call_as_the_one_before_runs_through_few_functions_and_files():
    x = random(1, 1, 16, 16)
    for _ in range(2):
        calls = calls_of(lambda: diff_stride(x, 2.0))
    assert len(calls) <= 40
    assert len({file for file, _ in calls}) <= 8
