"""The bounds of a stride, and the output sizes that follow from it."""

import itertools
import math

import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance import oracle
from support.amounts import quick_every
from support.core_plans import CLEAN, FRAMEWORKS, SMOOTHNESS, axis_mask, make_plan

from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import Bounds
from diffstride_core.planning import (
    plan_diff_stride,
    size_jumps,
)
from diffstride_core.settings import make_settings

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


def test_bounds():
    assert Bounds().apply(0.3) == 1.0
    assert Bounds().apply(1e9) == 1e9
    bounds = Bounds(floor=1.2, lower=1.5, upper=3.0)
    assert [bounds.apply(stride) for stride in (0.0, 1.4, 2.0, 9.0)] == [1.5, 1.5, 2.0, 3.0]
    assert Bounds(floor=1.5, lower=1.2).apply(1.3) == 1.5
    # Where they cross, the upper bound wins.
    for crossing in (Bounds(floor=5.0, upper=2.5), Bounds(lower=5.0, upper=2.5)):
        assert [crossing.apply(stride) for stride in (1.0, 3.0, 9.0)] == [2.5, 2.5, 2.5]
    other = Bounds(floor=1.1, lower=2.0, upper=2.5)
    expected = Bounds(floor=1.2, lower=2.0, upper=2.5)
    assert bounds.intersect(other) == other.intersect(bounds) == expected


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    "limits", [(None, None), None, (1.5, None), (None, 2.5), (1.3, 1.9), (3.0, 3.0), (None, 1.0)]
)
def test_bounds_against_the_oracle(convention, limits):
    options = {"limits": limits, "convention": convention}
    for sizes in ((32, 32), (5, 5), (7, 20), (2, 9), (64, 3), (1, 6)):
        for strides in ((1.0, 1.0), (0.2, 2.2), (2.2, 60.0), (1.0,), (2.2,), (60.0,)):
            plan = make_plan(sizes, strides, **options)
            used = [
                axis.bounds.apply(strides[i % len(strides)]) for i, axis in enumerate(plan.axes)
            ]
            expected = oracle.used_strides(sizes, strides, **options)
            assert used == pytest.approx(expected, rel=1e-7 if convention == "tensorflow" else 0)


def test_floor_of_the_paper_puts_the_edge_bin_in_the_middle_of_the_ramp():
    for smoothness in SMOOTHNESS["paper"]:
        for size in range(1, 71):
            floor = CONVENTIONS["paper"].floor(size, smoothness)
            assert floor == (size / (size - smoothness) if size > smoothness else 1.0)
            if size % 2 == 0 and size > smoothness:
                value, slope = axis_mask("paper", size, floor, smoothness)
                assert value[-1] == pytest.approx(0.5, abs=1e-12)
                assert slope[-1] < 0


def test_bounds_of_the_nominal_convention_leave_a_gradient():
    nominal = CONVENTIONS["nominal"]
    for smoothness in SMOOTHNESS["nominal"]:
        assert nominal.bounds(1, smoothness, (None, None)) == Bounds(1.0, 1.0, 1.0)
        for size in range(2, 71):
            bounds = nominal.bounds(size, smoothness, (None, None))
            assert bounds == Bounds(1.0, 1.0, size / 2)
            _, slope = axis_mask("nominal", size, 1.0, smoothness)
            assert slope[-1] < 0
            value, slope = axis_mask("nominal", size, size / 2, smoothness)
            assert (value[1], value[2:].any()) == (0.5, False)
            assert slope[1] < 0


def test_floor_of_tensorflow_is_the_authors_in_float32():
    for smoothness in SMOOTHNESS["tensorflow"]:
        for size in range(2, 71):
            floor = CONVENTIONS["tensorflow"].floor(size, smoothness)
            written = oracle.tensorflow_written_back((size, size), 0.0, smoothness=smoothness)
            assert floor == (float(written) if size > smoothness else 1.0)


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("convention", CLEAN)
def test_mask_uses_the_bounded_stride_and_its_slope_passes_straight_through(name, convention):
    ops = registry.get(name).backend
    smoothness = 2.5 if convention == "paper" else 0.6
    bounds = Bounds(floor=1.31, lower=1.2, upper=3.7)
    for outside, used in ((0.2, 1.31), (-4.0, 1.31), (1.25, 1.31), (9.0, 3.7)):
        value, slope = axis_mask(convention, 32, outside, smoothness, bounds=bounds, ops=ops)
        expected_value, expected_slope = axis_mask(convention, 32, used, smoothness, ops=ops)
        np.testing.assert_array_equal(value, expected_value)
        np.testing.assert_array_equal(slope, expected_slope)
        assert np.any(slope < 0)


GRID = (*np.linspace(0.4, 6.0, 57).tolist(), 7.5, 9.0, 16.0, 35.0, 1000.0)


@pytest.mark.parametrize("limits", [(None, None), None])
@pytest.mark.parametrize(
    ("convention", "smoothness"), [(c, R) for c in CLEAN for R in SMOOTHNESS[c]]
)
def test_output_sizes_against_the_oracle(convention, smoothness, limits):
    settings = make_settings(
        axes=(-1,), smoothness=smoothness, limits=limits, convention=convention
    )
    options = {"smoothness": smoothness, "limits": limits, "convention": convention}
    for size in range(1, 71):
        for stride in GRID:
            plan = plan_diff_stride(settings, (-1,), (size,), (stride,), shared=True)
            expected = oracle.output_sizes((size,), stride, axes=(0,), **options)
            assert plan.output_sizes == expected, (size, stride)


def test_the_clip_of_tensorflow_passes_the_gradient_at_both_ends():
    value, slope = axis_mask("tensorflow", 33, 1.5, 4.0, is_last=True)
    assert (value[12], value[16]) == (1.0, 0.0)
    np.testing.assert_array_equal(np.flatnonzero(slope), np.arange(12, 17))


@pytest.mark.parametrize("cropping", [True, False])
@pytest.mark.parametrize("smoothness", SMOOTHNESS["tensorflow"])
def test_tensorflow_output_sizes_against_the_oracle(smoothness, cropping):
    options = {"smoothness": smoothness, "cropping": cropping, "convention": "tensorflow"}
    for size in range(2, 71):
        for strides in zip(GRID[::6], GRID[3::6], strict=False):
            plan = make_plan((size, 72 - size), strides, **options)
            expected = oracle.output_sizes((size, 72 - size), strides, **options)
            assert plan.output_sizes == expected, (size, strides)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_output_sizes_are_the_sizes_of_the_output(name):
    framework = registry.get(name)
    x = framework.backend.from_host(np.ones((2, 33, 28)), "float32")
    for convention in CONVENTIONS:
        for strides in (2.0, (1.3, 4.1), (0.5, 100.0)):
            for options in ({}, {"limits": (1.5, 2.5)}, {"cropping": False}, {"axes": (2, 1)}):
                options = {"convention": convention, **options}
                sizes = framework.functional.output_sizes(x.shape, strides, **options)
                y = framework.functional.diff_stride(x, strides, **options)
                axes = options.get("axes", (-2, -1))
                assert tuple(y.shape[axis] for axis in axes) == sizes
                assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize("limits", [(None, None), None])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_output_sizes_never_grow_with_the_stride(convention, limits):
    for smoothness in SMOOTHNESS[convention]:
        for size in (2, 3, 7, 16, 33, 64):
            sizes = [
                make_plan(
                    (size, size),
                    (stride, stride),
                    smoothness=smoothness,
                    limits=limits,
                    convention=convention,
                ).output_sizes
                for stride in np.linspace(0.5, 12, 116)
            ]
            for column in zip(*sizes, strict=True):
                assert all(before >= after for before, after in itertools.pairwise(column))


def tie_strides(convention, smoothness, size):
    """Yield (stride, M) where the size would change, up to one rounding of the stride."""
    if convention == "nominal":  # N/S + 3/4 = M: the tie belongs to the larger size
        for j in range(1, size + 1):
            yield size / (j - 0.75), j
        return
    for j in range(2, size // 2 + 2):  # q = j: the tie belongs to the smaller size
        if j > smoothness:
            yield size / (2 * (j - smoothness)), min(size, 2 * j)


@pytest.mark.parametrize(
    ("convention", "smoothness"), [(c, R) for c in CLEAN for R in SMOOTHNESS[c]]
)
def test_output_sizes_do_not_depend_on_rounding(convention, smoothness):
    chosen, ties = CONVENTIONS[convention], 0

    def output_size(size, stride):
        return chosen.output_size(size, smoothness, max(1.0, stride), True)

    for size in (*range(1, 71), 100, 127, 256, 500, 1023, 4096):
        strides = [(stride, None) for stride in np.linspace(1, 5, 101).tolist()]
        strides += tie_strides(convention, smoothness, size)
        for stride, at_tie in strides:
            expected = output_size(size, stride)
            assert output_size(size, float(np.float32(stride))) == expected, (size, stride)
            if at_tie is not None and stride >= 1.001:
                ties += 1
                assert expected == at_tie, (size, stride)
                # As far as float32 can be off.
                assert output_size(size, stride * (1 - 6e-8)) == expected
                assert output_size(size, stride * (1 + 6e-8)) == expected
    assert ties > 1000


@pytest.mark.parametrize(("smoothness", "size"), [(0.25, 64), (0.3, 20), (0.7, 33), (1.0, 9)])
def test_nominal_branch_does_not_depend_on_rounding(smoothness, size):
    # The ramps agree in value where they meet, not in slope.
    tie = smoothness * size / 2
    at_tie = axis_mask("nominal", size, tie, smoothness)[1]
    for stride in (float(np.float32(tie)), tie * (1 + 6e-8), tie * (1 - 6e-8)):
        slope = axis_mask("nominal", size, stride, smoothness)[1]
        np.testing.assert_allclose(slope, at_tie, rtol=1e-6)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_nominal_branch_changes_at_its_margin(name):
    ops = registry.get(name).backend
    size, rho, k = 20, 0.3, 3

    def slope(width):
        return axis_mask("nominal", size, rho * size / (2 * width), rho, ops=ops)[1][k]

    wide, narrow = -(2 * k - 1) / (rho * size), -size / (2 * 3.0**2)
    assert abs(wide - narrow) > 0.2
    assert slope(1 + 1e-3) == pytest.approx(wide, rel=1e-12)
    assert slope(1 - 0.9e-6) == pytest.approx(wide, rel=1e-12)
    assert slope(1 - 1.1e-6) == pytest.approx(narrow, rel=1e-5)


def size_at(settings, axis, stride):
    used = axis.bounds.apply(stride)
    return settings.convention.output_size(axis.size, settings.smoothness, used, axis.is_last)


def scanned_jumps(sizes):
    """Return, for each entry, the nearest positions before and after it with another value."""
    before = [None]
    for i in range(1, len(sizes)):
        before.append(before[-1] if sizes[i] == sizes[i - 1] else i - 1)
    after = [None]
    for i in reversed(range(len(sizes) - 1)):
        after.append(after[-1] if sizes[i] == sizes[i + 1] else i + 1)
    return list(zip(before, reversed(after), strict=True))


@pytest.mark.parametrize("limits", [(None, None), None, (1.2, 3.0)])
@pytest.mark.parametrize(
    ("convention", "smoothness"),
    quick_every(2, [(c, SMOOTHNESS[c][i]) for c in CONVENTIONS for i in (1, 2)]),
)
def test_size_jumps_against_a_dense_scan(convention, smoothness, limits):
    step = 1 / 512
    scan = np.arange(1, 8, step).tolist()
    jumps = 0
    for size in (2, 3, 7, 16, 28, 33, 64):
        plan = make_plan(
            (size, size), (1.0, 1.0), smoothness=smoothness, limits=limits, convention=convention
        )
        settings = make_settings(
            axes=(-2, -1), smoothness=smoothness, limits=limits, convention=convention
        )
        for axis in plan.axes:
            expected = scanned_jumps([size_at(settings, axis, stride) for stride in scan])
            for i in range(5, len(scan), 149):
                below, above = size_jumps(settings, axis, scan[i])
                # The scan brackets a jump: its last stride before it and its first one behind it.
                before, after = expected[i]
                if before is None:
                    assert below is None
                else:
                    assert scan[before] <= below < scan[before] + step
                    jumps += 1
                if after is None:
                    assert above is None or above > scan[-1]
                else:
                    assert scan[after] - step < above <= scan[after]
                    jumps += 1
    assert jumps > 20


@pytest.mark.parametrize("limits", [(None, None), None])
@pytest.mark.parametrize("convention", CONVENTIONS)
def test_size_jumps_are_exact_to_the_last_bit(convention, limits):
    settings = make_settings(axes=(-2, -1), limits=limits, convention=convention)
    for size in (16, 33, 224):
        for axis in make_plan((size, size), (1.0, 1.0), limits=limits, convention=convention).axes:
            for stride in (0.5, 1.3, 2.0, 2.7, 1000.0):
                used, here = axis.bounds.apply(stride), size_at(settings, axis, stride)
                below, above = size_jumps(settings, axis, stride)
                if below is not None:
                    assert axis.bounds.apply(below) == below < used
                    assert size_at(settings, axis, below) > here
                    assert size_at(settings, axis, math.nextafter(below, math.inf)) == here
                if above is not None:
                    assert axis.bounds.apply(above) == above > used
                    assert size_at(settings, axis, above) < here
                    assert size_at(settings, axis, math.nextafter(above, 0.0)) == here


def test_size_jumps_of_a_known_axis():
    # M = 2 ceil(16/S + 4 - guard): 24 between S = 2 and S = 16/7, both a little less by the guard.
    options = {"convention": "paper"}
    (axis,) = make_plan((32,), (2.0,), **options).axes
    below, above = size_jumps(make_settings(axes=(-1,), **options), axis, 2.0)
    assert below == pytest.approx(2.0, abs=3e-6)
    assert below < 2.0
    assert above == pytest.approx(16 / 7, abs=4e-6)
    assert above < 16 / 7
    # M = floor(32/S + 3/4 + guard): 16 from S = 32/16.25 to S = 32/15.25, both a little more by it.
    (axis,) = make_plan((32,), (2.0,)).axes
    below, above = size_jumps(make_settings(axes=(-1,)), axis, 2.0)
    assert below == pytest.approx(32 / 16.25, abs=2e-6)
    assert below > 32 / 16.25
    assert above == pytest.approx(32 / 15.25, abs=2e-6)
    assert above > 32 / 15.25


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_an_offset_is_added_to_the_size_of_every_stride(convention):
    for offsets in (-3, (2, -1)):
        options = {"axes": (-2, -1), "convention": convention}
        settings = make_settings(size_offset=offsets, **options)
        assert settings.size_offset == ((-3, -3) if offsets == -3 else offsets)
        for stride in (1.0, 2.0, 2.3, 9.0):
            own = make_plan((40, 41), (stride, stride), **options)
            plan = make_plan((40, 41), (stride, stride), size_offset=offsets, **options)
            for i, axis in enumerate(plan.axes):
                expected = own.axes[i].output_size + settings.size_offset[i]
                assert axis.output_size == max(1, min(axis.size, expected))
                # The sizes step where they did, but for those that 1 and N have made one.
                jumps = size_jumps(settings, axis, stride)
                for found, jump in zip(
                    jumps, size_jumps(make_settings(**options), own.axes[i], stride), strict=True
                ):
                    assert found == jump or axis.output_size in (1, axis.size)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"size_offset": 0.5}, TypeError, "size_offset must be an int or a sequence of ints"),
        ({"size_offset": (1, 2, 3)}, ValueError, "size_offset must be one int or one per axis"),
        ({"size_offset": 1, "cropping": False}, ValueError, "size_offset must be 0 with cropping"),
    ],
)
def test_bad_offsets(options, error, message):
    with pytest.raises(error, match=message):
        make_settings(axes=(-2, -1), **options)


@pytest.mark.parametrize("convention", ["nominal", "paper"])
@pytest.mark.parametrize("options", [{}, {"size_offset": -1}, {"limits": None}], ids=str)
def test_sizes_are_raised_to_a_multiple(convention, options):
    options = {"axes": (-2, -1), "convention": convention, **options}
    settings = make_settings(multiple_of=4, **options)
    for stride in (1.0, 1.3, 2.0, 2.3, 9.0):
        own = make_plan((40, 41), (stride, stride), **options)
        plan = make_plan((40, 41), (stride, stride), multiple_of=4, **options)
        assert plan.output_sizes == tuple(
            min(axis.size, 4 * math.ceil(axis.output_size / 4)) for axis in own.axes
        )
        for axis in plan.axes:
            for end, jump in zip((0.0, math.inf), size_jumps(settings, axis, stride), strict=True):
                if jump is not None:
                    at, before = (
                        make_plan((axis.size,) * 2, (s, s), multiple_of=4, **options).axes[-1]
                        for s in (jump, math.nextafter(jump, stride))
                    )
                    assert at.output_size != before.output_size
                    assert (jump < stride) == (end == 0.0)


def test_size_jumps_where_no_stride_changes_the_size():
    (axis,) = make_plan((32,), (2.0,), cropping=False).axes
    assert size_jumps(make_settings(axes=(-1,), cropping=False), axis, 2.0) == (None, None)
    for size, convention in ((8, "paper"), (2, "nominal")):
        (axis,) = make_plan((size,), (2.0,), convention=convention).axes
        settings = make_settings(axes=(-1,), convention=convention)
        assert size_jumps(settings, axis, 2.0) == (None, None)
    (axis,) = make_plan((32,), (2.0,), limits=(2.0, 2.0)).axes
    assert size_jumps(make_settings(axes=(-1,), limits=(2.0, 2.0)), axis, 2.0) == (None, None)
