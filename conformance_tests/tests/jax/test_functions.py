"""The functions under JAX's transformations."""

import gc
import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffstride_backends import jax_backend, registry, torch_backend
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed
from diffstride_conformance.run import run_case
from diffstride_jax import (
    complexity,
    conv_diff_stride,
    diff_stride,
    output_sizes,
    plain_autodiff,
)
from support.amounts import quick_every, quick_first

from diffstride_core.convolution.checks import checked_convolution
from diffstride_core.convolution.evaluation import is_fused_cheaper
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.resample import RESAMPLE
from diffstride_core.settings import make_settings
from diffstride_core.testing import cache_info, cache_limit, clear_caches


@pytest.fixture(autouse=True)
def _double_precision():
    with jax.enable_x64(True):
        yield


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape))


HALF_CASES = [case for case in all_cases() if is_posed(case, "bfloat16")]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", quick_every(3, HALF_CASES[::108]), ids=lambda case: case.name)
def test_conformance_in_half_precision(case, dtype):
    assert run_case(registry.get("jax"), case, dtype)


def test_jit_needs_sizes_and_compiles_once_per_size():
    traces = []

    @partial(jax.jit, static_argnames="sizes")
    def step(x, s, sizes):
        traces.append(sizes)
        return diff_stride(x, s, sizes=sizes)

    x = random(2, 32, 32)
    for stride in (2.0, 2.01, 2.02, 3.0, 3.01):
        s = jnp.asarray([stride, stride])
        sizes = output_sizes(x.shape, s)
        assert jnp.allclose(step(x, s, sizes), diff_stride(x, s), atol=1e-12)
    assert len(traces) == 2
    with pytest.raises(ValueError, match=r"output_sizes\(x\.shape, strides"):
        jax.jit(diff_stride)(x, jnp.asarray([2.0, 2.0]))


def test_one_compilation_while_the_size_stays(caplog):
    x = random(3, 30, 26)

    def resize(stride):
        with jax.log_compiles():
            diff_stride(x, jnp.asarray([stride, stride]))

    resize(2.0)
    made = cache_info()["jax_backend.program"].misses
    caplog.clear()
    for stride in (2.001, 2.002, 2.003):
        resize(stride)
    assert cache_info()["jax_backend.program"].misses == made
    assert not caplog.records
    resize(3.0)
    assert any("ompiling" in record.message for record in caplog.records)


def compilations(caplog, f, *arrays):
    """Return what a function gives, and the names of the programs compiled for it."""
    caplog.clear()
    with jax.log_compiles():
        made = jax.block_until_ready(f(*arrays))
    found = re.findall(r"Finished XLA compilation of jit\((\w+)\)", caplog.text)
    return made, found


def resized_with_gradients(x, s, g, **options):
    y, pullback = jax.vjp(partial(diff_stride, **options), x, s)
    return y, *pullback(g)


@pytest.mark.parametrize("method", quick_first(1, ["matmul", "fft"]))
def test_a_first_call_compiles_one_program_for_each_pass(caplog, method):
    x, g = random(3, 29, 27), random(3, 12, 15, seed=1)
    f = partial(resized_with_gradients, sizes=(12, 15), method=method)
    s = jnp.asarray([2.4, 1.8])
    before = cache_info()["host.factors"].misses
    eager, found = compilations(caplog, f, x, s, g)
    assert found == ["program"] * 2
    # What the strides alone decide is made on the host, so that little is left to compile.
    assert cache_info()["host.factors"].misses == before + 2
    # The ramp holds another number of bins, but not in what is compiled.
    _, found = compilations(caplog, f, x, jnp.asarray([1.4, 2.6]), g)
    assert not found
    assert_all_close(eager, jax.jit(f)(x, s, g))


def test_constant_arrays_of_a_compiled_function():
    x, s = random(3, 12, 15), jnp.asarray([1.7, 2.4])
    expected = diff_stride(x, s)
    for strides in (s, (1.7, 2.4)):
        clear_caches()
        inside = jax.jit(lambda a, strides=strides: a * diff_stride(x, strides))(jnp.asarray(2.0))
        # Nothing that was traced has been kept.
        assert_all_close([inside / 2, diff_stride(x, s)], [expected] * 2)


def test_programs_are_kept_within_bytes():
    x = random(1, 40)
    clear_caches()
    alive = len(compiled_programs())
    diff_stride(x, 2.0, axes=-1, method="matmul")
    kept = cache_info()["jax_backend.program"]
    assert (kept.entries, kept.most_bytes <= 2**27) == (1, True)
    # Tables of 40 samples to 20, at least: what only lasts as long as the program.
    assert kept.nbytes > 4 * 2 * 11 * (40 + 20)
    assert len(compiled_programs()) == alive + 1
    with cache_limit("jax_backend.program", kept.nbytes):
        diff_stride(x, 2.0, axes=-1, method="matmul", sizes=16)
    assert cache_info()["jax_backend.program"].entries == 1
    assert len(compiled_programs()) == alive + 1


def compiled_programs():
    """Return the compiled functions of the backend that are alive."""
    gc.collect()
    kind = type(jax.jit(abs))
    return [
        function
        for function in gc.get_objects()
        if type(function) is kind and function.__module__ == jax_backend.__name__
    ]


def test_programs_count_as_what_they_take_with_gradients():
    settings = make_settings(axes=-1, method="matmul")
    plan = plan_diff_stride(settings, (-1,), (1000,), (2.0,), shared=False)
    (output_size,) = plan.output_sizes
    tables = 4 * 2 * (output_size // 2 + 1) * (1000 + output_size)
    # Measured as the memory that is kept: between 8 and 9 copies, and half without gradients.
    values = jax_backend._program_bytes(RESAMPLE, plan, None, True)
    gradients = jax_backend._program_bytes(RESAMPLE, plan, (True, True), True)
    assert values + gradients > 8 * tables
    # Where the factors are arguments there are no tables.
    assert jax_backend._program_bytes(RESAMPLE, plan, None, False) < tables


def test_two_programs_are_kept_with_their_gradients_however_large():
    settings = make_settings(axes=-1, method="matmul")
    plan = plan_diff_stride(settings, (-1,), (10**5,), (2.0,), shared=False)
    size = jax_backend._program_bytes(RESAMPLE, plan, (True, True), True)
    assert 4 * size <= jax_backend._programs.most_bytes


def loss(x, s, **options):
    return jnp.sum(jnp.sin(diff_stride(x, s, sizes=(8, 10), **options)))


@pytest.mark.parametrize("method", quick_first(1, ["fft", "matmul"]))
def test_derivatives_of_every_mode(method):
    x, s = random(12, 15), jnp.asarray([1.7, 2.4])
    f = partial(loss, method=method)
    attached = jax.grad(f, argnums=(0, 1))(x, s)
    reverse_over_reverse = jax.jacrev(jax.grad(f, argnums=1), argnums=1)(x, s)
    with plain_autodiff():
        plain = jax.grad(f, argnums=(0, 1))(x, s)
        forward = jax.jacfwd(f, argnums=1)(x, s)
        hessian = jax.hessian(f, argnums=1)(x, s)
    for a, b in zip(attached, plain, strict=True):
        assert jnp.allclose(a, b, atol=1e-12)
    assert jnp.allclose(forward, attached[1], atol=1e-12)
    assert jnp.allclose(hessian, reverse_over_reverse, atol=1e-10)


def test_vmap_checkpoint_and_scan():
    xs, s = random(3, 12, 15), jnp.asarray([1.7, 2.4])
    many = jnp.stack([s, s + 0.1])
    assert jnp.allclose(jax.vmap(loss, (0, None))(xs, s), jnp.stack([loss(x, s) for x in xs]))
    assert jnp.allclose(
        jax.vmap(jax.grad(loss, argnums=1), (None, 0))(xs[0], many),
        jnp.stack([jax.grad(loss, argnums=1)(xs[0], one) for one in many]),
    )
    expected = jax.grad(loss, argnums=1)(xs[0], s)
    assert jnp.allclose(jax.grad(jax.checkpoint(loss), argnums=1)(xs[0], s), expected)

    def descend(s, x):
        return s - 0.01 * jax.grad(loss, argnums=1)(x, s), None

    final, _ = jax.lax.scan(descend, s, xs)
    for x in xs:
        s = descend(s, x)[0]
    assert jnp.allclose(final, s)


@pytest.mark.parametrize("method", quick_first(1, ["matmul", "fft"]))
def test_shard_map_over_the_batch(method):
    devices = jax.devices()[:4]
    assert len(devices) == 4, "conftest.py forces four devices on the host"
    mesh = jax.sharding.Mesh(devices, ("batch",))
    batch, everywhere = jax.P("batch"), jax.P()
    x, s = random(8, 12, 15), jnp.asarray([1.7, 2.4])
    f = partial(diff_stride, sizes=(8, 10), method=method)

    def total(x, s):
        return jax.lax.psum(jnp.sum(jnp.sin(f(x, s))), "batch")

    sharded = jax.jit(jax.shard_map(f, mesh=mesh, in_specs=(batch, everywhere), out_specs=batch))
    y = sharded(x, s)
    assert y.sharding.device_set == set(devices)
    assert jnp.allclose(y, f(x, s), atol=1e-12)
    mapped = jax.shard_map(total, mesh=mesh, in_specs=(batch, everywhere), out_specs=everywhere)
    found = jax.jit(jax.grad(mapped, argnums=(0, 1)))(x, s)
    expected = jax.grad(lambda x, s: jnp.sum(jnp.sin(f(x, s))), argnums=(0, 1))(x, s)
    for a, b in zip(found, expected, strict=True):
        assert jnp.allclose(a, b, atol=1e-12)


def convolved(x, weight, s, bias):
    """Convolve a (..., C, H, W) array by JAX's own function, dilated by 2, and resize it."""
    y = jax.lax.conv_general_dilated(
        x.reshape(-1, *x.shape[-3:]), weight, (1, 1), "SAME", rhs_dilation=(2, 2)
    )
    y = y.reshape(*x.shape[:-3], *y.shape[1:]) + bias[:, None, None]
    return diff_stride(y, s, sizes=(12, 10))


def conv(x, weight, s, bias, method, sizes=(12, 10)):
    options = {"bias": bias, "sizes": sizes, "dilation": 2, "method": method}
    return conv_diff_stride(x, weight, s, **options)


def convolution_arrays():
    """Return a batch, a weight, strides and a bias."""
    weight, bias = random(4, 3, 3, 3, seed=1), random(4, seed=2)
    return random(8, 3, 12, 15), weight, jnp.asarray([1.7, 2.4]), bias


def value_and_gradients(f, *arrays):
    def sine(*arrays):
        y = f(*arrays)
        return jnp.sum(jnp.sin(y)), y

    (_, y), gradients = jax.value_and_grad(sine, range(len(arrays)), has_aux=True)(*arrays)
    return y, *gradients


def assert_all_close(found, expected):
    for a, b in zip(found, expected, strict=True):
        assert jnp.allclose(a, b, rtol=0, atol=1e-11)


METHODS = pytest.mark.parametrize("method", ["fused", "separate"])


@pytest.mark.parametrize("method", quick_first(1, ["fused", "separate"]))
def test_convolution_under_jit_and_its_derivatives(method):
    arrays, f = convolution_arrays(), partial(conv, method=method)
    expected = value_and_gradients(convolved, *arrays)
    assert_all_close(jax.jit(partial(value_and_gradients, f))(*arrays), expected)
    with plain_autodiff():
        assert_all_close(value_and_gradients(f, *arrays), expected)
        forward = jax.jacfwd(lambda s: jnp.sum(jnp.sin(f(*arrays[:2], s, arrays[3]))))(arrays[2])
    assert_all_close([forward], [expected[3]])


@METHODS
def test_convolution_under_jit_needs_sizes(method):
    with pytest.raises(ValueError, match="sizes must be given where the strides are traced"):
        jax.jit(partial(conv, method=method, sizes=None))(*convolution_arrays())


@pytest.mark.parametrize("method", quick_first(1, ["fused", "separate"]))
def test_convolution_under_vmap(method):
    x, weight, s, bias = convolution_arrays()
    f = partial(value_and_gradients, partial(conv, method=method))
    g = partial(value_and_gradients, convolved)
    many = [jnp.stack([array, array + 0.1]) for array in (weight, s, bias)]
    for axes, arrays in (
        ((0, None, None, None), (x, weight, s, bias)),
        ((None, 0, 0, 0), (x, *many)),
    ):
        found, expected = (jax.jit(jax.vmap(h, axes))(*arrays) for h in (f, g))
        assert_all_close(found, expected)


@pytest.mark.parametrize("method", quick_first(1, ["separate", "fused"]))
def test_convolution_under_shard_map(method):
    devices = jax.devices()[:4]
    mesh = jax.sharding.Mesh(devices, ("batch",))
    specs = (jax.P("batch"), *(jax.P(),) * 3)

    def mapped(*arrays):
        f = partial(conv, method=method)
        return jax.shard_map(f, mesh=mesh, in_specs=specs, out_specs=jax.P("batch"))(*arrays)

    arrays = convolution_arrays()
    y, *gradients = jax.jit(partial(value_and_gradients, mapped))(*arrays)
    assert y.sharding.device_set == set(devices)
    assert_all_close([y, *gradients], value_and_gradients(convolved, *arrays))


def test_complexity_under_jit():
    layers = [jnp.asarray([2.0, 3.0]), jnp.asarray([1.5, 1.2])]
    value, gradients = jax.jit(jax.value_and_grad(complexity))(layers)
    assert jnp.allclose(value, 1 / 6 + 1 / 6 / 1.8)
    assert jnp.allclose(gradients[1], -1 / 6 / 1.8 / layers[1])


@pytest.mark.parametrize("x", [np.ones((8, 8)), jnp.ones((8, 8), int), jnp.ones((8, 8), complex)])
def test_other_arrays_are_refused(x):
    with pytest.raises(TypeError, match="x must be"):
        diff_stride(x, [2.0, 2.0])


def test_grouped_convolutions_are_fused_by_the_units_of_jax_alone():
    settings = make_settings(axes=(-2, -1))
    resize = plan_diff_stride(settings, (-2, -1), (28, 28), (2.0, 2.0), shared=False)
    conv = checked_convolution((8, 128, 28, 28), (128, 1, 3, 3), groups=128)
    plan = ConvPlan(conv, resize)
    assert is_fused_cheaper(plan, jax_backend.EVALUATION_UNITS)
    assert not is_fused_cheaper(plan, torch_backend.EVALUATION_UNITS)
