"""The PyTorch functions under torch.func and torch.compile."""

import pytest
import torch
from diffstride_backends import registry, torch_private
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
from support.torch_functions import each_engine
from support.torch_values import assert_close, loss, random, strides_of

from diffstride_core import bases, kernels
from diffstride_core.planning import FFT_FROM_SIZE
from diffstride_core.testing import clear_caches

# Dynamo's own way of tracing any autograd function, up to 2.13 at least.
COMPILER_WARNING = (
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be instantiated:"
    "DeprecationWarning"
)
compiled_by_dynamo = pytest.mark.filterwarnings(COMPILER_WARNING)


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
    clear_caches()
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
        for table in registry.get("torch").backend.tables(basis, x):
            assert type(table) is torch.Tensor
            assert not table.is_inference()
            assert not torch_private._is_wrapped(table)
    for actual, wanted in zip(second_order(), expected, strict=True):
        assert type(actual) is torch.Tensor
        assert_close(actual, wanted)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 13), {"axes": -1}),
        ((2, 64), {"axes": -1, "method": "fft"}),
        ((2, 61), {"axes": -1, "method": "fft", "convention": "paper"}),
        ((2, 64), {"axes": -1, "method": "fft", "cropping": False}),
        ((2, 57), {"axes": -1, "method": "fft", "sizes": (70,)}),
        ((2, 60, 3), {"axes": 1, "method": "fft"}),
        ((2, 24, 20), {"method": "fft"}),
        ((2, 12, 15), {"method": "fft", "sizes": (30, 40)}),
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
    x, s = random(2, 64), strides_of(1.7)

    def f(s):
        return loss(diff_stride(x, s, axes=-1, method="fft"))

    hessian = torch.autograd.functional.hessian
    assert_close(hessian(f, s, vectorize=True), hessian(f, s))


@pytest.mark.parametrize("size", [100, 192, FFT_FROM_SIZE, 500])
def test_vectorized_jacobian_of_a_resize(size):
    x = random(192)

    def f(x):
        return spectral_resize(x, size, axes=-1)

    jacobian = torch.autograd.functional.jacobian
    assert_close(jacobian(f, x, vectorize=True), jacobian(f, x))


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
        return diff_stride(x, s, sizes=(8, 10), method=method)

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

    clear_caches()
    model, x = Model(), random(2, 12, 15)
    exported = torch.export.export(model, (x,), strict=strict).module()
    y = model(x)
    assert type(y) is torch.Tensor
    assert_close(exported(x), y, 1e-13)
