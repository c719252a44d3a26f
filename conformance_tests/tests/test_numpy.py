"""The NumPy adapter: pullbacks against differences, arrays of any layout, and the layer."""

import doctest
import subprocess
import sys

import diffstride_numpy as ds
import numpy as np
import pytest
from amounts import quick_where
from diffstride_backends import registry
from diffstride_conformance import oracle
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed
from diffstride_conformance.run import run_case
from diffstride_numpy import modules

from diffstride_core import NothingToCropWarning

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

STEP = 1e-6
CLEAN = ("paper", "nominal")
ENGINES = ("matmul", "fft")


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def assert_dx_is_the_adjoint(function, pullback, x, g):
    """Compare dx, entry by entry, with the change of <g, f(x)>: f is linear, so the step is 1."""
    (dx, *_) = pullback(g)
    assert dx.shape == x.shape
    assert dx.dtype == x.dtype
    expected = np.empty_like(x)
    for index in np.ndindex(x.shape):
        basis = np.zeros_like(x)
        basis[index] = 0.5
        expected[index] = np.sum(g * (function(basis) - function(-basis)))
    np.testing.assert_allclose(dx, expected, rtol=0, atol=1e-12 * np.max(np.abs(expected)))


# --- Pullbacks ---------------------------------------------------------------------------------

# Strides at which every bin of every axis stays away from the corners of the mask.
DERIVATIVES = [
    ("paper", (9,), (1.93,), None, (-1,)),
    ("paper", (12, 13), (2.11, 1.57), None, (-2, -1)),
    ("paper", (13, 12), (1.71, 3.27), 1.5, (-1, -2)),
    ("paper", (6, 7, 8), (1.63, 1.77, 2.23), 2.0, (-3, -2, -1)),
    ("paper", (11, 14), (2.37,), 3.0, (-2, -1)),
    ("nominal", (16, 13), (1.63, 1.41), None, (-2, -1)),
    ("nominal", (14, 8), (2.43,), 0.4, (-2, -1)),
    ("nominal", (15,), (2.13,), 1.0, (-1,)),
]


def by_convention(function):
    function = pytest.mark.parametrize("method", ENGINES)(function)
    names = ("convention", "shape", "strides", "smoothness", "axes")
    return pytest.mark.parametrize(names, DERIVATIVES)(function)


@by_convention
def test_dx_against_differences(convention, shape, strides, smoothness, axes, method):
    options = {"axes": axes, "smoothness": smoothness, "convention": convention, "method": method}
    x = random(*shape, 2) if axes[0] < -2 else random(2, *shape)
    options["axes"] = axes if axes[0] >= -2 else (0, 1, 2)
    sizes = [max(2, 2 * x.shape[axis] // 3) for axis in options["axes"]]
    for varied in ({}, {"norm": "backward", "sizes": sizes}):
        y, pullback = ds.diff_stride_with_pullback(x, strides, **options, **varied)
        assert y.size < x.size or not varied
        assert_dx_is_the_adjoint(
            lambda at, varied=varied: ds.diff_stride(at, strides, **options, **varied),
            pullback,
            x,
            random(*y.shape, seed=1),
        )


@by_convention
def test_dstrides_against_differences(convention, shape, strides, smoothness, axes, method):
    sizes = [shape[axis] for axis in axes]
    for j, size in enumerate(sizes):
        v, _ = oracle.ramp(
            size,
            strides[j % len(strides)],
            smoothness=smoothness,
            last=j == len(axes) - 1,
            convention=convention,
        )
        assert min(np.min(np.abs(v)), np.min(np.abs(v - 1))) > 2 * oracle.TIE
    x = random(3, *shape)
    options = {"axes": axes, "smoothness": smoothness, "convention": convention}
    natural = ds.output_sizes(x.shape, strides, **options)
    options["method"] = method
    cropped = [9 * size // 10 for size in sizes]
    for norm, chosen in (("forward", natural), ("ortho", cropped), ("backward", cropped)):
        options |= {"norm": norm, "sizes": chosen}
        y, pullback = ds.diff_stride_with_pullback(x, strides, **options)
        g = random(*y.shape, seed=1)
        _, dstrides = pullback(g)
        assert dstrides.shape == (len(strides),)
        bound = oracle.diff_stride(x, strides, g, **without_method(options)).bound
        for j in range(len(strides)):
            there, back = (
                np.array(strides) + sign * STEP * np.eye(len(strides))[j] for sign in (1, -1)
            )
            change = ds.diff_stride(x, there, **options) - ds.diff_stride(x, back, **options)
            assert abs(dstrides[j] - np.sum(g * change) / (2 * STEP)) <= 1e-8 * bound[j]
        assert np.any(np.abs(dstrides) > 1e-4 * bound)


def without_method(options):
    return {key: value for key, value in options.items() if key != "method"}


@pytest.mark.parametrize("norm", ["forward", "ortho", "backward"])
@pytest.mark.parametrize("sizes", [(6, 9), (7, 4), (12, 12), (8, 7)])
def test_spectral_resize_pullback_against_differences(sizes, norm):
    x = random(2, 8, 7)
    y, pullback = ds.spectral_resize_with_pullback(x, sizes, norm=norm)
    assert y.shape == (2, *sizes)
    assert_dx_is_the_adjoint(
        lambda at: ds.spectral_resize(at, sizes, norm=norm),
        pullback,
        x,
        random(*y.shape, seed=1),
    )


@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
@pytest.mark.parametrize("strides", [(2.0, 1.4), 3.0, 1.0])
def test_spectral_pool_pullback_against_differences(convention, strides):
    x = random(2, 9, 8)
    y, pullback = ds.spectral_pool_with_pullback(x, strides, convention=convention)
    assert len(pullback(y)) == 1  # the strides are fixed
    assert_dx_is_the_adjoint(
        lambda at: ds.spectral_pool(at, strides, convention=convention),
        pullback,
        x,
        random(*y.shape, seed=1),
    )


def test_tensorflow_dx_against_differences():
    x = random(9, 8)
    y, pullback = ds.diff_stride_with_pullback(x, (2.0, 1.4), convention="tensorflow")
    assert_dx_is_the_adjoint(
        lambda at: ds.diff_stride(at, (2.0, 1.4), convention="tensorflow"),
        pullback,
        x,
        random(*y.shape, seed=1),
    )


def test_complexity_pullback_against_differences():
    layers = [np.array([2.0, 2.5]), np.array([1.5]), np.array(3.0), np.array([1.2, 3.0, 2.0])]
    value, pullback = ds.complexity_with_pullback(layers)
    assert value.shape == ()
    expected = 1 / 5 + 1 / 7.5 + 1 / 22.5 + 1 / 162
    assert value == pytest.approx(expected, rel=1e-15)
    gradients = pullback(np.array(-1.5))
    for i, (layer, gradient) in enumerate(zip(layers, gradients, strict=True)):
        assert gradient.shape == layer.shape
        for index in np.ndindex(layer.shape):
            values = []
            for sign in (1, -1):
                moved = [other.copy() for other in layers]
                moved[i][index] += sign * STEP
                values.append(ds.complexity(moved))
            estimate = -1.5 * (values[0] - values[1]) / (2 * STEP)
            assert gradient[index] == pytest.approx(estimate, rel=1e-7)


def test_complexity_counts_strides_below_one_as_one_straight_through():
    for below in (0.25, -3.0):
        value, pullback = ds.complexity_with_pullback([[below, 2.0]])
        (gradient,) = pullback(np.array(1.0))
        assert value == 0.5
        np.testing.assert_allclose(gradient, [-0.5, -0.25], rtol=1e-15)


def test_pullbacks_of_a_penalty_take_what_is_computed_from_it():
    strides = np.array(2.0)
    value, pullback = ds.complexity_with_pullback([strides])
    assert type(value) is type(ds.complexity([strides])) is np.ndarray
    expected = (np.array(-0.25),)
    for g in (value, 2.0 * value, np.float64(1.0)):
        gradients = pullback(g)
        assert type(gradients[0]) is np.ndarray
        np.testing.assert_allclose(gradients, np.multiply(expected, g), rtol=1e-15)
    with pytest.raises(ValueError, match="g must have the output's shape"):
        pullback(np.float32(1.0))


@pytest.mark.parametrize("method", ENGINES)
def test_pullback_can_be_called_again(method):
    x = random(2, 12, 13)
    y, pullback = ds.diff_stride_with_pullback(x, (2.0, 1.3), method=method)
    g = random(*y.shape, seed=1)
    first = [gradient.copy() for gradient in pullback(g)]
    for gradient in pullback(-2.0 * g):
        gradient *= 0
    for again, before in zip(pullback(g), first, strict=True):
        np.testing.assert_array_equal(again, before)


@pytest.mark.parametrize(
    ("function", "arguments"),
    [
        (ds.diff_stride_with_pullback, (2.0,)),
        (ds.spectral_resize_with_pullback, ((6, 6),)),
        (ds.spectral_pool_with_pullback, (2.0,)),
    ],
)
def test_pullback_checks_its_cotangent(function, arguments):
    y, pullback = function(random(2, 12, 13).astype(np.float32), *arguments)
    allowed = (
        rf"^g must have the output's shape \(2, {y.shape[1]}, {y.shape[2]}\) and dtype float32, "
    )
    for wrong, found in (
        (y[0], rf"got \({y.shape[1]}, {y.shape[2]}\) and float32"),
        (y[:1], r"got \(1, .*\) and float32"),
        (y.astype(np.float64), r"got \(2, .*\) and float64"),
        (y.astype(np.int64), r"got \(2, .*\) and int64"),
        (y.tolist(), "got list and None"),
        (1.0, "got float and None"),
        (None, "got NoneType and None"),
    ):
        with pytest.raises(ValueError, match=allowed + found):
            pullback(wrong)
    pullback(y)


# --- Arrays of any dtype and layout ------------------------------------------------------------


HALF_CASES = [case for case in all_cases() if is_posed(case, "float16")][::5]


# A long axis takes half a minute.
@pytest.mark.parametrize(
    "case",
    quick_where(lambda i: not HALF_CASES[i].name.startswith("long"), HALF_CASES),
    ids=lambda case: case.name,
)
def test_half_precision(case):
    assert run_case(registry.get("numpy"), case, "float16")


@pytest.mark.parametrize("strides", [2.0, (2.0, 1.5), np.float32([2.0, 1.5]), np.array(2.0)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_dtypes_and_shapes_of_gradients(dtype, strides):
    x = random(2, 20, 24).astype(dtype)
    for method in ENGINES:
        y, pullback = ds.diff_stride_with_pullback(x, strides, method=method)
        dx, dstrides = pullback(y)
        assert y.dtype == dx.dtype == dtype
        assert dx.shape == x.shape
        array = np.asarray(strides)
        assert dstrides.dtype == array.dtype
        assert dstrides.shape == array.shape


def layouts(x):
    """Yield arrays equal to `x` that NumPy stores in other ways."""
    yield "fortran", np.asfortranarray(x)
    yield "transposed", np.ascontiguousarray(x.T).T
    yield "reversed", x[:, ::-1, ::-1].copy()[:, ::-1, ::-1]
    wide = np.zeros((x.shape[0], 2 * x.shape[1], 3 * x.shape[2]), x.dtype)
    wide[:, ::2, ::3] = x
    yield "strided", wide[:, ::2, ::3]
    yield (
        "unaligned",
        np.frombuffer(b"\0" + x.tobytes(), dtype=np.uint8)[1:].view(x.dtype).reshape(x.shape),
    )
    locked = x.copy()
    locked.flags.writeable = False
    yield "read-only", locked


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layouts(method, dtype):
    x, strides = random(3, 12, 17).astype(dtype), np.array([2.0, 1.4])
    y, pullback = ds.diff_stride_with_pullback(x, strides, method=method)
    g = random(*y.shape, seed=1).astype(dtype)
    expected = y, *pullback(g)
    tolerance = 1e-13 if dtype == np.float64 else 1e-5
    for name, same in layouts(x):
        np.testing.assert_array_equal(same, x)
        y, pullback = ds.diff_stride_with_pullback(same, strides, method=method)
        found = y, *pullback(np.asfortranarray(g))
        for array, reference in zip(found, expected, strict=True):
            assert array.dtype == reference.dtype
            atol = tolerance * np.max(np.abs(reference))
            np.testing.assert_allclose(array, reference, rtol=0, atol=atol, err_msg=name)
        np.testing.assert_array_equal(same, x)
        assert name != "read-only" or not same.flags.writeable


@pytest.mark.parametrize("method", ENGINES)
def test_read_only_strides(method):
    strides = np.array([2.0, 1.4])
    strides.flags.writeable = False
    y, pullback = ds.diff_stride_with_pullback(random(12, 17), strides, method=method)
    _, dstrides = pullback(y)
    dstrides -= 1.0
    assert strides.tolist() == [2.0, 1.4]


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("convention", CLEAN)
def test_no_batch_dimension(convention, method):
    x = random(4, 33)
    for axes, strides in (((-1,), 2.0), ((-2, -1), (1.3, 2.0)), ((0, 1), (1.3, 2.0))):
        options = {"axes": axes, "convention": convention, "method": method}
        array = x[0] if len(axes) == 1 else x
        y, pullback = ds.diff_stride_with_pullback(array, strides, **options)
        reference = oracle.diff_stride(array, strides, y, **without_method(options))
        dx, dstrides = pullback(y)
        np.testing.assert_allclose(y, reference.output, rtol=0, atol=1e-13)
        np.testing.assert_allclose(dx, reference.dx, rtol=0, atol=1e-13)
        np.testing.assert_allclose(dstrides, reference.dstrides, rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("batch", [(0,), (3, 0), (0, 2)])
def test_empty_batch(batch, method):
    x = np.zeros((*batch, 12, 17), np.float32)
    y, pullback = ds.diff_stride_with_pullback(x, (2.0, 1.4), method=method)
    assert y.shape == (*batch, *ds.output_sizes(x.shape, (2.0, 1.4)))
    dx, dstrides = pullback(y)
    assert y.dtype == dx.dtype == np.float32
    assert dx.shape == x.shape
    assert dstrides.tolist() == [0.0, 0.0]
    assert ds.spectral_resize(x, (5, 600)).shape == (*batch, 5, 600)
    assert ds.spectral_pool(x, 2.0).shape == (*batch, 6, 8)
    middle = np.zeros((12, *batch, 17))
    y, pullback = ds.diff_stride_with_pullback(middle, 2.0, axes=(0, -1), method=method)
    assert pullback(y)[0].shape == middle.shape


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_inputs_are_never_modified(method, dtype):
    x, strides = random(2, 12, 17).astype(dtype), np.array([0.3, 50.0])
    for call in (
        lambda: ds.diff_stride_with_pullback(x, strides, method=method),
        lambda: ds.diff_stride_with_pullback(x, strides, limits=None, sizes=(12, 17)),
        lambda: ds.diff_stride_with_pullback(x, strides, convention="tensorflow"),
        lambda: ds.diff_stride_with_pullback(x, strides, cropping=False, norm="backward"),
        lambda: ds.spectral_resize_with_pullback(x, (12, 17)),
        lambda: ds.spectral_resize_with_pullback(x, (24, 30)),
        lambda: ds.spectral_pool_with_pullback(x, 1.0),
    ):
        before = x.copy(), strides.copy()
        y, pullback = call()
        assert not np.shares_memory(y, x)
        g = y.copy()
        for gradient in pullback(g):
            assert not any(np.shares_memory(gradient, other) for other in (x, g, strides))
        np.testing.assert_array_equal(g, y)
        y += 1  # the caller's own
        np.testing.assert_array_equal(x, before[0])
        np.testing.assert_array_equal(strides, before[1])


# --- The layer ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [2.0, [2.0], [1.4, 2.6], (2, 3), np.float32([2.5, 1.5])])
@pytest.mark.parametrize("convention", ["paper", "nominal", "tensorflow"])
def test_layer_is_the_function(convention, stride):
    options = {"convention": convention, "norm": "ortho", "limits": (1.2, None)}
    layer = ds.DiffStride(stride, shared=np.size(stride) == 1, **options)
    assert layer.strides.dtype == np.float64
    assert layer.strides.shape == (np.size(stride),)
    np.testing.assert_array_equal(layer.strides, np.ravel(stride))
    for seed, shape in enumerate(((2, 20, 24), (17, 20), (2, 3, 20, 24), (2, 20, 24))):
        x = random(*shape, seed=seed)
        y = layer.forward(x)
        expected, pullback = ds.diff_stride_with_pullback(x, layer.strides, **options)
        np.testing.assert_array_equal(y, expected)
        assert layer.output_sizes(shape) == y.shape[-2:]
        assert layer.output_sizes(shape) == ds.output_sizes(
            shape, layer.strides, limits=(1.2, None), convention=convention
        )
        for found, gradient in zip(layer.backward(y), pullback(y), strict=True):
            np.testing.assert_array_equal(found, gradient)


def test_layer_hands_every_option_on():
    x = random(9, 30)
    for options in (
        {"axes": -1},
        {"axes": (0, 1), "smoothness": 0.6},
        {"limits": None},
        {"cropping": False},
        {"norm": "backward"},
        {"convention": "paper"},
        {"method": "fft"},
    ):
        y = ds.DiffStride(2.0, **options).forward(x)
        np.testing.assert_array_equal(y, ds.diff_stride(x, 2.0, **options))


def test_backward_before_forward():
    layer = ds.DiffStride(2.0)
    with pytest.raises(RuntimeError, match="backward was called before forward"):
        layer.backward(np.zeros((20, 20)))


def test_backward_checks_its_cotangent_and_can_be_called_again():
    layer = ds.DiffStride([2.0, 1.5])
    y = layer.forward(random(20, 24))
    for wrong in (y[:-1], y.astype(np.float32)):
        with pytest.raises(ValueError, match=r"^g must have the output's shape"):
            layer.backward(wrong)
    for first, second in zip(layer.backward(y), layer.backward(y), strict=True):
        np.testing.assert_array_equal(first, second)


def test_backward_uses_the_strides_of_the_forward_pass():
    x = random(20, 24)
    layer = ds.DiffStride([2.0, 1.5])
    y = layer.forward(x)
    expected = [gradient.copy() for gradient in layer.backward(y)]
    layer.strides -= 0.3
    layer.output_sizes((40, 40))
    layer.project()
    for found, gradient in zip(layer.backward(y), expected, strict=True):
        np.testing.assert_array_equal(found, gradient)
    assert layer.forward(x).shape != y.shape


def test_changed_strides_are_noticed_in_place_and_replaced():
    x = random(64, 64)
    layer = ds.DiffStride([2.0, 2.0])
    layer.forward(x)
    layer.strides[1] = 4.0
    np.testing.assert_array_equal(layer.forward(x), ds.diff_stride(x, (2.0, 4.0)))
    layer.strides = np.array([3.0, 1.7])
    assert layer.output_sizes(x.shape) == ds.output_sizes(x.shape, (3.0, 1.7))


@pytest.mark.parametrize(("convention", "lower"), [("paper", 32 / 28), ("nominal", 1.0)])
def test_drifted_strides_are_bounded_and_left_alone(convention, lower):
    x = random(32, 20)
    layer = ds.DiffStride([2.0, 2.0], convention=convention)
    layer.strides[:] = [-3.0, 400.0]
    y = layer.forward(x)
    np.testing.assert_array_equal(y, ds.diff_stride(x, (lower, 10.0), convention=convention))
    _, dstrides = layer.backward(y)
    assert layer.strides.tolist() == [-3.0, 400.0]
    # Straight through: the derivative at the bounded value, not 0.
    assert np.all(dstrides != 0)
    expected = oracle.diff_stride(x, (lower, 10.0), y, convention=convention).dstrides
    np.testing.assert_allclose(dstrides, expected, rtol=1e-10)


@pytest.mark.parametrize("method", ENGINES)
@pytest.mark.parametrize(("stride", "step"), [(16.0, -STEP), (1.0, STEP)])
def test_strides_at_either_bound_have_the_slope_of_the_loss_inwards(stride, step, method):
    # N = 32: at S = 16 bin 1 alone is on the ramp, at S = 1 the bins 13 to 16.
    x, g = random(5, 32), random(5, 32, seed=1)

    def loss(stride):
        y = ds.diff_stride(x, stride, axes=-1, method=method)
        size = ds.output_sizes(x.shape, stride, axes=-1)
        return np.sum(g * ds.spectral_resize(y, 32, axes=-1)), size

    (there, size), (here, size_there) = loss(stride + step), loss(stride)
    assert size == size_there == ((2,) if stride == 16 else (32,))
    y, pullback = ds.diff_stride_with_pullback(x, stride, axes=-1, method=method)
    _, resized = ds.spectral_resize_with_pullback(y, 32, axes=-1)
    _, dstride = pullback(resized(g)[0])
    assert dstride == pytest.approx((there - here) / step, rel=1e-4)
    assert abs(dstride) > 1e-2


def test_project_uses_the_bounds_of_all_sizes_seen_since_it_was_called():
    layer = ds.DiffStride([2.0, 2.0], limits=(None, 12.0), convention="paper")
    strides = layer.strides
    layer.strides[:] = [0.5, 400.0]
    layer.project()
    assert layer.strides.tolist() == [1.0, 12.0]
    layer.forward(random(32, 20))
    layer.output_sizes((16, 64))
    layer.strides[:] = [0.5, 400.0]
    layer.project()
    assert layer.strides.tolist() == [16 / 12, 10.0]
    layer.strides[:] = [2.5, 3.5]
    layer.project()
    assert layer.strides.tolist() == [2.5, 3.5]
    layer.strides[:] = [0.5, 400.0]
    layer.project()  # No other size has been seen.
    assert layer.strides.tolist() == [16 / 12, 10.0]
    layer.forward(random(64, 20))
    layer.strides[:] = [0.5, 400.0]
    layer.project()
    assert layer.strides.tolist() == [64 / 60, 10.0]
    assert layer.strides is strides

    shared = ds.DiffStride(2.0, shared=True, convention="paper")
    shared.forward(random(32, 20))
    for value, expected in ((0.5, 20 / 16), (400.0, 10.0)):
        shared.strides[:] = value
        shared.project()
        assert shared.strides.tolist() == [expected]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_strides_that_are_not_finite(value):
    x = random(32, 20)
    layer = ds.DiffStride([2.0, 2.0])
    for _ in range(2):
        layer.strides[1] = value
        for call in (lambda: layer.forward(x), lambda: layer.output_sizes(x.shape)):
            with pytest.raises(ValueError, match=rf"^strides must be finite, got \(2.0, {value}\)"):
                call()
        layer.strides[1] = 1.5
        np.testing.assert_array_equal(layer.forward(x), ds.diff_stride(x, (2.0, 1.5)))
    layer.strides[1] = value
    with pytest.raises(ValueError, match="strides must be finite"):
        layer.project()


@pytest.mark.parametrize(
    ("stride", "options", "error", "message"),
    [
        (0.999, {}, ValueError, "stride must be at least 1, got (0.999,)"),
        ([2.0, 0.5], {}, ValueError, "stride must be at least 1, got (2.0, 0.5)"),
        (np.nan, {}, ValueError, "stride must be finite, got (nan,)"),
        ([2.0] * 3, {}, ValueError, "2 or 1 for 2 axes, got 3"),
        ([], {}, ValueError, "stride must have at least one entry"),
        ([[2.0, 2.0]], {}, ValueError, "stride must have at most 1 dimension, got 2"),
        ("2", {}, TypeError, "stride must be real numbers or an array, got '2'"),
        (True, {}, TypeError, "stride must be real numbers or an array, got True"),
        (np.float16([2.0]), {}, TypeError, "stride must be float32 or float64, got dtype float16"),
        (2.0, {"axes": ()}, ValueError, "axes must have at least one entry"),
        (2.0, {"smoothness": 0.0}, ValueError, "smoothness must be"),
        (2.0, {"limits": (3.0, 2.0)}, ValueError, "limits must have lower <= upper"),
        (2.0, {"cropping": 1}, TypeError, "cropping must be True or False"),
        (2.0, {"norm": "other"}, ValueError, "norm must be one of"),
        (2.0, {"convention": "other"}, ValueError, "convention must be one of"),
        (2.0, {"method": "other"}, ValueError, "method must be one of"),
        (2.0, {"method": "fft", "convention": "tensorflow"}, ValueError, "method must be"),
    ],
)
def test_layer_refuses_wrong_arguments_when_made(stride, options, error, message):
    with pytest.raises(error) as caught:
        ds.DiffStride(stride, **options)
    assert caught.type is error
    assert message in str(caught.value)


def test_layer_refuses_wrong_inputs():
    layer = ds.DiffStride(2.0)
    for wrong, message in (
        ([[1.0]], "x must be a numpy.ndarray, got list"),
        (
            np.ones((20, 20), int),
            "x must be real floating point, one of float16, float32, float64, got dtype int64",
        ),
    ):
        with pytest.raises(TypeError, match=message):
            layer.forward(wrong)
    with pytest.raises(ValueError, match="axes must lie between"):
        layer.forward(np.ones(20))
    with pytest.raises(RuntimeError):
        layer.backward(np.ones((20, 20)))


def test_strides_of_a_layer_are_checked_before_they_are_written_down():
    layer = ds.DiffStride(2.0)
    for strides in ([2.0, 2.0], np.ma.array([2.0, 3.0], mask=[False, True])):
        layer.strides = strides
        with pytest.raises(TypeError, match="strides must be"):
            layer.to_dict()


def test_layer_warns_where_nothing_can_be_cropped():
    with pytest.warns(NothingToCropWarning, match="axis -2 of size 8"):
        ds.DiffStride(2.0, convention="paper").forward(np.ones((8, 32)))


def test_a_warning_names_the_place_of_the_call():
    x, options = np.ones((8, 32)), {"convention": "paper"}
    layer = ds.DiffStride(2.0, **options)
    for call in (
        lambda: ds.diff_stride(x, 2.0, **options),
        lambda: ds.diff_stride_with_pullback(x, 2.0, **options),
        lambda: ds.output_sizes(x.shape, 2.0, **options),
        lambda: layer.forward(x),
        lambda: ds.DiffStride(2.0, **options).output_sizes(x.shape),
    ):
        with pytest.warns(NothingToCropWarning) as caught:
            call()
        assert [warning.filename for warning in caught] == [__file__]


def test_repr():
    assert repr(ds.DiffStride(2)) == "DiffStride([2, 2], convention='nominal', smoothness=0.25)"
    layer = ds.DiffStride([2.0, 1.5], convention="paper")
    layer.strides[:] = [1.23456789, 3.0]
    assert repr(layer) == "DiffStride([1.235, 3], convention='paper', smoothness=4)"


@pytest.mark.parametrize("convention", CLEAN)
@pytest.mark.parametrize(("start", "end"), [([1.6, 2.6], [2.3, 1.9]), ([2.6, 1.3], [1.5, 1.7])])
def test_strides_are_learnt(convention, start, end):
    # Without cropping the loss is smooth: the strides must find those that made the target.
    rng = np.random.default_rng(8)
    x = rng.standard_normal((4, 32, 24))
    target = ds.diff_stride(x, end, convention=convention, cropping=False)
    layer = ds.DiffStride(start, convention=convention, cropping=False)
    losses = []
    for step in range(80):
        y = layer.forward(x)
        residual = y - target
        losses.append(0.5 * np.mean(residual**2))
        _, dstrides = layer.backward(residual / residual.size)
        layer.strides -= np.clip(10 * dstrides, -0.1, 0.1) * 0.97**step
        layer.project()
    assert losses[10] < 0.2 * losses[0]
    assert losses[-1] < 1e-6 * losses[0]
    np.testing.assert_allclose(layer.strides, end, rtol=0, atol=1e-3)


def test_strides_are_learnt_while_sizes_change():
    # The energy that poor strides lose pulls them down.
    x = random(4, 32, 32)
    layer = ds.DiffStride([5.0, 4.0], norm="ortho")
    sizes, losses = [], []
    for _ in range(25):
        y = layer.forward(x)
        sizes.append(y.shape[1:])
        losses.append(-0.5 * np.sum(y**2) / x.size)
        dx, dstrides = layer.backward(-y / x.size)
        assert dx.shape == x.shape
        layer.strides -= np.clip(100 * dstrides, -0.2, 0.2)
        layer.project()
    assert losses[-1] < 2 * losses[0]
    assert sizes[-1][0] >= 2 * sizes[0][0]
    assert sizes[-1][1] >= 2 * sizes[0][1]


# --- The package -------------------------------------------------------------------------------


def test_doctests():
    failed, attempted = doctest.testmod(modules)
    assert attempted >= 6
    assert failed == 0


def test_import_stays_light():
    code = """
import sys
before = set(sys.modules)
import diffstride_numpy
print(*sorted({name.partition(".")[0] for name in set(sys.modules) - before}))
print(*(name for name in ("scipy.signal", "scipy.stats", "scipy.optimize") if name in sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    loaded, parts_of_scipy = done.stdout.split("\n")[:2]
    heavy = {"torch", "jax", "cupy", "diffstride_torch", "diffstride_conformance", "matplotlib"}
    heavy |= {"pytest", "hypothesis", "pandas", "numba", "sympy", "tensorflow"}
    assert "diffstride_core" in loaded.split()
    assert heavy & set(loaded.split()) == set()
    assert parts_of_scipy == ""


def test_public_names():
    for name in (
        "diff_stride",
        "spectral_resize",
        "spectral_pool",
        "complexity",
        "output_sizes",
        "authors_strides",
        "DiffStride",
        "NothingToCropWarning",
        "__version__",
    ):
        assert hasattr(ds, name)


def test_nan_strides_are_refused_also_where_sizes_are_given():
    x = np.ones((12, 12))
    with pytest.raises(ValueError, match=r"strides must be finite, got \(nan, 2.0\)"):
        ds.diff_stride(x, np.array([np.nan, 2.0]), sizes=(10, 10))
