"""`explain`: each intermediate against its definition, and the figure that shows them."""

import doctest
import subprocess
import sys
from importlib import import_module

import diffstride_numpy as ds
import numpy as np
import pytest
from diffstride_conformance import oracle
from diffstride_numpy import explain
from support.amounts import quick_every

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

CONVENTIONS = ("paper", "nominal", "tensorflow")
SHAPES = ((16, 20), (17, 21))
OPTIONS = (
    (2.3, {}),
    ((2.1, 2.7), {}),
    ((2.1, 2.7), {"norm": "ortho"}),
    ((2.1, 2.7), {"norm": "backward", "axes": (-1, -2)}),
    ((2.1, 2.7), {"cropping": False}),
    ((2.1, 2.7), {"sizes": (9, 8)}),
    ((2.1, 2.7), {"method": "matmul", "smoothness": 1.0}),
    ((1.0, 1.0), {}),
    ((1.0, 1.0), {"limits": None}),
)
# What the tensorflow convention cannot do: one axis, and outputs larger than the input.
CLEAN_ONLY = (
    ("paper", (24,), 2.0, {"axes": -1}),
    ("paper", (25, 3), 1.0, {"axes": 0, "limits": None}),
    ("nominal", (25,), 2.3, {"axes": -1}),
    ("nominal", (32,), 3.0, {"axes": -1, "method": "fft"}),
    ("paper", (16, 17), (1.5, 2.0), {"sizes": (20, 22)}),
    ("nominal", (6, 7, 8), (1.63, 1.77, 2.23), {"axes": (-3, -2, -1)}),
)
CASES = [
    *((c, shape, *options) for c in CONVENTIONS for shape in SHAPES for options in OPTIONS),
    *((c, (2, 16, 21), (2.1, 2.7), {}) for c in CONVENTIONS),
    *CLEAN_ONLY,
]


def name_of(case):
    return "-".join(map(str, case))


def by(cases):
    return pytest.mark.parametrize("case", cases, ids=name_of)


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def explained(case, **more):
    convention, shape, strides, options = case
    return explain(random(*shape), strides, convention=convention, **options, **more)


def numbers(e):
    return [axis.axis for axis in e.axes]


def along(values, axis):
    return values.reshape(-1, *[1] * (-1 - axis))


def assert_near(found, expected, digits=1e-12):
    assert found.shape == expected.shape
    np.testing.assert_allclose(
        found, expected, rtol=0, atol=digits * max(1.0, float(np.abs(expected).max()))
    )


# --- The forward pass --------------------------------------------------------------------------


def dft(x, frequencies, axis):
    """Return the sums of the definition, unnormalised."""
    n = np.arange(x.shape[axis])
    phases = np.exp(-2j * np.pi * np.outer(frequencies, n) / len(n))
    return np.moveaxis(np.tensordot(phases, x, (1, axis)), 0, axis)


@by(CASES)
def test_chain_of_spectra_gives_the_output(case):
    e = explained(case)
    spectrum = e.x
    for axis in e.axes:
        spectrum = dft(spectrum, axis.k, axis.axis)
        spectrum = spectrum * {"forward": 1 / axis.N, "ortho": axis.N**-0.5}.get(e.norm, 1)
    assert_near(e.spectrum, spectrum)

    for axis in e.axes:
        spectrum = spectrum * along(axis.mask, axis.axis)
    assert_near(e.masked_spectrum, spectrum)

    for axis in e.axes:
        rows = np.moveaxis(spectrum, axis.axis, 0)
        spectrum = np.moveaxis(cropped(case[0], axis, rows), 0, axis.axis)
    assert_near(e.cropped_spectrum, spectrum)

    first, *rest = numbers(e)
    if case[0] == "tensorflow":
        (last,) = rest
        y = np.fft.ifft(np.fft.ifftshift(spectrum, first), axis=first, norm=e.norm)
        y = np.fft.irfft(y, n=e.axes[1].M, axis=last, norm=e.norm)
    else:
        axes = (first, *rest)
        y = np.fft.ifftn(np.fft.ifftshift(spectrum, axes), axes=axes, norm=e.norm)
        assert np.abs(y.imag).max() < 1e-12
        y = y.real
    assert_near(e.y, y)


def cropped(convention, axis, rows):
    """Crop the first axis, frequency by frequency."""
    if convention == "tensorflow":
        if axis.k[0] == 0:
            return rows[: axis.M // 2 + 1]
        # The first rows of the transform and the last ones, whatever their frequencies were.
        rows = np.fft.ifftshift(rows, 0)
        front = axis.M // 2
        kept = np.concatenate([rows[:front], rows[axis.N - (axis.M - front) :]])
        return np.fft.fftshift(kept, 0)
    lo = min(axis.N, axis.M)
    found = dict(zip(axis.k.tolist(), rows, strict=True))
    found.setdefault(axis.N // 2, found[-(axis.N // 2)])
    result = []
    for k in axis.k_cropped.tolist():
        if 2 * abs(k) < lo:
            result.append(found[k])
        elif 2 * abs(k) == lo:
            mean = (found[k] + found[-k]) / 2
            result.append(mean / 2 if axis.M > axis.N else mean)
        else:
            result.append(np.zeros_like(rows[0]))
    return np.stack(result)


@by(CASES)
def test_output_and_gradients_are_those_of_diff_stride(case):
    convention, shape, strides, options = case
    y, pullback = ds.diff_stride_with_pullback(
        random(*shape), strides, convention=convention, **options
    )
    dy = random(*y.shape, seed=1)
    for e, g in ((explained(case), y), (explained(case, dy=dy), dy)):
        dx, dstrides = pullback(g)
        for found, expected in ((e.y, y), (e.dy, g), (e.dx, dx), (e.dS, dstrides)):
            np.testing.assert_array_equal(found, expected)
            assert (found.shape, found.dtype) == (expected.shape, expected.dtype)


@by(CASES)
def test_matrices_give_the_output(case):
    e = explained(case)
    y = e.x
    for axis in e.axes:
        assert axis.A.shape == (axis.M, axis.N)
        assert np.iscomplexobj(axis.A) == (case[0] == "tensorflow")
        y = np.moveaxis(np.tensordot(axis.A, y, (1, axis.axis)), 0, axis.axis)
    assert_near(y.real, e.y)


def test_matrices_of_an_image_are_applied_from_both_sides():
    e = explain(random(16, 18), (2.0, 1.7), convention="nominal")
    height, width = e.axes
    assert_near(height.A @ e.x @ width.A.T, e.y)


# --- Masks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", ["paper", "nominal"])
@pytest.mark.parametrize("shape", SHAPES)
def test_masks_are_those_of_the_equations(convention, shape):
    e = explain(random(*shape), (2.1, 2.7), convention=convention)
    used = oracle.used_strides(shape, (2.1, 2.7), convention=convention)
    for i, axis in enumerate(e.axes):
        N, M = axis.N, axis.M
        assert shape[i] == N
        assert e.y.shape[i] == M
        assert used[i] == axis.S
        if convention == "paper":
            assert (axis.q, M) == (N / (2 * axis.S) + 4, min(N, 2 * np.ceil(axis.q)))
        else:
            assert (axis.q, M) == (N / (2 * axis.S) + 0.5, np.floor(N / axis.S + 0.75))
        assert axis.k.tolist() == list(range(-(N // 2), (N + 1) // 2))
        assert axis.k_cropped.tolist() == list(range(-(M // 2), (M + 1) // 2))
        mask, dmask = oracle.mask(N, axis.S, last=i == 1, convention=convention)
        np.testing.assert_allclose(axis.mask, mask[np.abs(axis.k)], atol=1e-13)
        np.testing.assert_allclose(axis.dmask, dmask[np.abs(axis.k)], rtol=1e-13)
        np.testing.assert_allclose(axis.mask_cropped, mask[np.abs(axis.k_cropped)], atol=1e-13)
        on_ramp = np.flatnonzero((mask > 0) & (mask < 1))
        assert axis.ramp.tolist() == on_ramp[on_ramp <= M // 2].tolist()
        np.testing.assert_allclose(axis.ramp_mask, mask[axis.ramp], atol=1e-13)
        np.testing.assert_allclose(axis.ramp_dmask, dmask[axis.ramp], rtol=1e-13)


# Strides at which no bin is near a corner. The tensorflow convention has its masks in single
# precision, so a difference needs a longer step and is less exact.
@pytest.mark.parametrize(
    ("convention", "step", "digits"),
    [("paper", 1e-6, 1e-7), ("nominal", 1e-6, 1e-7), ("tensorflow", 2**-8, 2e-4)],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_slopes_of_the_masks_are_their_differences(convention, step, digits, shape):
    def axes_at(stride):
        return explain(random(*shape), stride, convention=convention, cropping=False).axes

    strides = np.array([2.13, 2.71])
    here, up, down = axes_at(strides), axes_at(strides + step), axes_at(strides - step)
    for axis, more, less in zip(here, up, down, strict=True):
        expected = (more.mask - less.mask) / (2 * step)
        assert np.count_nonzero(axis.dmask) >= 2
        np.testing.assert_allclose(axis.dmask, expected, rtol=digits, atol=digits)
        assert set(np.abs(axis.k[axis.dmask != 0])) == set(np.abs(axis.ramp))


def test_a_corner_of_the_mask_belongs_to_the_ramp():
    # N = 32, S = 2, R = 4: the bin 8 has a mask of exactly 1, and its right-hand derivative.
    (height, _) = explain(random(32, 32), 2.0, convention="paper").axes
    assert height.ramp.tolist() == [8, 9, 10, 11]
    assert height.ramp_mask.tolist() == [1, 0.75, 0.5, 0.25]
    assert height.ramp_dmask.tolist() == [-1, -1, -1, -1]


# --- The gradient in the strides ---------------------------------------------------------------


@by(CASES)
def test_contributions_sum_to_the_gradient_in_the_strides(case):
    e = explained(case)
    per_axis = np.array([np.sum(axis.contributions) for axis in e.axes])
    assert [axis.dS for axis in e.axes] == per_axis.tolist()
    size = sum(np.abs(axis.contributions).sum() for axis in e.axes)
    expected = per_axis if e.dS.size > 1 else np.sum(per_axis).reshape(e.dS.shape)
    np.testing.assert_allclose(e.dS, expected, rtol=0, atol=1e-12 * max(size, 1.0))


@by([case for case in CASES if case[0] != "tensorflow" and "sizes" not in case[3]])
def test_a_bin_contributes_by_the_spectra_at_its_frequency(case):
    # By Parseval, the derivative of <dy, y> in mask(k): the spectra of dy and of the input masked
    # along the other axes, at k and -k.
    dy = random(*explained(case).y.shape, seed=1)
    e = explained(case, dy=dy)
    for axis in e.axes:
        others = [other for other in e.axes if other is not axis]
        of_x, of_dy = e.x, dy
        for other in others:
            of_dy = np.moveaxis(np.tensordot(other.A.T, of_dy, (1, other.axis)), 0, other.axis)
        # The norm's factor, where this axis's matrix has it: a constant stays constant but for it.
        scale = np.linalg.norm(axis.A @ np.ones(axis.N)) / np.sqrt(axis.M)
        for k, slope, share in zip(axis.ramp, axis.ramp_dmask, axis.contributions, strict=True):
            ks = np.unique([k, -k]) if 0 < 2 * k < min(axis.N, axis.M) else np.array([k])
            X, G = dft(of_x, ks, axis.axis), dft(of_dy, ks, axis.axis)
            if 2 * k == axis.M:
                X = X.real  # The output has no sine at its Nyquist frequency.
            expected = slope * scale * float(np.sum(X * G.conj()).real) / axis.N
            assert abs(share - expected) < 1e-11 * max(1.0, abs(expected))


def test_one_wave_on_the_ramp_contributes_what_arithmetic_gives():
    # cos(2 pi 9 n/32) on the height, S = 2, R = 4: mask 3/4, dmask/dS = -1; y has 24 x 24 samples
    # of mean square (3/4)^2/2, so d(sum(y^2)/2)/dmask = 24^2 (3/4)/2 = 216.
    wave = np.cos(2 * np.pi * 9 * np.arange(32) / 32)
    e = explain(wave[:, None] * np.ones(32), (2.0, 2.0), convention="paper")
    height, width = e.axes
    assert e.y.shape == (24, 24)
    np.testing.assert_allclose(height.contributions, [0, -216, 0, 0], atol=1e-10)
    np.testing.assert_allclose(width.contributions, 0, atol=1e-10)


# --- Kinds of arrays, errors -------------------------------------------------------------------


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_precision_follows_the_input(convention, dtype):
    x = random(16, 18).astype(dtype)
    e = explain(x, (2.1, 1.7), convention=convention)
    exact = explain(x.astype(np.float64), (2.1, 1.7), convention=convention)
    assert {e.y.dtype, e.dx.dtype} == {np.dtype(dtype)}
    assert (e.cropped_spectrum == exact.cropped_spectrum).all()
    tolerance = {np.float16: 3e-3, np.float32: 5e-6}[dtype]
    for found, expected in ((e.y, exact.y), (e.dx, exact.dx)):
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    for axis, of in zip(e.axes, exact.axes, strict=True):
        size = np.abs(of.contributions).sum()
        assert np.abs(axis.contributions - of.contributions).max() <= tolerance * size


def test_strides_in_single_precision_and_shared():
    strides = np.array([2.1], dtype=np.float32)
    e = explain(random(16, 18), strides)
    assert (e.dS.shape, e.dS.dtype) == ((1,), np.float32)
    assert e.axes[0].S == e.axes[1].S == float(strides[0])
    assert e.dS[0] == np.float32(sum(axis.dS for axis in e.axes))


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (TypeError, "x must be a numpy.ndarray", lambda: explain([1.0], 2.0)),
        (TypeError, "x must be real floating point", lambda: explain(np.ones((4, 4), int), 2.0)),
        (ValueError, "strides must be finite", lambda: explain(np.ones((8, 8)), np.nan)),
        (ValueError, "axes must lie between", lambda: explain(np.ones(8), 2.0)),
        (ValueError, "convention must be one of", lambda: explain(np.ones(8), 2, convention="x")),
        (TypeError, "dy must be a numpy.ndarray, got list", lambda: explain(*SMALL, dy=[1.0])),
        (
            ValueError,
            r"dy must have the output's shape \(16, 16\) and dtype float64, got \(3,\)",
            lambda: explain(*SMALL, dy=np.ones(3)),
        ),
        (
            ValueError,
            r"dy must have .* dtype float64, got \(16, 16\) and float32",
            lambda: explain(*SMALL, dy=np.ones((16, 16), np.float32)),
        ),
    ],
)
def test_bad_input_is_named(error, message, call):
    with pytest.raises(error, match=message):
        call()


SMALL = (np.ones((32, 32)), 2.0)


def test_summary():
    # The width's q = 10, R = 2.5: a mask of 1, 0.6 and 0.2 at the frequencies 8, 9 and 10.
    e = explain(random(32, 40), (0.5, 2.0), dy=np.zeros((32, 20)))
    first, second, height, width, total = str(e).splitlines()
    assert first == "diff_stride, convention nominal, smoothness 0.25, norm forward"
    assert second == "x (32, 40) -> y (32, 20), float64"
    assert height.startswith("axis -2: N = 32, M = 32, S = 1 (given 0.5), ")
    assert width == "axis -1: N = 40, M = 20, S = 2, 3 bins on the ramp, dS = 0"
    assert total == "dS = 0, 0 for the given dy"


def test_doctests():
    failed, attempted = doctest.testmod(import_module("diffstride_numpy.explain"))
    assert attempted
    assert not failed


# --- The figure --------------------------------------------------------------------------------


SIGNAL_TITLES = [
    "input x\n32 samples",
    "spectra\n32 bins → 24",
    "output y\n24 samples",
    "mask (Eq. 4), axis -1\nS = 2: N = 32 → M = 24",
    "dS = {}, axis -1\nfrom 4 bins of the ramp",
    "gradient dx\nof the loss sum(y²)/2",
]
IMAGE_TITLES = [
    "input x\n32 x 40",
    "spectrum X\n32 x 40",
    "masked spectrum\n32 x 40",
    "cropped spectrum\n24 x 22",
    "output y\n24 x 22",
    "mask (Eq. 3), axis -2\nS = 2: N = 32 → M = 24",
    "dS = {}, axis -2\nfrom 4 bins of the ramp",
    "mask (Eq. 4), axis -1\nS = 3: N = 40 → M = 22",
    "dS = {}, axis -1\nfrom 4 bins of the ramp",
    "gradient dx\nof the given dy",
]


def panels_of(figure):
    """Draw the figure and return its panels, without colour bars, checking that no titles meet."""
    figure.canvas.draw()
    panels = [axes for axes in figure.axes if axes.get_label() != "<colorbar>"]
    texts = [axes.title for axes in panels] + [axes.xaxis.label for axes in panels]
    boxes = [text.get_window_extent() for text in texts if text.get_text()]
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[:i])
    return panels


def with_slopes(expected, e):
    slopes = iter(f"{axis.dS:.4g}" for axis in e.axes)
    return [t.format(next(slopes)) if "{}" in t else t for t in expected]


def test_figure_of_a_signal():
    e = explain(random(32), 2.0, axes=-1, convention="paper")
    panels = panels_of(e.plot())
    assert [axes.get_title() for axes in panels] == with_slopes(SIGNAL_TITLES, e)
    bars = panels[4].patches
    assert [bar.get_x() + bar.get_width() / 2 for bar in bars] == e.axes[0].ramp.tolist()
    np.testing.assert_array_equal([bar.get_height() for bar in bars], e.axes[0].contributions)
    for axes, values in ((panels[0], e.x), (panels[2], e.y), (panels[5], e.dx)):
        np.testing.assert_array_equal(axes.get_lines()[0].get_ydata(), values)
    full, masked, cropped_ = (line.get_ydata() for line in panels[1].get_lines())
    largest = np.abs(e.spectrum).max()
    np.testing.assert_allclose(full, 20 * np.log10(np.abs(e.spectrum) / largest))
    assert masked.min() == -80
    assert cropped_.shape == (24,)


def test_figure_of_an_image_shows_the_first_of_a_batch():
    x = random(3, 40, 32)
    dy = random(3, 22, 24, seed=1)
    e = explain(x, (2.0, 3.0), axes=(2, 1), dy=dy, convention="paper")
    panels = panels_of(e.plot())
    # Axis -1 is the first one here, and drawn downwards.
    swapped = [
        t.replace("axis -2", "axis 0").replace("axis -1", "axis -2").replace("axis 0", "axis -1")
        for t in IMAGE_TITLES
    ]
    assert [axes.get_title() for axes in panels] == with_slopes(swapped, e)
    (dx,) = panels[-1].get_images()
    np.testing.assert_array_equal(dx.get_array(), e.dx[0].T)
    (spectrum,) = panels[1].get_images()
    assert spectrum.get_array().max() == 0
    for i in range(2):
        heights = [bar.get_height() for bar in panels[6 + 2 * i].patches]
        np.testing.assert_array_equal(heights, e.axes[i].contributions)


@pytest.mark.parametrize(
    ("shape", "strides", "options"),
    quick_every(
        3,
        [
            ((17, 20), (2.0, 3.0), {"convention": "tensorflow"}),
            # Nothing is cut and no bin is on the ramp.
            ((17, 19), 1.0, {"convention": "paper", "limits": None}),
            ((1, 16), 2.0, {}),
            ((1,), 1.0, {"axes": 0}),
            ((300,), 3.0, {"axes": 0}),
            ((16, 12), 1.5, {"sizes": (20, 12)}),
        ],
    ),
)
def test_every_kind_of_figure_is_drawn_without_a_warning(shape, strides, options):
    e = explain(random(*shape), strides, **options)
    assert len(panels_of(e.plot())) == (10 if len(e.axes) == 2 else 6)


def test_zeros_are_drawn():
    assert len(panels_of(explain(np.zeros((16, 16), np.float32), 2.0).plot())) == 10


def test_what_cannot_be_drawn_is_said():
    with pytest.raises(ValueError, match="plot needs 1 or 2 resized axes, got 3"):
        explain(random(8, 8, 8), 2.0, axes=(0, 1, 2)).plot()
    with pytest.raises(ValueError, match=r"not empty, got shape \(0, 16\)"):
        explain(np.ones((0, 16)), 2.0, axes=-1).plot()


def test_only_the_figure_needs_matplotlib_and_no_figure_pyplot():
    script = (
        "import sys, numpy, diffstride_numpy\n"
        "explained = diffstride_numpy.explain(numpy.ones(16), 2.0, axes=-1)\n"
        "print('matplotlib' in sys.modules)\n"
        "explained.plot()\n"
        "print('matplotlib' in sys.modules, 'matplotlib.pyplot' in sys.modules)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == ["False", "True", "False"], result.stderr
