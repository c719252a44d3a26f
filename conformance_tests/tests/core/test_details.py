"""Details that only show at the edge of a rule: each test states the rule it guards.

`conformance_tests/mutations.py` makes such details wrong one by one; these tests notice those that
no wider test does.
"""

import math
from functools import partial

import jax
import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance import oracle

from diffstride_core import bases, complexity
from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.plan_cache import PlanCache
from diffstride_core.settings import make_settings
from diffstride_core.window import clipped_ramp

FRAMEWORKS = ("numpy", "torch")
each_framework = pytest.mark.parametrize("name", FRAMEWORKS)

numpy = registry.get("numpy").functional


@each_framework
def test_the_ramp_is_open_at_its_lower_end_and_closed_at_its_upper(name):
    """The derivative counts where 1e-4 < v <= 1 + 1e-4, to the last bit."""
    ops = registry.get(name).backend
    lower, upper = 1e-4, 1 + 1e-4
    v = np.array([0.0, lower, np.nextafter(lower, 1), 1.0, upper, np.nextafter(upper, 2)])
    mask = clipped_ramp(ops, ops.from_host(v, "float64"), ops.from_host(np.array(-3.0), "float64"))
    assert ops.to_host(mask.dmask).tolist() == [0, 0, -3, -3, -3, 0]
    np.testing.assert_array_equal(ops.to_host(mask.value), np.clip(v, 0, 1))


@pytest.mark.parametrize("j", [6, 20, 400])
def test_a_size_steps_where_the_guard_ends(j):
    """M = 2*ceil(q - 1e-5 - 1e-7*q): q = j is passed by just so much before bins are added."""
    paper, size, smoothness = CONVENTIONS["paper"], 1000, 4.0
    guard = 1e-5 + 1e-7 * j
    for excess, expected in ((-0.5, 2 * j), (0.0, 2 * j), (0.95, 2 * j), (1.05, 2 * j + 2)):
        stride = size / (2 * (j + excess * guard - smoothness))
        assert paper.output_size(size, smoothness, stride, False) == expected


@pytest.mark.parametrize("j", [6, 20, 400])
def test_a_nominal_size_steps_where_the_guard_ends(j):
    """M = floor(t + 3/4 + 1e-5 + 1e-7*t): t + 3/4 = j counts if it is missed by just so much."""
    nominal, size = CONVENTIONS["nominal"], 1000
    guard = 1e-5 + 1e-7 * j
    for missing, expected in ((-0.5, j), (0.0, j), (0.95, j), (1.05, j - 1)):
        stride = size / (j - 0.75 - missing * guard)
        assert nominal.output_size(size, 0.25, stride, False) == expected


def test_a_pooled_size_steps_where_the_guard_ends():
    """M = floor(N/S + 1e-5), at least 2 and at most N."""
    rounded = float(np.float32(2.4))
    assert 12 / rounded < 5
    for size, stride, expected in (
        (12, 2.4, 5),
        (12, rounded, 5),
        (12, 12 / (5 - 0.9e-5), 5),
        (12, 12 / (5 - 1.1e-5), 4),
        (12, 100.0, 2),
        (2, 2.0, 2),
        (1, 1.0, 1),
        (1, 3.0, 1),
    ):
        y = numpy.spectral_pool(np.ones(size), stride, axes=-1)
        assert y.shape == (expected,)
        np.testing.assert_allclose(y, 1.0, rtol=1e-15)


def one_bin(k):
    """Return a rule that reads and writes the frequency k alone."""

    def rule(size, output_size):
        return np.array([k]), np.array([k]), np.ones(1)

    return rule


def test_phases_stay_exact_on_long_axes():
    """Phases are reduced in integers: (k*n) mod N, before they meet floating point."""
    size = 2**18
    k = size // 2 - 1
    synthesis, analysis = bases.tables(bases.AxisBasis(size, size, one_bin(k)))
    # k*n = n*N/2 - n: half turns, and a slow phase whose float is as good as exact.
    sign, slow = np.resize([1.0, -1.0], size), 2 * np.pi * np.arange(size) / size
    expected = np.stack([sign * np.cos(slow), -sign * np.sin(slow)])
    np.testing.assert_allclose(synthesis.T, expected, rtol=0, atol=1e-15)
    np.testing.assert_allclose(analysis * size, expected, rtol=0, atol=1e-15)


def test_long_axes_lose_no_accuracy():
    """What the phases' rounding would cost: the matrix engine agrees with the transforms."""
    x = np.random.default_rng(1).standard_normal(1024)
    by_matrix, by_fft = (
        numpy.diff_stride(x, 1.05, axes=-1, limits=None, method=method)
        for method in ("matmul", "fft")
    )
    np.testing.assert_allclose(by_matrix, by_fft, rtol=0, atol=1e-14 * np.max(np.abs(by_fft)))


def test_the_unpaired_bin_has_no_sine():
    """At k = lo/2 the samples see the cosine alone, and no rounding of pi adds a sine."""
    for size, output_size in ((48, 20), (20, 48), (20, 20)):
        unpaired = min(size, output_size) // 2
        synthesis, analysis = bases.tables(bases.AxisBasis(size, output_size, bases.half_spectrum))
        sine = synthesis[:, -1] if output_size <= size else analysis[-1]
        assert synthesis.shape[1] == 2 * (unpaired + 1)
        assert not sine.any()


@each_framework
def test_the_inverse_transform_gets_no_sine_that_it_cannot_see(name, monkeypatch):
    """Transform libraries differ in what they make of an imaginary part at 0 or at M/2."""
    framework = registry.get(name)
    backend, seen = framework.backend, []

    def checked(spectrum, size, axis, original=backend.irfft):
        host = np.moveaxis(backend.to_host(spectrum), axis, -1)
        unpaired = [0, size // 2] if size % 2 == 0 and host.shape[-1] > size // 2 else [0]
        assert np.abs(host[..., unpaired].imag).max() <= 1e-15 * np.abs(host).max()
        seen.append(len(unpaired))
        return original(spectrum, size, axis)

    monkeypatch.setattr(backend, "irfft", checked)
    x = backend.from_host(np.random.default_rng(2).standard_normal((3, 32, 20)), "float64")
    for sizes in ((24, 20), (40, 30), (21, 8)):
        y, pullback = framework.with_pullback.diff_stride(x, (1.3, 1.2), sizes=sizes, method="fft")
        pullback(y)
    assert seen.count(2) >= 4


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
@pytest.mark.parametrize(
    "options",
    [{"method": "matmul"}, {"method": "fft"}],
    ids=["matmul", "fft"],
)
def test_the_slope_is_summed_in_double_precision(options):
    """A float32 sum over a long batch would lose the stride's gradient, owed to 1e-7 B."""
    rows, size, stride = 20_000, 16, 2.0
    # One frequency, in the ramp, in phase everywhere: every term has one sign. Of different
    # heights: the rounding of equal rows would be equal too, and not average out.
    wave = np.cos(2 * np.pi * 6 * np.arange(size) / size)
    heights = np.random.default_rng(0).uniform(0.5, 1.0, (rows, 1))
    x = (heights * wave).astype(np.float32)
    options = {"axes": (-1,), "limits": None, "convention": "paper"} | options
    y, pullback = registry.get("numpy").with_pullback.diff_stride(x, np.array(stride), **options)
    assert y.shape == x.shape
    options.pop("method")
    reference = oracle.diff_stride(x.astype(np.float64), stride, x.astype(np.float64), **options)
    assert abs(reference.dstrides) > 0.99 * reference.bound
    assert abs(pullback(x)[1] - reference.dstrides) <= 1e-7 * reference.bound


def test_the_penalty_has_a_gradient_only_where_one_is_asked_for():
    """Gradients that nobody needs are None, for any layer."""
    ops, layers = registry.get("numpy").backend, [np.array([2.0, 3.0]), np.array([1.5, 1.2])]
    bounds = ((Bounds(),) * 2,) * 2
    for needs in ((True, False), (False, True), (False, False)):
        gradients = complexity.pull_back(ops, bounds, (), None, np.array(1.0), *layers, needs=needs)
        assert tuple(gradient is not None for gradient in gradients) == needs


def test_plan_caches_differ_whichever_has_seen_the_size():
    """Two caches are equal only if they hold the same plan for every size that either has seen."""
    small, large = (PlanCache(make_settings(axes=(-1,)), 1, (stride,)) for stride in (2.0, 4.0))
    assert small == large
    large.plan((64,))
    assert small != large
    small, large = (PlanCache(make_settings(axes=(-1,)), 1, (stride,)) for stride in (2.0, 4.0))
    large.plan((64,))
    assert large != small


@each_framework
def test_numbers_are_double_precision(name):
    """A stride given as a number is not rounded to float32 on its way."""
    framework = registry.get(name)
    x = framework.backend.from_host(np.random.default_rng(3).standard_normal((20, 24)), "float64")
    for number in (2.3, [1.7, 2.3]):
        array = framework.backend.from_host(np.array(number), "float64")
        found, expected = (
            framework.backend.to_host(framework.functional.diff_stride(x, strides))
            for strides in (number, array)
        )
        np.testing.assert_array_equal(found, expected)


@each_framework
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_masks_do_not_depend_on_the_dtype_of_the_stride(name, convention):
    """Mask and derivative of a float32 stride are those of its value, in double precision."""
    framework, stride = registry.get(name), np.float32([2.3, 1.7])
    x = framework.backend.from_host(np.random.default_rng(4).standard_normal((40, 33)), "float64")
    results = []
    for dtype in ("float32", "float64"):
        strides = framework.backend.from_host(stride, dtype)
        y, pullback = framework.with_pullback.diff_stride(x, strides, convention=convention)
        results.append([framework.backend.to_host(array) for array in (y, *pullback(y))])
    (y, dx, dstrides), (expected_y, expected_dx, expected_dstrides) = results
    np.testing.assert_array_equal(y, expected_y)
    np.testing.assert_array_equal(dx, expected_dx)
    np.testing.assert_array_equal(dstrides, expected_dstrides.astype(np.float32))


def test_sizes_of_the_authors_code_have_no_guard():
    """In the tensorflow convention the smallest float32 excess over a tie adds a frequency."""
    size, smoothness = 32, 4.0
    at_tie = 2.0
    below = float(np.nextafter(np.float32(at_tie), np.float32(0)))
    for stride, expected in ((at_tie, 24), (below, 26)):
        sizes = numpy.output_sizes((size, size), stride, convention="tensorflow")
        assert sizes == (expected, expected)
        assert sizes == oracle.output_sizes(
            (size, size), stride, smoothness=smoothness, convention="tensorflow"
        )


def test_jax_computes_masks_in_double_precision_where_it_is_on():
    """Outputs of float64 inputs are owed to 1e-13 in JAX too."""
    framework, strides = registry.get("jax"), np.array([2.3, 1.7])
    x = np.random.default_rng(5).standard_normal((20, 24))
    with framework.double_precision():
        arrays = [framework.backend.from_host(array, "float64") for array in (x, strides)]
        # Strides that have values leave masks to the host; under jit they have none.
        resize = jax.jit(partial(framework.functional.diff_stride, sizes=(9, 14)))
        found = framework.backend.to_host(resize(*arrays))
    expected = numpy.diff_stride(x, strides, sizes=(9, 14))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-13)


def test_plain_autodiff_of_jax_is_right_outside_the_bounds_and_on_ties():
    """There the derivative is the stated one, not that of the clips that JAX differentiates."""
    framework = registry.get("jax")
    random = np.random.default_rng(6)
    x, strides, sizes = random.standard_normal((24, 32)), np.array([0.5, 2.0]), (24, 24)
    g = random.standard_normal(sizes)
    options = {"sizes": sizes, "convention": "paper"}
    reference = oracle.diff_stride(x, strides, g, **options)
    with framework.double_precision(), framework.plain_autodiff():
        array, one, cotangent = (
            framework.backend.from_host(values, "float64") for values in (x, strides, g)
        )
        found = jax.grad(
            lambda s: (framework.functional.diff_stride(array, s, **options) * cotangent).sum()
        )(one)
        found = framework.backend.to_host(found)
    assert np.all(np.abs(reference.dstrides) > 1e-3 * reference.bound)
    assert np.all(np.abs(found - reference.dstrides) <= 1e-14 * reference.bound)


def test_the_float32_ramp_of_the_authors_code_survives_compilation():
    """A compiler may divide by a constant through its reciprocal, which rounds differently."""
    convention, smoothness = CONVENTIONS["tensorflow"], 6.5
    axis = AxisPlan(-1, 64, 64, True, convention.bounds(64, smoothness, (None, None)))

    def ramp(ops, stride):
        return convention.mask(ops, axis, smoothness, stride, stride).value

    strides = np.random.default_rng(7).uniform(1.2, 5, 50)
    with registry.get("jax").double_precision():
        backend = registry.get("jax").backend
        compiled = jax.jit(partial(ramp, backend))
        found = [np.asarray(compiled(backend.from_host(s, "float64"))) for s in strides]
    expected = [ramp(registry.get("numpy").backend, np.asarray(s)) for s in strides]
    np.testing.assert_array_equal(found, expected)


def test_the_float32_ramp_of_the_authors_code_is_the_same_in_torch():
    """Torch divides a number by a tensor through the tensor's reciprocal."""
    convention, smoothness = CONVENTIONS["tensorflow"], 4.0
    axis = AxisPlan(-1, 49, 48, True, convention.bounds(49, smoothness, (None, None)))

    def ramp(framework, stride):
        backend = registry.get(framework).backend
        array = backend.from_host(np.asarray(stride), "float64")
        return backend.to_host(convention.mask(backend, axis, smoothness, array, array).value)

    for stride in np.random.default_rng(7).uniform(1.2, 5, 300):
        np.testing.assert_array_equal(ramp("torch", stride), ramp("numpy", stride))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_jax_resizes_half_precision_in_float32(transform):
    jnp = jax.numpy
    x = jnp.asarray(np.random.default_rng(8).standard_normal((4, 64)), jnp.bfloat16)
    resize = partial(registry.get("jax").functional.diff_stride, strides=[2.0], axes=-1)
    resize = transform(resize)
    exact = resize(x.astype(jnp.float32)).astype(jnp.bfloat16)
    assert jnp.array_equal(resize(x), exact)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_smoothness_is_a_positive_number_and_in_the_nominal_convention_at_most_the_band(convention):
    most = 1.0 if convention == "nominal" else 1e30
    for allowed in (1e-30, 0.25, 1.0, most):
        assert make_settings(convention=convention, smoothness=allowed).smoothness == allowed
    for refused in (0.0, -1.0, math.nextafter(most, math.inf), 2 * most, math.inf, math.nan):
        with pytest.raises(ValueError, match="smoothness must be"):
            make_settings(convention=convention, smoothness=refused)
