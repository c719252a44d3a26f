"""The reference itself: the nominal and the paper convention, and its comparison rule."""

import numpy as np
import pytest
import scipy.signal
from diffstride_conformance import oracle
from diffstride_conformance.comparison import Mismatch, check


def by_fft(x, strides, *, sizes, smoothness, convention):
    """Evaluate the last two axes by FFT, the recipe that is meant to equal the matrices."""
    (N, W), (M, w) = x.shape[-2:], sizes
    row_weights, _ = oracle.mask(N, strides[0], smoothness=smoothness, convention=convention)
    column_weights, _ = oracle.mask(
        W, strides[1], smoothness=smoothness, last=True, convention=convention
    )
    X = np.fft.rfft2(x, norm="forward")[..., : min(W, w) // 2 + 1]
    X = X * column_weights[: min(W, w) // 2 + 1]
    lo = min(N, M)
    Y = np.zeros((*x.shape[:-2], M, X.shape[-1]), dtype=complex)
    for k in range(-((lo - 1) // 2), (lo - 1) // 2 + 1):
        Y[..., k % M, :] = row_weights[abs(k)] * X[..., k % N, :]
    if lo % 2 == 0:
        half = row_weights[lo // 2] * (X[..., lo // 2, :] + X[..., -(lo // 2), :]) / 2
        if M > N:
            Y[..., lo // 2, :] = Y[..., -(lo // 2), :] = half / 2
        else:
            Y[..., lo // 2, :] = half
    Y = np.fft.ifft(Y, axis=-2, norm="forward")
    Y[..., 0] = Y[..., 0].real
    if min(W, w) % 2 == 0:
        # Halved where its negative will be a bin of its own in the longer output.
        Y[..., -1] = Y[..., -1].real / (2 if w > W else 1)
    return np.fft.irfft(Y, n=w, axis=-1, norm="forward")


@pytest.mark.parametrize("sizes", [None, (7, 10), (12, 12), (16, 15), (19, 18), (13, 20)])
@pytest.mark.parametrize("shape", [(16, 15), (15, 16), (16, 18)])
@pytest.mark.parametrize("convention", ["nominal", "paper"])
def test_equal_to_the_fft_evaluation(convention, shape, sizes):
    x = np.random.default_rng(1).standard_normal((2, *shape))
    strides = (1.6, 1.9)
    smoothness = {"nominal": 0.5, "paper": 2.5}[convention]
    reference = oracle.diff_stride(
        x, strides, sizes=sizes, smoothness=smoothness, convention=convention
    )
    y = by_fft(
        x,
        oracle.used_strides(shape, strides, smoothness=smoothness, convention=convention),
        sizes=reference.output.shape[-2:],
        smoothness=smoothness,
        convention=convention,
    )
    np.testing.assert_allclose(reference.output, y, rtol=0, atol=1e-14)


@pytest.mark.parametrize("size", range(1, 11))
def test_identity_of_the_paper_at_stride_one_without_bounds(size):
    x = np.random.default_rng(2).standard_normal((size, 2, size + 1))
    y = oracle.diff_stride(x, 1.0, axes=(0, 2), limits=None, convention="paper").output
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-14)


def test_nominal_convention_at_stride_one():
    x = np.random.default_rng(2).standard_normal((3, 9))
    reference = oracle.diff_stride(x[:, :1], 1.0, x[:, 1:2], axes=(1,))
    np.testing.assert_array_equal(reference.output, x[:, :1])
    assert reference.dstrides == reference.bound == 0
    # Of two points the alternating signal is halved, of more the frequencies near N/2 are damped.
    two = oracle.diff_stride([[1.0, -1.0], [1.0, 1.0]], 1.0, axes=(1,)).output
    np.testing.assert_allclose(two, [[0.5, -0.5], [1.0, 1.0]], rtol=0, atol=1e-15)
    many = oracle.diff_stride(x, 1.0, axes=(1,)).output
    assert many.shape == x.shape
    mu, _ = oracle.mask(9, 1.0)
    assert mu.tolist() == pytest.approx([1, 1, 1, 1, 1 / 1.125])
    np.testing.assert_allclose(np.fft.rfft(many), mu * np.fft.rfft(x), rtol=0, atol=1e-14)


@pytest.mark.parametrize(("norm", "exponent"), [("forward", 0), ("ortho", 0.5), ("backward", 1)])
@pytest.mark.parametrize("convention", ["nominal", "paper"])
@pytest.mark.parametrize("strides", [2.0, (1.3, 2.7)])
def test_constants(strides, convention, norm, exponent):
    x = np.full((2, 33, 48), 1.5)
    y = oracle.diff_stride(x, strides, norm=norm, convention=convention).output
    assert y.size < x.size
    np.testing.assert_allclose(y, 1.5 * (x.size / y.size) ** exponent, rtol=1e-14)


@pytest.mark.parametrize("given", [None, (7, 15, 16), (14, 20, 5)])
def test_nominal_convention_is_equivariant_under_transposition(given):
    rng = np.random.default_rng(3)
    x = rng.standard_normal((12, 17, 14))
    strides = np.array([2.1, 1.4, 2.9])
    sizes = np.array(given or oracle.output_sizes(x.shape, strides, axes=(0, 1, 2)))
    g = rng.standard_normal(sizes)
    reference = oracle.diff_stride(x, strides, g, axes=(0, 1, 2), sizes=given)
    assert reference.output.shape == tuple(sizes)

    def assert_near(after, before):
        np.testing.assert_allclose(after, before, rtol=0, atol=1e-13 * np.max(np.abs(before)))

    for order in ([1, 0, 2], [0, 2, 1], [2, 0, 1], [1, 2, 0], [2, 1, 0]):
        moved = oracle.diff_stride(
            x.transpose(order),
            strides[order],
            g.transpose(order),
            axes=(0, 1, 2),
            sizes=None if given is None else sizes[order],
        )
        assert_near(moved.output, reference.output.transpose(order))
        assert_near(moved.dx, reference.dx.transpose(order))
        assert_near(moved.dstrides, reference.dstrides[order])
        # The axes named in another order, too.
        named = oracle.diff_stride(
            x, strides[order], g, axes=order, sizes=None if given is None else sizes[order]
        )
        assert_near(named.output, reference.output)
        assert_near(named.dstrides, reference.dstrides[order])


@pytest.mark.parametrize(("convention", "bin_"), [("nominal", 8), ("paper", 12)])
def test_half_a_cosine_and_no_sine_pass_at_nyquist(convention, bin_):
    # The nominal window leaves mu(8) = 1/4 alive there, Eq. 4 of the paper leaves mu(12) = 1/4 on
    # the last axis, and symmetrising halves it once more.
    phase = 2 * np.pi * bin_ * np.arange(32) / 32
    nyquist = np.cos(np.pi * np.arange(2 * bin_))
    options = {"axes": (0,), "convention": convention}
    cosine = oracle.diff_stride(np.cos(phase), 2.0, **options).output
    np.testing.assert_allclose(cosine, 0.125 * nyquist, rtol=0, atol=1e-14)
    sine = oracle.diff_stride(np.sin(phase), 2.0, **options).output
    np.testing.assert_allclose(sine, 0.0, rtol=0, atol=1e-14)


@pytest.mark.parametrize(
    ("convention", "expected"), [("nominal", [32, 16, 8, 4]), ("paper", [32, 24, 20, 18])]
)
def test_sizes_through_a_network(convention, expected):
    sizes = [32]
    for _ in range(3):
        (size,) = oracle.output_sizes((sizes[-1],), 2.0, axes=(0,), convention=convention)
        sizes.append(size)
    assert sizes == expected


def nominal_size(size, stride):
    return oracle.output_sizes((size,), stride, axes=(0,), limits=None)[0]


@pytest.mark.parametrize("stride", [1, 2, 3, 4])
def test_nominal_sizes_are_those_of_a_strided_convolution(stride):
    for size in range(1, 301):
        assert nominal_size(size, stride) == -(-size // stride)


def test_nominal_sizes():
    # Even or odd, at least 1, at most N, and unmoved by a stride that drifts a little.
    assert [nominal_size(7, S) for S in (1.0, 1.2, 1.5, 2.1, 2.5, 3.2, 6.0, 50.0)] == [
        7, 6, 5, 4, 3, 2, 1, 1
    ]  # fmt: skip
    for size, stride in ((32, 2), (33, 2), (31, 3), (32, 3), (33, 3), (31, 1.5), (32, 1.5)):
        for drift in (0.999, 1.001):
            assert nominal_size(size, stride * drift) == nominal_size(size, stride)
    # At 4 it does where N = 4j + 1: N/S + 3/4 is an integer there.
    assert [nominal_size(33, S) for S in (3.99, 4.0, 4.01)] == [9, 9, 8]
    # On such ties float32 and float64 agree, on the larger size.
    for size in range(1, 101):
        for smaller in range(1, size):
            stride = size / (smaller + 0.25)
            assert nominal_size(size, stride) == smaller + 1
            assert nominal_size(size, np.float32(stride)) == smaller + 1
    # The guard is 1e-5 + 1e-7 t below them.
    for size, t, guard in ((33, 8.25, 1.0825e-5), (3001, 1000.25, 1.10025e-4)):
        assert nominal_size(size, size / (t - 0.99 * guard)) == t + 0.75
        assert nominal_size(size, size / (t - 1.01 * guard)) == t - 0.25
    assert oracle.output_sizes((2, 31, 9), (2.0, 1.0)) == (16, 9)
    assert oracle.output_sizes((2, 31, 9), (2.0, 3.0), cropping=False) == (31, 9)
    # The built-in bound N/2 leaves 2 points.
    assert oracle.output_sizes((2, 31, 3), (1000.0, 1000.0)) == (2, 2)


@pytest.mark.parametrize("rho", [0.05, 0.25, 1.0])
@pytest.mark.parametrize("size", [3, 4, 8, 9, 32, 33])
def test_what_the_nominal_size_cuts_off(size, rho):
    for stride in np.linspace(1, size / 2, 301):
        M = nominal_size(size, stride)
        v, _ = oracle.ramp(size, stride, smoothness=rho)
        R = max(rho * size / (2 * stride), 1)
        if M % 2 == 0:
            assert 0 < v[M // 2] <= (5 / 8 + 1e-12) / R
        else:
            assert np.all(v[(M + 1) // 2 :] <= (1 / 8 + 1e-12) / R)


def test_no_gradient_where_the_size_cuts_the_only_bin_on_the_ramp_off():
    # N = 14 at S = 1.96: N/S = 7.14, M = 7, and of the bins 0..3 that 7 points hold v > 1.
    x = np.random.default_rng(15).standard_normal((14, 3))
    v, _ = oracle.ramp(14, 1.96)
    assert v[3] > 1 > 1 / 8 > v[4] > 0
    y = oracle.diff_stride(x, 1.96, axes=(0,)).output
    reference = oracle.diff_stride(x, 1.96, y, axes=(0,))
    assert y.shape == (7, 3)
    assert reference.dstrides == reference.bound == 0
    # A size that the caller gives holds it.
    y = oracle.diff_stride(x, 1.96, axes=(0,), sizes=(9,)).output
    assert oracle.diff_stride(x, 1.96, y, axes=(0,), sizes=(9,)).dstrides < 0


@pytest.mark.parametrize(("convention", "floor"), [("nominal", 1.0), ("paper", 32 / 28)])
def test_bounds(convention, floor):
    def used(sizes, strides, **options):
        return oracle.used_strides(sizes, strides, convention=convention, **options)

    assert used((32,), 1.0) == used((32,), 0.5) == (floor,)
    assert used((32,), 0.5, limits=None) == (1.0,)
    assert used((32,), 40.0) == (16.0,)
    assert used((32,), 40.0, limits=None) == (40.0,)
    assert used((32,), 1.0, limits=(3.0, None)) == (3.0,)
    assert used((32,), 9.0, limits=(None, 3.0)) == (3.0,)
    assert used((31,), 40.0) == (15.5,)
    assert [used((N,), 9.0) for N in (1, 2, 3)] == [(1.0,), (1.0,), (1.5,)]
    # A shared stride takes the tightest bounds of its axes.
    assert used((32, 16), 40.0) == (8.0, 8.0)
    assert used((32, 16), [1.0, 40.0]) == (floor, 8.0)
    # Where they cross the upper bound wins.
    assert used((5,), 1.0, limits=(3.0, None)) == (2.5,)
    with pytest.raises(ValueError, match="greater than upper"):
        used((32,), 2.0, limits=(3.0, 2.0))


def test_bounds_of_the_paper():
    # The floor of 5 points is 5, half of them 2.5.
    assert oracle.used_strides((5,), 1.0, convention="paper") == (2.5,)
    assert oracle.used_strides((32, 16), 1.0, convention="paper") == (16 / 12, 16 / 12)


def test_defaults_are_those_of_the_nominal_convention():
    x = np.random.default_rng(16).standard_normal((2, 20, 17))
    written_out = {"smoothness": 0.25, "norm": "forward", "convention": "nominal"}
    expected = oracle.diff_stride(x, (1.7, 2.2), **written_out).output
    np.testing.assert_array_equal(oracle.diff_stride(x, (1.7, 2.2)).output, expected)


@pytest.mark.parametrize("convention", ["nominal", "paper", "tensorflow"])
def test_shared_stride(convention):
    rng = np.random.default_rng(4)
    x = rng.standard_normal((2, 24, 18))
    each = [1.7, 1.7]
    g = rng.standard_normal(oracle.diff_stride(x, each, convention=convention).output.shape)
    apart = oracle.diff_stride(x, each, g, convention=convention)
    for shared in (1.7, [1.7]):
        together = oracle.diff_stride(x, shared, g, convention=convention)
        np.testing.assert_array_equal(together.output, apart.output)
        assert together.dstrides.shape == together.bound.shape == np.shape(shared)
        np.testing.assert_allclose(together.dstrides, np.sum(apart.dstrides), rtol=1e-14)
        np.testing.assert_allclose(together.bound, np.sum(apart.bound), rtol=1e-14)


@pytest.mark.parametrize("convention", ["nominal", "paper", "tensorflow"])
def test_batches(convention):
    rng = np.random.default_rng(5)
    x = rng.standard_normal((2, 3, 20, 16))
    whole = oracle.diff_stride(x, (1.9, 2.2), convention=convention)
    assert whole.dx is whole.dstrides is whole.bound is None
    single = oracle.diff_stride(x[1, 2], (1.9, 2.2), convention=convention)
    np.testing.assert_allclose(whole.output[1, 2], single.output, rtol=0, atol=1e-14)

    empty = oracle.diff_stride(x[:0], (1.9, 2.2), whole.output[:0], convention=convention)
    assert empty.output.shape == (0, *whole.output.shape[1:])
    assert empty.dx.shape == (0, *x.shape[1:])
    assert empty.dstrides.tolist() == empty.bound.tolist() == [0, 0]


# --- Without a mask, and the penalty -----------------------------------------------------------


@pytest.mark.parametrize("out_size", range(1, 13))
@pytest.mark.parametrize("size", range(1, 10))
def test_spectral_resize_against_scipy(size, out_size):
    x = np.random.default_rng(6).standard_normal((2, size, 3))
    y = oracle.spectral_resize(x, (out_size,), axes=(1,)).output
    expected = scipy.signal.resample(x, out_size, axis=1)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


def test_spectral_resize_of_several_axes_against_scipy():
    x = np.random.default_rng(6).standard_normal((9, 2, 12, 7))
    y = oracle.spectral_resize(x, (6, 5, 10), axes=(2, 0, 3)).output
    expected = x
    for axis, size in ((2, 6), (0, 5), (3, 10)):
        expected = scipy.signal.resample(expected, size, axis=axis)
    np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


def test_spectral_pool():
    x = np.random.default_rng(6).standard_normal((2, 30, 21))
    y = oracle.spectral_pool(x, 2.0).output
    assert y.shape == (2, 15, 10)
    resized = oracle.spectral_resize(x, (15, 10)).output
    # They differ in the bin k = 5 of the last axis alone: pooling keeps half of it.
    Y, resized_Y = np.fft.rfft(y), np.fft.rfft(resized)
    np.testing.assert_allclose(Y[..., :5], resized_Y[..., :5], rtol=0, atol=1e-12)
    np.testing.assert_allclose(Y[..., 5], resized_Y[..., 5] / 2, rtol=0, atol=1e-12)
    # A float32 stride just above an integer ratio does not lose a point, and 2 are kept.
    assert oracle.spectral_pool(x, np.float32(2.1)).output.shape == (2, 14, 10)
    assert oracle.spectral_pool(x, [100.0, 21.0]).output.shape == (2, 2, 2)
    assert oracle.spectral_pool(x[:1], [3.0, 3.0], axes=(0, 1)).output.shape == (1, 10, 21)


def test_complexity():
    layers = [np.array([2.0, 2.5]), np.array([1.5]), np.array([1.0, 3.0, 2.0])]
    value, gradients = oracle.complexity(layers)
    assert value == pytest.approx(1 / 5 + 1 / 7.5 + 1 / 45, rel=1e-15)
    step = 1e-6
    for layer, gradient in zip(layers, gradients, strict=True):
        assert gradient.shape == layer.shape
        for a in range(layer.size):
            layer[a] += step
            above, _ = oracle.complexity(layers)
            layer[a] -= 2 * step
            below, _ = oracle.complexity(layers)
            layer[a] += step
            assert gradient[a] == pytest.approx((above - below) / (2 * step), rel=1e-8)
    assert oracle.complexity([]) == (0.0, [])


# --- The comparison rule -----------------------------------------------------------------------


def test_comparison_measures_in_units_of_the_tolerance():
    reference = np.array([2.0, -4.0, 0.0])
    actual = reference + np.array([0.0, 0.0, 2e-13])
    assert check("output", actual, reference, dtype="float64") == pytest.approx(0.5)
    with pytest.raises(Mismatch, match=r"dx \(float64\): worst at \(2,\)"):
        check("dx", actual + 3e-13, reference, dtype="float64")
    assert check("dx", actual + 3e-13, reference, dtype="float64", extra=1e-13) < 1


def test_comparison_of_halves_counts_ulps():
    # The largest magnitude, 3, lies in [2, 4): an ulp is 2**-6 in bfloat16, 2**-9 in float16.
    reference = np.array([3.0, 1.0])
    bfloat16 = np.array([3.0, 1.0 + 2**-6], dtype=np.float32)
    assert check("output", bfloat16, reference, dtype="bfloat16") == 0.5
    assert check("dx", bfloat16, reference, dtype="bfloat16") == 0.25
    float16 = np.array([3.0, 1.0 + 2**-8], dtype=np.float16)
    assert check("output", float16, reference, dtype="float16") == 1.0
    with pytest.raises(Mismatch, match="not rounded to bfloat16"):
        check("output", np.float32([3.0, 1.001]), reference, dtype="bfloat16")


def test_comparison_of_stride_gradients_uses_the_bound():
    reference, bound = np.array([1.0, 0.0]), np.array([10.0, 0.0])
    actual = np.array([1.0 + 5e-7, 0.0], dtype=np.float32)
    units = check("dstrides", actual, reference, dtype="float32", bound=bound)
    assert units == pytest.approx(0.5, rel=0.2)
    units = check(
        "dstrides",
        actual.astype(np.float64),
        reference,
        dtype="float64",
        precision="bfloat16",
        bound=bound,
    )
    assert units == pytest.approx(0.5, rel=0.2)
    with pytest.raises(Mismatch, match=r"worst at \(0,\)"):
        check("dstrides", actual.astype(np.float64), reference, dtype="float64", bound=bound)
    with pytest.raises(Mismatch, match=r"worst at \(1,\)"):
        check("dstrides", actual + np.float32(1e-30), reference, dtype="float32", bound=bound)
    with pytest.raises(ValueError, match="bound"):
        check("dstrides", actual, reference, dtype="float32")


def test_comparison_of_scalars_and_empty_arrays():
    assert check("dstrides", np.array(1.0), 1.0, dtype="float64", bound=2.0) == 0
    with pytest.raises(Mismatch, match=r"worst at \(\)"):
        check("dstrides", np.array(1.1), 1.0, dtype="float64", bound=2.0)
    assert check("output", np.zeros((0, 3)), np.zeros((0, 3)), dtype="float64") == 0


def test_comparison_refuses_other_shapes_dtypes_and_nan():
    reference = np.ones((2, 3))
    with pytest.raises(Mismatch, match="shape"):
        check("output", np.ones((3, 2)), reference, dtype="float64")
    with pytest.raises(Mismatch, match="dtype"):
        check("output", np.ones((2, 3)), reference, dtype="float32")
    for value in (np.nan, np.inf):
        with pytest.raises(Mismatch, match="worst"):
            check("output", np.full((2, 3), value), reference, dtype="float64")
