"""The NumPy layer, and the package."""

import doctest
import subprocess
import sys

import diffstride_numpy as ds
import numpy as np
import pytest
from diffstride_conformance import oracle
from diffstride_numpy import modules
from support.numpy_arrays import CLEAN, ENGINES, STEP, random

from diffstride_core import NothingToCropWarning

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


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


def test_a_call_is_the_forward_pass():
    x, layer = np.random.default_rng(0).standard_normal((2, 12, 10)), ds.DiffStride(1.7)
    np.testing.assert_array_equal(layer(x), layer.forward(x))
