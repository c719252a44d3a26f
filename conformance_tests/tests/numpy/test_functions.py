"""The NumPy functions: pullbacks against differences, arrays of any layout."""

import diffstride_numpy as ds
import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance import oracle
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed
from diffstride_conformance.run import run_case
from support.amounts import quick_where
from support.numpy_arrays import CLEAN, ENGINES, STEP, random

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


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
