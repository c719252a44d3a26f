"""The reference itself: against the authors' code, against derivations."""

import math

import numpy as np
import pytest
import scipy.signal
from diffstride_conformance import oracle
from diffstride_conformance.golden import load_cases, load_trajectories

CASES = load_cases()
REGULAR = [case for case in CASES if case.special is None]
FINITE = [
    case
    for case in CASES
    if case.layer == "DiffStride" and np.all(np.isfinite(case.arrays["strides_after"]))
]
TRAJECTORIES = load_trajectories()

# What a float64 evaluation owes the float32 recording (golden/README.md).
OUTPUT_TOLERANCE = 5e-7
DX_TOLERANCE = 5e-6
DSTRIDES_TOLERANCE = 2e-7


def by_id(entry):
    return entry.id


def golden_case(case_id):
    return next(case for case in CASES if case.id == case_id)


def evaluate(case, strides=None):
    config, arrays = case.config, case.arrays
    if case.layer == "FixedSpectralPooling":
        return oracle.spectral_pool(
            arrays["x"], config.strides, arrays["g"], axes=config.axes, convention="tensorflow"
        )
    return oracle.diff_stride(
        arrays["x"],
        arrays["strides_before"] if strides is None else strides,
        arrays["g"],
        axes=config.axes,
        smoothness=config.smoothness,
        limits=config.limits,
        cropping=config.cropping,
        convention="tensorflow",
    )


def assert_reproduces(case, reference, *, terms=None):
    """Compare with the recording; `terms` stands in where the sum of terms was not recorded."""
    arrays = case.arrays
    assert reference.output.shape == arrays["y"].shape
    for recorded, computed, tolerance in (
        (arrays["y"], reference.output, OUTPUT_TOLERANCE),
        (arrays["dx"], reference.dx, DX_TOLERANCE),
    ):
        error = np.max(np.abs(recorded - computed)) / np.max(np.abs(computed))
        assert error <= tolerance
    if case.layer == "DiffStride":
        terms = case.dstrides_sum_abs_terms if terms is None else terms
        assert reference.dstrides.shape == arrays["dstrides"].shape
        error = np.abs(arrays["dstrides"] - reference.dstrides)
        assert np.all(error <= DSTRIDES_TOLERANCE * terms)
        assert np.all(np.abs(reference.dstrides) <= reference.bound)


@pytest.mark.parametrize("case", REGULAR, ids=by_id)
def test_golden_case(case):
    assert_reproduces(case, evaluate(case))


def test_special_cases_are_the_three_below():
    special = {case.id for case in CASES if case.special is not None}
    assert special == {"015_D_28x28", "082_D_8x8", "092_D_26x58"}


def test_size_decided_by_float32():
    # 28/fl(2.8) is 10.0000002, which float32 rounds to 10: a = ceil(10/2 + 4) = 9, a width of 18.
    # In float64 a tenth column would survive with a weight of 2e-8.
    case = golden_case("015_D_28x28")
    stride = float(case.arrays["strides_before"][1])
    assert 2 * math.ceil(28 / stride / 2 + 4) == 20
    reference = evaluate(case)
    assert reference.output.shape[-1] == 18
    assert_reproduces(case, reference, terms=reference.bound)


def test_infinite_stride_where_size_equals_smoothness():
    # The authors' floor is 8/(8 - 8), and their stride becomes infinite for good. The reference
    # has no floor there; at the largest float32 stride it gives what theirs gives at infinity.
    case = golden_case("082_D_8x8")
    assert np.all(np.isinf(case.arrays["strides_after"]))
    given = case.arrays["strides_before"]
    used = oracle.used_strides((8, 8), given, smoothness=8.0, convention="tensorflow")
    assert used == (2.0, 2.0)
    assert_reproduces(case, evaluate(case, strides=[oracle.FLOAT32_MAX] * 2))


def test_tie_decided_by_float32_at_the_floor():
    # At s = 26/22 row and column k sit exactly on v = 1 in exact arithmetic, and a tie passes the
    # gradient. In float32 26/fl(26/22) exceeds 22, so the value exceeds 1 and the clip blocks it.
    case = golden_case("092_D_26x58")
    floor = np.float32(26) / np.float32(22)
    assert np.float32(26) / floor > 22
    _, slope = oracle.tensorflow_mask(26, float(floor), last=False)
    assert slope[11] == 0
    assert slope[12] < 0
    assert_reproduces(case, evaluate(case))


@pytest.mark.parametrize("case", FINITE, ids=by_id)
def test_golden_strides_written_back(case):
    arrays = case.arrays
    held = oracle.tensorflow_written_back(
        arrays["x"].shape,
        arrays["strides_before"],
        axes=case.config.axes,
        smoothness=case.config.smoothness,
    )
    assert held.dtype == np.float32
    assert np.array_equal(held, arrays["strides_after"])


@pytest.mark.parametrize("trajectory", TRAJECTORIES, ids=by_id)
def test_golden_trajectory(trajectory):
    config, arrays = trajectory.config, trajectory.arrays
    x = arrays["x"]
    options = {"axes": config.axes, "smoothness": config.smoothness}
    layer = {**options, "limits": config.limits, "convention": "tensorflow"}
    lower, upper = config.limits
    strides = np.asarray(config.strides, dtype=np.float32)
    velocity = np.zeros(strides.shape)
    for step in range(trajectory.steps):
        np.testing.assert_allclose(strides, arrays["strides"][step], rtol=0, atol=2e-5)
        y = oracle.diff_stride(x, strides, **layer).output
        assert y.shape == tuple(arrays["y_shape"][step])
        sign = 1 if step < trajectory.switch else -1
        gradient = oracle.diff_stride(x, strides, sign * 2 * y / y.size, **layer).dstrides
        np.testing.assert_allclose(gradient, arrays["grad"][step], rtol=0, atol=5e-5)
        np.testing.assert_allclose(sign * np.mean(y**2), arrays["loss"][step], rtol=2e-5)

        held = oracle.tensorflow_written_back(x.shape, strides, **options)
        np.testing.assert_allclose(held, arrays["strides_after_call"][step], rtol=0, atol=2e-5)
        velocity = trajectory.momentum * velocity - trajectory.lr * gradient
        strides = np.clip(held + velocity, lower or 1.0, upper).astype(np.float32)
    np.testing.assert_allclose(strides, arrays["strides"][-1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("stride", [1.0, 1.3, 2.0, 2.7, 5.5])
@pytest.mark.parametrize("size", [2, 5, 8, 9, 16, 17, 33])
def test_tensorflow_sizes_closed_form(size, stride):
    shape = (size, size)
    R = 2.5
    (s, _) = oracle.used_strides(shape, [stride, stride], smoothness=R, convention="tensorflow")
    a = math.ceil(max(size / s, 2) / 2 + R)
    height = 2 * min(a, size // 2) if size % 2 == 0 else 2 * min(a, (size + 1) // 2) - 1
    width = 2 * min(a, size // 2)
    sizes = oracle.output_sizes(shape, [stride, stride], smoothness=R, convention="tensorflow")
    assert sizes == (height, width)


def test_tensorflow_is_for_images():
    with pytest.raises(ValueError, match="images"):
        oracle.diff_stride(np.ones(8), 2.0, axes=(-1,), convention="tensorflow")


# Strides away from ties: every bin's v and v - 1 stay further than tau from 0, and the nominal
# rho q further than 1e-3 from 1, see the assertions. Ramps both wide and narrow, sizes both even
# and odd.
DERIVATIVE_CASES = [
    ("paper", (17,), (1.93,), None, (-1,)),
    ("paper", (32, 31), (2.11, 1.57), None, (-2, -1)),
    ("paper", (31, 32), (1.71, 3.27), 1.5, (-1, -2)),
    ("paper", (12, 13, 10), (1.63, 1.77, 2.23), 2.0, (-3, -2, -1)),
    ("paper", (19, 24), (2.37,), 3.0, (-2, -1)),
    ("nominal", (64, 33), (1.66, 1.41), None, (-2, -1)),
    ("nominal", (12, 9), (2.23, 3.31), None, (-2, -1)),
    ("nominal", (40, 8), (2.43,), 0.4, (-1, -2)),
    ("nominal", (15,), (2.13,), 1.0, (-1,)),
    ("nominal", (7, 60, 3), (1.81, 1.37, 1.21), 0.05, (-3, -2, -1)),
]


def check_away_from_ties(sizes, strides, *, smoothness, convention):
    per_axis = np.broadcast_to(strides, len(sizes))
    for j, (size, stride) in enumerate(zip(sizes, per_axis, strict=True)):
        v, _ = oracle.ramp(
            size,
            stride,
            smoothness=smoothness,
            last=j == len(sizes) - 1,
            convention=convention,
        )
        assert min(np.min(np.abs(v)), np.min(np.abs(v - 1))) > 2 * oracle.TIE
        if convention == "nominal":
            rho = oracle.DEFAULT_SMOOTHNESS[convention] if smoothness is None else smoothness
            assert abs(rho * size / (2 * stride) - 1) > 1e-3


@pytest.mark.parametrize("norm", ["forward", "ortho", "backward"])
@pytest.mark.parametrize(("convention", "shape", "strides", "smoothness", "axes"), DERIVATIVE_CASES)
def test_stride_derivative_against_central_differences(
    convention, shape, strides, smoothness, axes, norm
):
    rng = np.random.default_rng(7)
    x = rng.standard_normal((2, *shape))
    options = {"axes": axes, "smoothness": smoothness, "convention": convention}
    check_away_from_ties(
        [x.shape[axis] for axis in axes], strides, smoothness=smoothness, convention=convention
    )
    sizes = oracle.output_sizes(x.shape, strides, **options)
    options |= {"sizes": sizes, "norm": norm}
    g = rng.standard_normal(oracle.diff_stride(x, strides, **options).output.shape)
    reference = oracle.diff_stride(x, strides, g, **options)
    assert np.all(np.abs(reference.dstrides) <= reference.bound)
    assert np.all(reference.bound > 0)

    step = 1e-6
    for j in range(len(strides)):
        there = np.asarray(strides, dtype=float)
        back = there.copy()
        there[j] += step
        back[j] -= step
        change = (
            oracle.diff_stride(x, there, **options).output
            - oracle.diff_stride(x, back, **options).output
        )
        estimate = np.sum(g * change) / (2 * step)
        assert abs(estimate - reference.dstrides[j]) <= 1e-8 * reference.bound[j]


@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize("strides", [(2.11, 1.57), (2.43,)])
@pytest.mark.parametrize("shape", [(32, 31), (31, 32)])
def test_tensorflow_stride_derivative_against_central_differences(shape, strides, cropping):
    rng = np.random.default_rng(8)
    x = rng.standard_normal((2, *shape))
    options = {"cropping": cropping, "convention": "tensorflow"}
    g = rng.standard_normal(oracle.diff_stride(x, strides, **options).output.shape)
    reference = oracle.diff_stride(x, strides, g, **options)
    step = 2.0**-9  # large because the mask is evaluated in float32
    for j in range(len(strides)):
        there = np.asarray(strides, dtype=float)
        back = there.copy()
        there[j] += step
        back[j] -= step
        change = (
            oracle.diff_stride(x, there, **options).output
            - oracle.diff_stride(x, back, **options).output
        )
        estimate = np.sum(g * change) / (2 * step)
        assert abs(estimate - reference.dstrides[j]) <= 1e-5 * reference.bound[j]


@pytest.mark.parametrize("convention", ["nominal", "paper", "tensorflow"])
@pytest.mark.parametrize("operator", ["diff_stride", "spectral_pool", "spectral_resize"])
def test_dx_is_the_adjoint(operator, convention):
    # The operators are linear in x, so <g, L x> = <dx, x> for every x, and dx is independent of x.
    rng = np.random.default_rng(9)
    x, other = rng.standard_normal((2, 3, 16, 13))
    axes = (0, 2) if convention == "nominal" else (2, 1)

    def apply(x, cotangent=None):
        if operator == "spectral_resize":
            return oracle.spectral_resize(x, (5, 18), cotangent, axes=axes)
        function = getattr(oracle, operator)
        return function(x, (1.4, 1.9), cotangent, axes=axes, convention=convention)

    g = rng.standard_normal(apply(x).output.shape)
    reference = apply(x, g)
    for array in (x, other):
        product = np.sum(g * apply(array).output)
        scale = np.linalg.norm(g) * np.linalg.norm(array)
        assert abs(product - np.sum(reference.dx * array)) <= 1e-14 * scale
    np.testing.assert_array_equal(reference.dx, apply(other, g).dx)


# (shape of x, weight, strides, options): dilated and grouped, one tap and more than the map holds.
CONVOLUTIONS = [
    ((2, 3, 17), (4, 3, 5), (1.93,), {}),
    ((3, 13), (2, 3, 3), (1.63,), {"padding_mode": "circular", "dilation": 3}),
    (
        (2, 4, 9, 10),
        (6, 2, 3, 1),
        (1.63, 1.77),
        {"groups": 2, "smoothness": 2.0, "convention": "paper"},
    ),
    (
        (2, 9, 10, 2),
        (2, 1, 3, 3),
        (1.63,),
        {"groups": 2, "channels_last": True, "smoothness": 0.7},
    ),
    (
        (2, 1, 2, 12, 9),
        (3, 2, 1, 3),
        (2.23, 3.31),
        {"dilation": (1, 5), "convention": "nominal"},
    ),
    (
        (7, 8, 6, 2),
        (2, 1, 1, 3, 3),
        (1.63, 1.77, 2.23),
        {
            "padding_mode": "circular", "channels_last": True, "dilation": (1, 2, 1), "groups": 2,
            "smoothness": 2.0, "norm": "ortho", "convention": "paper",
        },
    ),
]  # fmt: skip
over_convolutions = pytest.mark.parametrize(
    ("shape", "weight_shape", "strides", "options"), CONVOLUTIONS
)


def axes_of_convolution(weight_shape, options):
    rank = len(weight_shape) - 2
    last = options.get("channels_last", False)
    return tuple(range(-rank - last, -int(last)))


@over_convolutions
def test_convolution_against_scipy(shape, weight_shape, strides, options):
    rng = np.random.default_rng(10)
    x, weight = rng.standard_normal(shape), rng.standard_normal(weight_shape)
    bias = rng.standard_normal(weight_shape[0])
    axes = axes_of_convolution(weight_shape, options)
    channel_axis = -1 if options.get("channels_last") else axes[0] - 1
    dilation = np.broadcast_to(options.get("dilation", 1), len(axes))
    reached = (np.array(weight_shape[2:]) - 1) * dilation + 1
    spread = np.zeros((*weight_shape[:2], *reached))
    spread[:, :, *(slice(None, None, d) for d in dilation)] = weight
    reach = [(0, 0)] * (x.ndim - 1 - len(axes)) + [(k // 2, k // 2) for k in reached]
    mode = "wrap" if options.get("padding_mode") == "circular" else "constant"
    channels = [np.pad(channel, reach, mode) for channel in np.moveaxis(x, channel_axis, 0)]
    per_group = weight_shape[0] // options.get("groups", 1)
    y = []
    for o, kernels in enumerate(spread):
        first = o // per_group * len(kernels)
        seen = channels[first : first + len(kernels)]
        one = (1,) * (x.ndim - 1 - len(axes))
        y.append(
            bias[o]
            + sum(
                scipy.signal.correlate(channel, kernel.reshape(one + kernel.shape), "valid")
                for channel, kernel in zip(seen, kernels, strict=True)
            )
        )
    resize = {key: options[key] for key in options if key in ("smoothness", "convention", "norm")}
    expected = oracle.diff_stride(np.stack(y, axis=channel_axis), strides, axes=axes, **resize)
    found = oracle.conv_diff_stride(x, weight, strides, bias=bias, **options).output
    scale = np.max(np.abs(expected.output))
    np.testing.assert_allclose(found, expected.output, rtol=0, atol=1e-14 * scale)


@over_convolutions
def test_convolution_derivatives_against_differences(shape, weight_shape, strides, options):
    rng = np.random.default_rng(11)
    strides = np.asarray(strides)
    axes = axes_of_convolution(weight_shape, options)
    check_away_from_ties(
        [shape[axis] for axis in axes],
        strides,
        smoothness=options.get("smoothness"),
        convention=options.get("convention", "nominal"),
    )
    arrays = {
        "x": rng.standard_normal(shape),
        "weight": rng.standard_normal(weight_shape),
        "strides": strides,
        "bias": rng.standard_normal(weight_shape[0]),
    }
    output = oracle.conv_diff_stride(**arrays, **options).output
    options = {**options, "sizes": [output.shape[axis] for axis in axes]}
    g = rng.standard_normal(output.shape)
    reference = oracle.conv_diff_stride(**arrays, cotangent=g, **options)
    assert np.all(np.abs(reference.dstrides) <= reference.bound)
    np.testing.assert_array_equal(reference.output, output)

    def change(name, index, step):
        """Return how <g, y> changes with an entry of an array, by central differences."""
        products = []
        for sign in (1, -1):
            varied = arrays[name].copy()
            varied[index] += sign * step
            y = oracle.conv_diff_stride(**{**arrays, name: varied}, **options).output
            products.append(np.sum(g * y))
        return (products[0] - products[1]) / (2 * step)

    for name in ("x", "weight", "bias"):
        gradient = getattr(reference, f"d{name}")
        assert gradient.shape == arrays[name].shape
        every = list(np.ndindex(gradient.shape))
        for index in every[:: len(every) // 40 + 1]:  # linear in each, so that any step is exact
            assert change(name, index, 0.5) == pytest.approx(gradient[index], rel=0, abs=1e-11)
    for j in range(strides.size):
        error = change("strides", j, 1e-6) - reference.dstrides[j]
        assert abs(error) <= 1e-8 * reference.bound[j]


def test_convolution_of_one_tap_without_a_bias():
    x = np.random.default_rng(12).standard_normal((3, 2, 16))
    weight = np.array([[[2.0], [-1.0]]])
    reference = oracle.conv_diff_stride(x, weight, 1.9)
    expected = oracle.diff_stride(2 * x[:, :1] - x[:, 1:], 1.9, axes=(-1,))
    np.testing.assert_allclose(reference.output, expected.output, rtol=0, atol=1e-14)
    assert reference.dx is reference.dweight is reference.dbias is None
    g = np.ones_like(reference.output)
    assert oracle.conv_diff_stride(x, weight, 1.9, g).dbias is None


def test_derivative_on_ties_is_the_right_hand_one():
    # N = 32, S = 2, R = 4: bin 8 sits on v = 1 and bin 12 on v = 0 of a full axis.
    mu, dmu = oracle.mask(32, 2.0, smoothness=4.0, convention="paper")
    assert mu[8] == 1
    assert dmu[8] == -32 / (2 * 4 * 2**2)
    assert mu[12] == 0
    assert dmu[12] == 0
    # The same verdict on the bins just beside the corners, where rounding may put them.
    for stride in (2.0 - 1e-6, 2.0 + 1e-6):
        _, dmu = oracle.mask(32, stride, smoothness=4.0, convention="paper")
        assert np.flatnonzero(dmu).tolist() == [8, 9, 10, 11]


# (N, S, rho, the bins with a derivative, the bin on a corner): on v = 1 it is the first of them.
NOMINAL_TIES = [
    (24, 2.0, 0.25, [5, 6], 5),
    (24, 1.2, 0.25, [8, 9, 10], 8),
    (25, 2.0, 0.6, [3, 4, 5, 6], 3),
    (60, 1.0, 0.05, [29, 30], 29),
    (14, 2.0, 0.25, [3], 3),
    (7, 1.0, 0.25, [3], 3),
    (22, 2.0, 0.25, [5], 6),
    (21, 1.4, 0.25, [7], 8),
    (33, 3.0, 1.0, [1, 2, 3, 4, 5], 6),
    (14, 2.0, 0.25, [3], 4),
]


@pytest.mark.parametrize(("size", "stride", "rho", "alive", "tied"), NOMINAL_TIES)
def test_derivative_on_ties_of_the_nominal_window(size, stride, rho, alive, tied):
    corner = 1.0 if tied == alive[0] else 0.0
    for near in (stride, float(np.float32(stride)), stride - 1e-6, stride + 1e-6):
        v, dv = oracle.ramp(size, near, smoothness=rho)
        assert v[tied] == pytest.approx(corner, abs=oracle.TIE / 2)
        mu, dmu = oracle.mask(size, near, smoothness=rho)
        assert mu[tied] == pytest.approx(corner, abs=oracle.TIE / 2)
        assert np.flatnonzero(dmu).tolist() == alive
        np.testing.assert_array_equal(dmu[alive], dv[alive])


@pytest.mark.parametrize(
    ("size", "stride", "rho"),
    [(8, 1.0, 0.25), (16, 2.0, 0.25), (32, 4.0, 0.25), (7, 2.1, 0.6), (44, 1.1, 0.05), (12, 6, 1)],
)
def test_derivative_is_the_wide_one_where_the_ramp_is_one_bin_wide(size, stride, rho):
    k = np.arange(size // 2 + 1)
    for near in (stride, float(np.float32(stride)), stride * (1 + 5e-7)):
        _, dv = oracle.ramp(size, near, smoothness=rho)
        np.testing.assert_allclose(dv, -(2 * k - 1) / (rho * size), rtol=1e-14)
    _, dv = oracle.ramp(size, stride * (1 + 2e-6), smoothness=rho)
    np.testing.assert_allclose(dv, -size / (2 * (stride * (1 + 2e-6)) ** 2), rtol=1e-14)


@pytest.mark.parametrize("rho", [0.05, 0.25, 0.6, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 8, 32, 33, 100])
def test_nominal_ramp(size, rho):
    k = np.arange(size // 2 + 1)
    for stride in np.linspace(1, max(1, size / 2), 13):
        q = size / (2 * stride)
        v, dv = oracle.ramp(size, stride, smoothness=rho)
        np.testing.assert_allclose(v, (q + 0.5 - k) / max(rho * q, 1), rtol=0, atol=1e-12)
        on_last_axis = oracle.ramp(size, stride, smoothness=rho, last=True)
        np.testing.assert_array_equal(on_last_axis, (v, dv))
        if abs(rho * q - 1) < 1e-3:
            continue
        step = 1e-5 * stride
        above, below = (oracle.ramp(size, stride + sign * step, smoothness=rho) for sign in (1, -1))
        slope = (above[0] - below[0]) / (2 * step)
        np.testing.assert_allclose(dv, slope, rtol=0, atol=1e-8 * np.max(np.abs(dv)))
        # The second derivative: 0 of the wide form, N/S^3 of the narrow one.
        bend = 0.0 if rho * q > 1 else size / stride**3
        np.testing.assert_allclose(
            (above[1] - below[1]) / (2 * step), bend, rtol=1e-8, atol=1e-8 * np.max(np.abs(dv))
        )


@pytest.mark.parametrize("rho", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("size", [1, 2, 3, 12, 33])
def test_frequency_zero_is_never_touched(size, rho):
    for q in (size / 2, 1.7, 1.0, 0.6, 0.5 + 1e-7, 0.5, 0.5 - 1e-7, 0.3, 1e-3):
        stride = size / (2 * q)
        if stride < 1:
            continue
        mu, dmu = oracle.mask(size, stride, smoothness=rho)
        assert mu[0] == 1
        assert dmu[0] == 0
        if q <= 0.5 + 1e-7:
            assert not np.any(mu[1:] > 1.1e-7)
            assert not np.any(dmu)


def test_nothing_but_the_mean_is_left_beyond_half_a_frequency():
    rng = np.random.default_rng(13)
    x, g = rng.standard_normal((2, 12))
    for stride in (12.0, 13.0, 1000.0):
        for sizes in (None, (12,), (5,)):
            y = oracle.diff_stride(x, stride, axes=(0,), limits=None, sizes=sizes).output
            assert y.shape == (sizes or (1,))
            np.testing.assert_allclose(y, np.mean(x), rtol=0, atol=1e-15)
        options = {"axes": (0,), "limits": None, "cropping": False}
        reference = oracle.diff_stride(x, stride, g, **options)
        assert reference.dstrides == reference.bound == 0


@pytest.mark.parametrize("rho", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("size", [2, 3, 4, 7, 8, 31, 32])
def test_gradient_at_both_bounds(size, rho):
    rng = np.random.default_rng(14)
    x = rng.standard_normal(size)
    options = {"axes": (0,), "smoothness": rho}
    for bound, beyond in ((1.0, 0.3), (size / 2, 1000.0)):
        g = rng.standard_normal(oracle.output_sizes((size,), bound, axes=(0,)))
        there = oracle.diff_stride(x, bound, g, **options)
        assert abs(there.dstrides) > 1e-3 * there.bound > 0
        # Straight through: beyond the bound all is as on it.
        further = oracle.diff_stride(x, beyond, g, **options)
        np.testing.assert_array_equal(further.output, there.output)
        np.testing.assert_array_equal(further.dstrides, there.dstrides)
    mu, dmu = oracle.mask(size, size / 2, smoothness=rho)
    assert mu[1] == pytest.approx(0.5, rel=1e-15)
    assert np.flatnonzero(dmu).tolist() == [1]
