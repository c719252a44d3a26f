"""What holds for any input: linearity, the adjoint, symmetries, engines and norms."""

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from diffstride_backends import registry
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

# Derandomised: the same examples in every run, so that a failure is a change's own.
checked = settings(deadline=None, max_examples=40, derandomize=True, database=None)

FRAMEWORKS = ("numpy", "torch")
SMOOTHNESS = {
    "paper": st.floats(0.3, 9.0),
    "nominal": st.floats(0.05, 1.0),
    "tensorflow": st.floats(0.5, 7.0),
}
NORMS = ("forward", "ortho", "backward")


@dataclass(frozen=True)
class Call:
    """An evaluation of one of the functions: an input's shape and everything but the input."""

    operation: str
    shape: tuple[int, ...]
    arguments: tuple[Any, ...]
    options: dict[str, Any]
    seed: int

    @property
    def axes(self) -> tuple[int, ...]:
        return tuple(axis % len(self.shape) for axis in self.options["axes"])

    def random(self, shape=None, salt=0):
        shape = self.shape if shape is None else shape
        return np.random.default_rng((self.seed, salt)).standard_normal(shape)

    def __call__(self, x, framework="numpy", **changes):
        """Return the output for a host array, in double precision."""
        backend = registry.get(framework).backend
        y, _ = self.evaluate(x, framework, **changes)
        return backend.to_host(y)

    def evaluate(self, x, framework="numpy", **changes):
        chosen = registry.get(framework)
        function = getattr(chosen.with_pullback, self.operation)
        array = chosen.backend.from_host(np.ascontiguousarray(x), "float64")
        return function(array, *self.arguments, **{**self.options, **changes})

    def gradients(self, x, g, framework="numpy", **changes):
        """Return the gradients, on the host, for the cotangent `g`."""
        backend = registry.get(framework).backend
        _, pullback = self.evaluate(x, framework, **changes)
        cotangent = backend.from_host(np.ascontiguousarray(g), "float64")
        return [backend.to_host(gradient) for gradient in pullback(cotangent)]


@st.composite
def strides_for(draw, count):
    """Strides in every part of their range: ties, fractions, below 1, above the upper bound."""
    one = st.one_of(
        st.sampled_from([1.0, 1.5, 2.0, 3.0, 4.0]),
        st.floats(1.0, 6.0, allow_subnormal=False),
        st.floats(-1.0, 50.0, allow_subnormal=False),
    )
    return np.array(draw(st.lists(one, min_size=count, max_size=count)))


@st.composite
def diff_strides(draw, conventions=("paper", "nominal"), largest=24):
    convention = draw(st.sampled_from(conventions))
    rank = 2 if convention == "tensorflow" else draw(st.integers(1, 3))
    dimensions = draw(st.integers(rank, rank + 1))
    axes = draw(st.permutations(range(dimensions)))[:rank]
    smallest = 2 if convention == "tensorflow" else 1
    shape = draw(st.tuples(*[st.integers(smallest, largest if rank < 3 else 12)] * dimensions))
    options = {
        "axes": tuple(axes),
        "convention": convention,
        "smoothness": draw(st.one_of(st.none(), SMOOTHNESS[convention])),
        "norm": draw(st.sampled_from((None, *NORMS))),
        "limits": draw(st.sampled_from([(None, None), None, (1.4, None), (None, 2.5)])),
        "cropping": draw(st.sampled_from([True, True, True, False])),
    }
    if convention != "tensorflow":
        options["method"] = draw(st.sampled_from(["matmul", "fft"]))
        if options["cropping"] and draw(st.integers(0, 3)) == 0:
            options["sizes"] = draw(st.tuples(*[st.integers(1, largest + 6)] * rank))
    strides = draw(strides_for(draw(st.sampled_from([rank, 1]))))
    return Call("diff_stride", shape, (strides,), options, draw(st.integers(0, 2**16)))


@st.composite
def resizes(draw):
    shape = draw(st.tuples(*[st.integers(1, 20)] * 3))
    rank = draw(st.integers(1, 3))
    axes = tuple(draw(st.permutations(range(3)))[:rank])
    sizes = draw(st.tuples(*[st.integers(1, 24)] * rank))
    options = {"axes": axes, "norm": draw(st.sampled_from(NORMS))}
    return Call("spectral_resize", shape, (sizes,), options, draw(st.integers(0, 2**16)))


@st.composite
def pools(draw):
    convention = draw(st.sampled_from(("paper", "nominal", "tensorflow")))
    shape = draw(st.tuples(*[st.integers(2, 20)] * 3))
    axes = tuple(draw(st.permutations(range(3)))[:2])
    strides = tuple(draw(st.lists(st.floats(1.0, 8.0), min_size=2, max_size=2)))
    options = {"axes": axes, "convention": convention}
    return Call("spectral_pool", shape, (strides,), options, draw(st.integers(0, 2**16)))


ALL_CONVENTIONS = ("paper", "nominal", "tensorflow")
LINEAR_MAPS = st.one_of(diff_strides(ALL_CONVENTIONS), resizes(), pools())


def assert_close(actual, expected, tolerance=1e-12, scale=None):
    scale = np.max(np.abs(expected), initial=0.0) if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * max(scale, 1e-3))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(LINEAR_MAPS, st.floats(-3, 3))
def test_linear_in_x(framework, call, factor):
    x, other = call.random(), call.random(salt=1)
    scale = np.max(np.abs(call(x))) + 3 * np.max(np.abs(call(other)))
    separately = call(x, framework) + factor * call(other, framework)
    assert_close(call(x + factor * other, framework), separately, scale=scale)
    assert np.all(call(np.zeros(call.shape), framework) == 0)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(LINEAR_MAPS)
def test_pullback_is_the_adjoint(framework, call):
    x = call.random()
    y = call(x, framework)
    g = call.random(y.shape, salt=1)
    dx = call.gradients(x, g, framework)[0]
    assert dx.shape == x.shape
    size = np.linalg.norm(g) * np.linalg.norm(y) + np.linalg.norm(dx) * np.linalg.norm(x)
    assert abs(np.sum(g * y) - np.sum(dx * x)) <= 1e-13 * size
    # A gradient in x that depended on x would not be that of a linear map.
    assert_close(call.gradients(call.random(salt=2), g, framework)[0], dx)


@checked
@given(diff_strides(ALL_CONVENTIONS))
def test_stride_gradient_is_bilinear(call):
    x, y = call.random(), call(call.random())
    g = call.random(y.shape, salt=1)
    dstrides = call.gradients(x, g)[1]
    limit = 1e-12 * np.linalg.norm(x) * np.linalg.norm(g) * max(call.shape)
    limit *= math.prod(call.shape) / y.size
    for factor in (-2.0, 0.0, 0.5):
        for scaled in (call.gradients(factor * x, g)[1], call.gradients(x, factor * g)[1]):
            np.testing.assert_allclose(scaled, factor * dstrides, rtol=1e-12, atol=limit)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(LINEAR_MAPS, st.integers(0, 3), st.integers(1, 3))
def test_batch_entries_are_independent(framework, call, position, count):
    # A batch dimension anywhere, with the axes counted from the front around it.
    position = min(position, len(call.shape))
    axes = tuple(axis + (axis >= position) for axis in call.axes)
    batch = np.stack([call.random(salt=i) for i in range(count)], axis=position)
    y = call(batch, framework, axes=axes)
    g = np.cos(np.arange(y.size)).reshape(y.shape)
    dx, *dstrides = call.gradients(batch, g, framework, axes=axes)
    total = 0.0
    for i in range(count):
        x, g_alone = call.random(salt=i), g.take(i, axis=position)
        assert_close(y.take(i, axis=position), call(x, framework))
        dx_alone, *dstrides_alone = call.gradients(x, g_alone, framework)
        assert_close(dx.take(i, axis=position), dx_alone)
        total = total + np.array(dstrides_alone)
    limit = 1e-11 * np.linalg.norm(batch) * np.linalg.norm(g) * batch.size / y.size
    np.testing.assert_allclose(np.array(dstrides), total, rtol=1e-11, atol=limit)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(diff_strides(("nominal",)))
def test_nominal_axes_can_be_named_in_any_order(framework, call):
    x = call.random()
    y = call(x, framework)
    g = call.random(y.shape, salt=1)
    dx, dstrides = call.gradients(x, g, framework)
    (strides,) = call.arguments
    sizes = call.options.get("sizes")
    for order in itertools.permutations(range(len(call.axes))):
        options = {**call.options, "axes": tuple(call.axes[i] for i in order)}
        if sizes is not None:
            options["sizes"] = tuple(sizes[i] for i in order)
        permuted = strides if len(strides) == 1 else strides[list(order)]
        moved = Call(call.operation, call.shape, (permuted,), options, call.seed)
        assert_close(moved(x, framework), y)
        moved_dx, moved_dstrides = moved.gradients(x, g, framework)
        assert_close(moved_dx, dx)
        expected = dstrides if len(strides) == 1 else dstrides[list(order)]
        limit = 1e-12 * np.linalg.norm(x) * np.linalg.norm(g) * max(call.shape)
        limit *= math.prod(call.shape) / y.size
        np.testing.assert_allclose(moved_dstrides, expected, rtol=1e-12, atol=limit)


@checked
@given(diff_strides(("paper", "nominal")), st.data())
def test_dimensions_can_be_stored_in_any_order(call, data):
    order = data.draw(st.permutations(range(len(call.shape))))
    x = call.random()
    axes = tuple(order.index(axis) for axis in call.axes)
    moved = call(x.transpose(order), axes=axes)
    assert_close(moved, call(x).transpose(order))


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(LINEAR_MAPS, st.data())
def test_shifts_of_the_grid_are_kept(framework, call, data):
    # y samples the same periodic signal as x. With g = gcd(N, M), a shift by j/g of the period
    # moves both grids by whole samples: x by j N/g, y by j M/g, and the operator commutes with it.
    x = call.random()
    y = call(x, framework)
    shifted_x, shifted_y = x, y
    for axis in call.axes:
        N, M = x.shape[axis], y.shape[axis]
        common = math.gcd(N, M)
        j = data.draw(st.integers(0, common - 1))
        shifted_x = np.roll(shifted_x, j * N // common, axis=axis)
        shifted_y = np.roll(shifted_y, j * M // common, axis=axis)
    assert_close(call(shifted_x, framework), shifted_y)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(diff_strides(largest=70))
def test_engines_agree(framework, call):
    x = call.random()
    by_matrix = call(x, framework, method="matmul")
    assert_close(call(x, framework, method="fft"), by_matrix)
    g = call.random(by_matrix.shape, salt=1)
    dx, dstrides = call.gradients(x, g, framework, method="matmul")
    fft_dx, fft_dstrides = call.gradients(x, g, framework, method="fft")
    assert_close(fft_dx, dx)
    limit = 1e-12 * np.linalg.norm(x) * np.linalg.norm(g) * max(call.shape)
    limit *= math.prod(call.shape) / by_matrix.size
    np.testing.assert_allclose(fft_dstrides, dstrides, rtol=1e-12, atol=limit)


@pytest.mark.parametrize("framework", FRAMEWORKS)
@checked
@given(st.one_of(diff_strides(ALL_CONVENTIONS), resizes()))
def test_norms_differ_by_powers_of_the_ratio_of_sizes(framework, call):
    x = call.random()
    forward = call(x, framework, norm="forward")
    g = call.random(forward.shape, salt=1)
    gradients = call.gradients(x, g, framework, norm="forward")
    ratio = x.size / forward.size
    for norm, exponent in (("ortho", 0.5), ("backward", 1.0)):
        factor = ratio**exponent
        assert_close(call(x, framework, norm=norm), factor * forward)
        for found, reference in zip(
            call.gradients(x, g, framework, norm=norm), gradients, strict=True
        ):
            scale = np.max(np.abs(factor * reference)) + np.linalg.norm(g) * np.linalg.norm(x)
            assert_close(found, factor * reference, scale=scale)


@checked
@given(diff_strides(ALL_CONVENTIONS))
def test_frameworks_agree(call):
    x = call.random()
    y = call(x, "numpy")
    assert_close(call(x, "torch"), y)
    g = call.random(y.shape, salt=1)
    found, expected = call.gradients(x, g, "torch"), call.gradients(x, g, "numpy")
    assert_close(found[0], expected[0])
    limit = 1e-13 * np.linalg.norm(x) * np.linalg.norm(g) * max(call.shape)
    limit *= math.prod(call.shape) / y.size
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-12, atol=limit)


@checked
@given(
    st.sampled_from(("paper", "nominal")),
    st.integers(1, 60),
    strides_for(1),
    st.sampled_from(("matmul", "fft")),
)
def test_constants_stay_and_the_mean_is_kept(convention, size, strides, method):
    options = {"axes": (-1,), "convention": convention, "method": method}
    x = np.random.default_rng(size).standard_normal((3, size))
    call = Call("diff_stride", x.shape, (strides,), options, 0)
    assert_close(call(np.full(x.shape, 2.5)), np.full_like(call(x), 2.5))
    assert_close(np.mean(call(x), axis=1), np.mean(x, axis=1), scale=1.0)


@checked
@given(st.lists(st.lists(st.floats(1.0, 8.0), min_size=1, max_size=3), min_size=1, max_size=6))
def test_complexity_is_the_sum_of_the_shares_left(layers):
    framework = registry.get("numpy")
    value, pullback = framework.with_pullback.complexity([np.array(layer) for layer in layers])
    shares = list(itertools.accumulate((1 / math.prod(layer) for layer in layers), float.__mul__))
    assert float(value) == pytest.approx(sum(shares), rel=1e-13)
    for j, gradient in enumerate(pullback(np.array(1.0))):
        expected = -sum(shares[j:]) / np.array(layers[j])
        np.testing.assert_allclose(gradient, expected, rtol=1e-13)
