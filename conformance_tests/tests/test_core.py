"""Plans, bounds, sizes, masks and engines: what the core decides, apart from any one adapter."""

import copy
import dataclasses
import itertools
import json
import math
import pickle
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import reduce

import numpy as np
import pytest
import scipy.signal
from amounts import quick_every
from diffstride_backends import jax_backend, registry, torch_backend
from diffstride_conformance import oracle

from diffstride_core import NothingToCropWarning, bases, byte_cache, host, plan_cache
from diffstride_core.arguments import axis_sizes, checked_sizes
from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import AxisPlan, Bounds, order_of_application
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import (
    fft_from_size,
    plan_diff_stride,
    plan_pool,
    plan_resize,
    size_jumps,
)
from diffstride_core.settings import declared_bounds, make_settings

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

FRAMEWORKS = ("numpy", "torch")
CLEAN = ("paper", "nominal")
SMOOTHNESS = {
    "paper": (0.5, 1.0, 2.5, 4.0, 8.0),
    "nominal": (0.05, 0.25, 0.6, 1.0),
    "tensorflow": (1.0, 4.0, 6.5),
}


numpy = registry.get("numpy").functional
numpy_with_pullback = registry.get("numpy").with_pullback
OPS = registry.get("numpy").backend


def make_plan(sizes, strides, *, output_sizes=None, axes=None, **options):
    axes = tuple(range(-len(sizes), 0)) if axes is None else axes
    return plan_diff_stride(
        make_settings(axes=axes, **options),
        axes,
        tuple(sizes),
        None if strides is None else tuple(strides),
        shared=strides is not None and len(strides) == 1,
        output_sizes=output_sizes,
    )


def axis_mask(convention, size, stride, smoothness, *, is_last=False, bounds=None, ops=OPS):
    """Return the mask of an uncropped axis on the host."""
    axis = AxisPlan(-1, size, size, is_last, Bounds() if bounds is None else bounds)
    stride = ops.from_host(np.array(stride), "float64")
    mask = CONVENTIONS[convention].mask(ops, axis, smoothness, stride, stride)
    return ops.to_host(mask.value), ops.to_host(mask.dmask)


# --- Plans -------------------------------------------------------------------------------------


def leaves(value):
    """Yield everything that a plan is made of."""
    if isinstance(value, tuple):
        for entry in value:
            yield from leaves(entry)
    elif dataclasses.is_dataclass(value) or hasattr(value, "__dict__"):
        names = (
            [f.name for f in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else []
        )
        for name in dict.fromkeys([*names, *getattr(value, "__dict__", ())]):
            yield from leaves(getattr(value, name))
    else:
        yield value


def plans_from_numpy_numbers():
    """Yield plans whose settings were all given as NumPy scalars or arrays."""
    shape = np.zeros((3, 24, 17)).shape
    axes = make_settings(axes=np.array([-2, -1])).axes
    sizes = axis_sizes(axes, shape)
    strides = np.array([1.7, np.float64(2.3)])
    for convention in CONVENTIONS:
        options = {
            "axes": np.array([-2, -1]),
            "smoothness": np.float32(0.5),
            "limits": (np.float32(1.25), np.int64(3)),
            "convention": convention,
        }
        settings = make_settings(**options)
        for output_sizes in (None, checked_sizes(np.array([7, 6]), 2)):
            yield plan_diff_stride(
                settings, axes, sizes, tuple(strides), shared=False, output_sizes=output_sizes
            )
        yield plan_pool(settings, sizes, tuple(strides))
    yield plan_resize(axes, sizes, checked_sizes(np.array([30, 6]), 2), "ortho")


def test_plans_hold_python_numbers_alone():
    for plan in plans_from_numpy_numbers():
        found = list(leaves(plan))
        assert {type(leaf) for leaf in found} <= {int, float, bool}
        assert len(found) >= 2 + 2 * 8


def test_plans_are_frozen_and_hashable():
    for plan in plans_from_numpy_numbers():
        axis = plan.axes[0]
        assert hash(plan) == hash(copy.deepcopy(plan))
        assert plan == pickle.loads(pickle.dumps(plan))
        for frozen in (plan, axis, axis.bounds):
            for field in dataclasses.fields(frozen):
                with pytest.raises(dataclasses.FrozenInstanceError):
                    setattr(frozen, field.name, getattr(frozen, field.name))


@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize("limits", [(None, None), (1.4, 2.6), None])
def test_plans_are_equal_exactly_when_sizes_are(convention, limits):
    by_sizes = {}
    for stride in np.linspace(0.5, 40, 400):
        plan = make_plan((64, 33), (stride, 2.0), convention=convention, limits=limits)
        by_sizes.setdefault(plan.output_sizes, set()).add(plan)
    assert all(len(plans) == 1 for plans in by_sizes.values())
    assert len({hash(plan) for plans in by_sizes.values() for plan in plans}) == len(by_sizes)
    assert len(by_sizes) > 3


def test_plans_differ_where_results_do():
    plans = [
        make_plan((64, 33), (2.0, 2.0), **options)
        for options in (
            {},
            {"convention": "paper"},
            {"smoothness": 0.5},
            {"norm": "ortho"},
            {"limits": None},
            {"limits": (1.5, None)},
            {"method": "fft"},
            {"cropping": False},
            {"output_sizes": (9, 9)},
        )
    ]
    plans += [make_plan((64, 33), (2.0,)), make_plan((33, 64), (2.0, 2.0))]
    plans += [make_plan((64, 33), (2.0, 2.0), axes=(-1, -2))]
    plans += [plan_resize((-2, -1), (64, 33), (9, 9))]
    assert len(set(plans)) == len(plans)


# --- The order of the axes ---------------------------------------------------------------------


def multiply_adds(axes, order):
    sizes = [axis.size for axis in axes]
    total = 0
    for i in order:
        total += math.prod(sizes) * axes[i].output_size
        sizes[i] = axes[i].output_size
    return total


@pytest.mark.parametrize("rank", [2, 3, 4])
def test_order_costs_no_more_than_any_other(rank):
    rng = np.random.default_rng(1)
    improved = 0
    for _ in range(300):
        sizes, output_sizes = rng.integers(1, 40, size=(2, rank)).tolist()
        axes = [AxisPlan(i - rank, sizes[i], output_sizes[i]) for i in range(rank)]
        order = order_of_application(axes)
        costs = {o: multiply_adds(axes, o) for o in itertools.permutations(range(rank))}
        assert costs[order] == min(costs.values())
        improved += costs[order] < costs[tuple(range(rank))]
    assert improved > 50


def test_order_among_equals_starts_at_the_end():
    for axes in ((-2, -1), (-1, -2)):
        plan = make_plan((32, 32), (2.0, 2.0), axes=axes)
        assert [plan.axes[i].axis for i in plan.order] == [-1, -2]


# --- Bounds ------------------------------------------------------------------------------------


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


# --- Output sizes ------------------------------------------------------------------------------

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


def test_size_jumps_where_no_stride_changes_the_size():
    (axis,) = make_plan((32,), (2.0,), cropping=False).axes
    assert size_jumps(make_settings(axes=(-1,), cropping=False), axis, 2.0) == (None, None)
    for size, convention in ((8, "paper"), (2, "nominal")):
        (axis,) = make_plan((size,), (2.0,), convention=convention).axes
        settings = make_settings(axes=(-1,), convention=convention)
        assert size_jumps(settings, axis, 2.0) == (None, None)
    (axis,) = make_plan((32,), (2.0,), limits=(2.0, 2.0)).axes
    assert size_jumps(make_settings(axes=(-1,), limits=(2.0, 2.0)), axis, 2.0) == (None, None)


# --- The mask ----------------------------------------------------------------------------------

MASK_CASES = [
    (convention, smoothness, size, is_last)
    for convention in CLEAN
    for smoothness in SMOOTHNESS[convention][:4]
    for size in (4, 9, 16, 33)
    for is_last in (False, True)
]


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(("convention", "smoothness", "size", "is_last"), MASK_CASES)
def test_mask_against_the_oracle(convention, smoothness, size, is_last, name):
    ops = registry.get(name).backend
    for stride in (1.0, 1.37, 2.0, 2.9, 4.0, 8.0):
        value, slope = axis_mask(convention, size, stride, smoothness, is_last=is_last, ops=ops)
        mu, dmu = oracle.mask(
            size, stride, smoothness=smoothness, last=is_last, convention=convention
        )
        np.testing.assert_allclose(value, mu, rtol=0, atol=1e-14)
        np.testing.assert_allclose(slope, dmu, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("convention", "smoothness", "size", "is_last"), MASK_CASES)
def test_mask_derivative_against_central_differences(convention, smoothness, size, is_last):
    step, compared, in_ramp = 1e-6, 0, 0
    for stride in np.random.default_rng(3).uniform(1.05, 5, size=25).tolist():
        if convention == "nominal" and abs(smoothness * size / (2 * stride) - 1) < 1e-3:
            continue
        v, _ = oracle.ramp(size, stride, smoothness=smoothness, last=is_last, convention=convention)
        away = (np.abs(v) > 3 * oracle.TIE) & (np.abs(v - 1) > 3 * oracle.TIE)
        _, slope = axis_mask(convention, size, stride, smoothness, is_last=is_last)
        there, back = (
            axis_mask(convention, size, stride + change, smoothness, is_last=is_last)[0]
            for change in (step, -step)
        )
        estimate = (there - back) / (2 * step)
        np.testing.assert_allclose(slope[away], estimate[away], rtol=1e-6, atol=1e-8)
        compared += np.sum(away)
        in_ramp += np.sum(slope[away] < 0)
    assert compared >= 25
    assert in_ramp > 0


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("convention", CLEAN)
def test_mask_derivative_at_ties_is_the_right_hand_one(convention, name):
    ops, step, ties = registry.get(name).backend, 1e-6, 0
    for size in range(1, 65):
        for stride in (1.0, 1.25, 1.6, 2.0, 2.5, 4.0, 8.0):
            for smoothness in (1.0, 4.0) if convention == "paper" else (0.25, 0.5, 0.75, 1.0):
                if size == 1 and stride > 1:
                    continue
                # There the derivative is the wide ramp's, which holds to the left.
                if convention == "nominal" and abs(smoothness * size / (2 * stride) - 1) < 1e-3:
                    continue
                value, slope = axis_mask(convention, size, stride, smoothness, ops=ops)
                ahead, _ = axis_mask(convention, size, stride + step, smoothness, ops=ops)
                estimate = (ahead - value) / step
                scale = size / (2 * stride)
                np.testing.assert_allclose(slope, estimate, rtol=0, atol=1e-4 * (1 + scale))
                v, _ = oracle.ramp(size, stride, smoothness=smoothness, convention=convention)
                ties += np.sum(np.abs(v - 1) < 1e-12)
    assert ties > 100


@pytest.mark.parametrize("value", [2.0, 1.37, 4.0, 0.5, 50.0])
@pytest.mark.parametrize("convention", CLEAN)
def test_what_autodiff_sees_of_the_mask_is_its_slope(convention, value):
    torch = torch_backend.torch
    ops = torch_backend.BACKEND
    bounds = CONVENTIONS[convention].bounds(32, 0.5, (None, None))
    axis = AxisPlan(-1, 32, 32, True, bounds)
    stride = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    mask = CONVENTIONS[convention].mask(ops, axis, 0.5, stride, stride)
    for k in range(17):
        (gradient,) = torch.autograd.grad(mask.value[k], stride, retain_graph=True)
        assert gradient.item() == pytest.approx(mask.dmask[k].item(), rel=1e-12, abs=1e-15)


# --- What the operators leave as it is ---------------------------------------------------------


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_the_paper_convention_is_the_identity_at_stride_one_without_bounds(method):
    options = {"limits": None, "convention": "paper", "method": method}
    rng = np.random.default_rng(4)
    for size in range(1, 41):
        x = rng.standard_normal((2, size, 3))
        for stride in (1.0, 0.5):
            y = numpy.diff_stride(x, stride, axes=(1,), **options)
            np.testing.assert_allclose(y, x, rtol=0, atol=1e-14 * np.max(np.abs(x)) * 10)
    x = rng.standard_normal((9, 16, 7))
    y = numpy.diff_stride(x, (1.0, 1.0, 1.0), axes=(0, 2, 1), **options)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_the_nominal_convention_filters_at_stride_one(method):
    options = {"axes": -1, "convention": "nominal", "method": method}
    np.testing.assert_allclose(
        numpy.diff_stride(np.array([1.7]), 1.0, **options), [1.7], rtol=1e-15
    )
    x = np.array([1.0, -1.0])
    np.testing.assert_allclose(numpy.diff_stride(x, 1.0, **options), x / 2, rtol=1e-15)
    # N = 32: q = 16, R = 4, mu(16) = 1/8 and mu(12) = 1.
    n = np.arange(32)
    for k, gain in ((16, 1 / 8), (15, 3 / 8), (13, 7 / 8), (12, 1.0), (3, 1.0)):
        x = np.cos(2 * np.pi * k * n / 32)
        y = numpy.diff_stride(x, 1.0, **options)
        np.testing.assert_allclose(y, gain * x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [None, 8])
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_beyond_the_last_frequency_the_nominal_convention_keeps_the_mean(method, sizes):
    # N/(2S) < 1/2: nothing but frequency 0 is alive, and it has no derivative.
    x = np.random.default_rng(4).standard_normal((3, 16))
    options = {"axes": -1, "limits": None, "convention": "nominal", "method": method}
    for stride in (17.0, 40.0, 1000.0):
        y, pullback = numpy_with_pullback.diff_stride(x, stride, sizes=sizes, **options)
        assert y.shape == (3, sizes or 1)
        mean = np.broadcast_to(np.mean(x, axis=1, keepdims=True), y.shape)
        np.testing.assert_allclose(y, mean, rtol=0, atol=1e-15)
        dx, dstride = pullback(np.ones_like(y))
        np.testing.assert_allclose(dx, np.full_like(x, y.shape[1] / 16), rtol=1e-14)
        assert dstride == 0


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("convention", CLEAN)
def test_constants_stay(convention, method, name):
    framework = registry.get(name)
    options = {"convention": convention, "method": method}
    for size in range(1, 41):
        x = framework.backend.from_host(np.full((size, 2), 1.5), "float64")
        for stride in (1.3, 2.0, 2.7, 1000.0):
            y = framework.functional.diff_stride(x, stride, axes=(0,), **options)
            y = framework.backend.to_host(y)
            np.testing.assert_allclose(y, np.full(y.shape, 1.5), rtol=1e-14)
    x = framework.backend.from_host(np.full((20, 31), 1.5), "float64")
    for norm, exponent in (("forward", 0), ("ortho", 0.5), ("backward", 1)):
        y = framework.backend.to_host(
            framework.functional.diff_stride(x, (2.0, 3.1), norm=norm, **options)
        )
        ratio = 20 * 31 / y.size
        assert ratio > 1
        np.testing.assert_allclose(y, 1.5 * ratio**exponent, rtol=1e-13)


@pytest.mark.parametrize("sizes", [None, (7, 4, 9)])
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_nominal_convention_is_equivariant_under_transposition(method, sizes):
    rng = np.random.default_rng(5)
    x, strides = rng.standard_normal((12, 17, 14)), np.array([2.1, 1.4, 2.9])
    options = {"axes": (0, 1, 2), "convention": "nominal", "method": method}
    y, pullback = numpy_with_pullback.diff_stride(x, strides, sizes=sizes, **options)
    g = rng.standard_normal(y.shape)
    dx, dstrides = pullback(g)
    for order in itertools.permutations(range(3)):
        moved_sizes = sizes and tuple(sizes[i] for i in order)
        moved, moved_pullback = numpy_with_pullback.diff_stride(
            x.transpose(order), strides[list(order)], sizes=moved_sizes, **options
        )
        moved_dx, moved_dstrides = moved_pullback(np.ascontiguousarray(g.transpose(order)))
        np.testing.assert_allclose(moved, y.transpose(order), rtol=0, atol=1e-13)
        np.testing.assert_allclose(moved_dx, dx.transpose(order), rtol=0, atol=1e-13)
        np.testing.assert_allclose(moved_dstrides, dstrides[list(order)], rtol=1e-12)


def test_paper_convention_lets_the_last_axis_keep_one_frequency_more():
    # Eq. 4: the ramp of the last axis given is one frequency further out.
    x, options = np.random.default_rng(5).standard_normal((32, 32)), {"convention": "paper"}
    y = numpy.diff_stride(x, 2.0, **options)
    swapped = numpy.diff_stride(x.T, 2.0, axes=(-1, -2), **options).T
    np.testing.assert_allclose(swapped, y, rtol=0, atol=1e-14)
    assert np.max(np.abs(numpy.diff_stride(x.T, 2.0, **options).T - y)) > 1e-3


# --- Ties: the same gradient everywhere --------------------------------------------------------


@pytest.mark.parametrize("limits", [(None, None), None])
@pytest.mark.parametrize("convention", CLEAN)
def test_stride_gradients_agree_across_frameworks_at_ties(convention, limits):
    cases = [((2, size), (s,)) for size in range(1, 34) for s in (1.0, 2.0, 4.0)]
    cases += [((2, 64), (s,)) for s in (1.0, 1.6, 2.0, 4.0, 8.0)]
    cases += [((size, 16), (2.0, s)) for size in (8, 9, 32) for s in (2.0, 4.0)]
    for shape, strides in cases:
        options = {"axes": (1,) if len(strides) == 1 else (0, 1)}
        options |= {"convention": convention, "limits": limits}
        rng = np.random.default_rng(shape)
        x = rng.standard_normal(shape)
        sizes = oracle.output_sizes(shape, strides, **options)
        g = rng.standard_normal((*shape[: -len(sizes)], *sizes))
        reference = oracle.diff_stride(x, strides, g, **options)
        limit = 1e-14 * reference.bound
        for method in ("matmul", "fft"):
            found = []
            for framework in map(registry.get, FRAMEWORKS):
                arrays = [
                    framework.backend.from_host(np.array(values), "float64")
                    for values in (x, strides, g)
                ]
                _, pullback = framework.with_pullback.diff_stride(
                    *arrays[:2], method=method, **options
                )
                found.append(framework.backend.to_host(pullback(arrays[2])[1]))
            assert np.all(np.abs(found[0] - found[1]) <= limit), (shape, strides, method)
            for dstrides in found:
                error = np.abs(dstrides - reference.dstrides)
                assert np.all(error <= limit), (shape, strides, method)


# --- Engines -----------------------------------------------------------------------------------


@pytest.mark.parametrize("convention", CLEAN)
def test_engines_agree(convention):
    rng = np.random.default_rng(6)
    for _ in range(60):
        rank = int(rng.integers(1, 4))
        shape = rng.integers(1, 30, size=rank).tolist()
        strides = rng.uniform(1, 5, size=rank)
        options = {"axes": tuple(rng.permutation(rank).tolist()), "convention": convention}
        if rng.random() < 0.3:
            options["sizes"] = rng.integers(1, 40, size=rank).tolist()
        x = rng.standard_normal(shape)
        results = []
        for method in ("matmul", "fft"):
            y, pullback = numpy_with_pullback.diff_stride(x, strides, method=method, **options)
            g = np.cos(np.arange(y.size)).reshape(y.shape)
            results.append((y, *pullback(g)))
        for by_matrix, by_fft in zip(*results, strict=True):
            scale = max(1e-3, np.max(np.abs(by_matrix)))
            np.testing.assert_allclose(by_fft, by_matrix, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("use_fft", [False, True])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_spectral_resize_against_scipy(name, use_fft):
    framework = registry.get(name)
    rng = np.random.default_rng(7)
    for size in range(1, 21):
        x = rng.standard_normal((2, size, 3))
        array = framework.backend.from_host(x, "float64")
        for target in range(1, 21):
            plan = plan_resize((-2,), (size,), (target,))
            axes = (dataclasses.replace(plan.axes[0], use_fft=use_fft),)
            y = framework.functional.resample(dataclasses.replace(plan, axes=axes), array)
            expected = scipy.signal.resample(x, target, axis=1)
            np.testing.assert_allclose(framework.backend.to_host(y), expected, rtol=0, atol=1e-13)


def test_auto_chooses_the_engine_by_the_longer_side_of_each_axis():
    height, width = fft_from_size(-2), fft_from_size(-1)
    for sizes, expected in (
        ((height, width - 1), [True, False]),
        ((height - 1, width), [False, True]),
    ):
        plan = make_plan(sizes, (2.0, 2.0))
        assert [axis.use_fft for axis in plan.axes] == expected
        plan = plan_resize((-2, -1), (10, 10), sizes)
        assert [axis.use_fft for axis in plan.axes] == expected
    for method, expected in (("matmul", False), ("fft", True)):
        plan = make_plan((height, 8), (2.0, 2.0), method=method)
        assert {axis.use_fft for axis in plan.axes} == {expected}
    plan = make_plan((height, width), (2.0, 2.0), convention="tensorflow")
    assert not any(axis.use_fft for axis in plan.axes)


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((2, 21, 18), {"method": "fft"}, set()),
        ((2, 21, 18), {"method": "matmul"}, {21, 18}),
        ((fft_from_size(-2), 18), {}, {18}),
        ((fft_from_size(-2), fft_from_size(-1)), {}, set()),
    ],
)
def test_fft_axes_build_no_table(monkeypatch, name, shape, options, expected):
    framework = registry.get(name)
    asked = set()

    def recorded(basis, original=bases.tables):
        asked.add(basis.size)
        return original(basis)

    monkeypatch.setattr(bases, "tables", recorded)
    for cache in (host.factors, torch_backend._factors):
        cache.cache_clear()
    x = framework.backend.from_host(np.ones(shape), "float64")
    y, pullback = framework.with_pullback.diff_stride(x, (2.0, 2.0), **options)
    pullback(y)
    assert asked == expected


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_operators_are_made_anew_only_for_new_strides(monkeypatch, name):
    framework = registry.get(name)
    made = []

    def recorded(self, basis, like, original=host._HostOps.tables):
        made.append(basis.size)
        return original(self, basis, like)

    monkeypatch.setattr(host._HostOps, "tables", recorded)
    for cache in (host.factors, torch_backend._factors):
        cache.cache_clear()
    x = framework.backend.from_host(np.ones((3, 40, 36)), "float64")
    strides = framework.backend.from_host(np.array([2.0, 1.5]), "float64")
    for _ in range(3):
        y, pullback = framework.with_pullback.diff_stride(x, strides)
        pullback(y)
    assert sorted(made) == [36, 36, 40, 40]  # matrix and ramp of each axis
    framework.with_pullback.diff_stride(x, strides * 1.001)
    assert sorted(made) == [36, 36, 36, 40, 40, 40]


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_operators_are_kept_within_bytes(name, monkeypatch):
    functional, backend = registry.get(name).functional, registry.get(name).backend
    x, weight = (backend.from_host(np.ones(s), "float32") for s in ((1, 1, 1000), (1, 1, 3)))
    for cache in (host.factors, torch_backend._factors):
        cache.cache_clear()
    kept = (host.factors, torch_backend._factors) if name == "torch" else (host.factors,)
    for cache in kept:
        assert cache.most_bytes <= 2**26
        monkeypatch.setattr(cache, "most_bytes", 2**24)
    for step in range(5):
        functional.conv_diff_stride(x, weight, 2 + 1e-4 * step, method="fused")
        for cache in kept:
            assert 2**22 < cache.nbytes < 2**24
    assert len(host.factors) < 5


def test_tables_are_kept_but_not_for_ever():
    basis = bases.AxisBasis(13, 6, bases.half_spectrum)
    assert bases.tables(basis)[0] is bases.tables(dataclasses.replace(basis))[0]

    torch = torch_backend.torch
    float64, cpu = torch.float64, torch.device("cpu")
    for cache, rest in (
        (bases.tables, ()),
        (torch_backend._tables, (float64, cpu)),
        (jax_backend._tables, ("float64",)),
    ):
        assert cache.most_bytes <= 2**26
        cache.cache_clear()
        for size in range(1, 2 * cache.most_entries):
            cache(bases.AxisBasis(size, 1, first_bin), *rest)
        assert len(cache) == cache.most_entries
        cache.cache_clear()


def first_bin(size, output_size):
    zero = np.zeros(1, np.int64)
    return zero, zero, np.ones(1)


# --- Caches bounded by bytes --------------------------------------------------------------------


def counted_cache(**limits):
    calls = []

    def function(size, name="a"):
        calls.append((size, name))
        return np.zeros(size, np.uint8), (np.zeros(size, np.uint8),)

    return byte_cache.ByteBoundCache(function, **limits), calls


def test_a_cache_keeps_what_was_used_last_within_its_bytes():
    cache, calls = counted_cache(most_bytes=100)
    first = cache(20)
    assert cache(20) is first
    assert cache(20, "b") is not first
    assert (len(cache), cache.nbytes) == (2, 80)
    cache(20)
    cache(10)
    assert (len(cache), cache.nbytes) == (3, 100)
    cache(11)  # in place of (20, "b"), used least recently
    assert (len(cache), cache.nbytes) == (3, 82)
    assert cache(20) is first
    assert calls == [(20, "a"), (20, "b"), (10, "a"), (11, "a")]


def test_a_cache_keeps_nothing_that_is_larger_than_all_it_may():
    cache, calls = counted_cache(most_bytes=100)
    kept = cache(50)
    assert cache(51) is not cache(51)
    assert cache(50) is kept
    assert calls == [(50, "a"), (51, "a"), (51, "a")]
    assert cache.nbytes == 100


def test_a_cache_bounds_its_entries_and_can_be_cleared():
    cache, calls = counted_cache(most_entries=3)
    for size in range(5):
        cache(size)
    assert len(cache) == 3
    cache.cache_clear()
    assert (len(cache), cache.nbytes) == (0, 0)
    cache(4)
    assert len(calls) == 6


def test_a_cache_counts_arrays_once_and_all_of_what_a_view_keeps():
    array = np.zeros(30, np.uint8)
    cache = byte_cache.ByteBoundCache(lambda: (array, array, (array[:3], array[3:][::2])))
    cache()
    assert cache.nbytes == 30


def test_a_function_with_a_cache_is_copied_and_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(bases.tables)) is copy.deepcopy(bases.tables) is bases.tables


def test_a_cache_in_threads():
    cache, _ = counted_cache(most_bytes=400)

    def work(seed):
        for size in np.random.default_rng(seed).integers(1, 40, 300).tolist():
            assert len(cache(size)[0]) == size

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert cache.nbytes == sum(size for _, _, size in cache._entries.values()) <= 400


# --- The warning -------------------------------------------------------------------------------


def warned_axes(sizes, strides=None, **options):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        make_plan(sizes, strides or (2.0,) * len(sizes), **options)
    assert {warning.category for warning in caught} <= {NothingToCropWarning}
    messages = [str(warning.message) for warning in caught]
    return [
        axis
        for axis, size in zip(range(-len(sizes), 0), sizes, strict=True)
        for message in messages
        if f"axis {axis} of size {size} can never be cropped" in message
    ]


def test_warning_is_a_user_warning_of_its_own():
    assert issubclass(NothingToCropWarning, UserWarning)
    assert NothingToCropWarning is not UserWarning
    with pytest.warns(NothingToCropWarning, match=r"axis -1 of size 8 .* smoothness 4 .*paper"):
        numpy.diff_stride(np.ones((32, 8)), 2.0, convention="paper")


@pytest.mark.parametrize("smoothness", [0.3, 1.0, 2.5, 3.0, 4.0, 4.5, 8.0])
def test_warning_where_the_papers_ramp_is_too_wide(smoothness):
    options = {"smoothness": smoothness, "convention": "paper"}
    for size in range(1, 41):
        expected = 2 * math.ceil(1 + smoothness) >= size
        for stride in (1.0, 2.0, 1000.0):
            assert warned_axes((size,), (stride,), **options) == [-1] * expected
        assert warned_axes((size, 64), **options) == [-2] * expected
        assert warned_axes((64, size), **options) == [-1] * expected
        assert warned_axes((size, size), (2.0,), **options) == [-2, -1] * expected
        for quiet in ({"output_sizes": (1,)}, {"cropping": False}):
            assert warned_axes((size,), **options, **quiet) == []


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_warning_exactly_where_no_stride_crops(convention):
    for smoothness in SMOOTHNESS[convention]:
        options = {"smoothness": smoothness, "convention": convention}
        for size in range(2, 41):
            sizes = (size, 64) if convention == "tensorflow" else (size,)
            least = make_plan(sizes, (1000.0,) * len(sizes), **options).output_sizes[0]
            assert bool(warned_axes(sizes, **options)) == (least == size), (smoothness, size)


# --- The plans of a layer ----------------------------------------------------------------------


class Strides:
    """Stride parameters that count how often they are read."""

    def __init__(self, *values):
        self.values = values
        self.reads = 0

    def read(self):
        self.reads += 1
        return self.values


def test_plan_cache_reads_the_strides_once_per_change():
    cache, strides = PlanCache(make_settings(axes=(-1,)), 1), Strides(2.0)
    for shape in ((3, 64), (3, 64), (33,), (3, 64)):
        cache.refresh("first", strides.read)
        assert cache.plan(shape).axes[0].size == shape[-1]
    assert strides.reads == 1
    strides.values = (4.0,)
    cache.refresh("first", strides.read)
    assert strides.reads == 1
    assert cache.plan((64,)).output_sizes == (32,)
    cache.refresh("second", strides.read)
    assert strides.reads == 2
    cache.refresh("second", strides.read)
    assert strides.reads == 2
    assert cache.plan((64,)).output_sizes == (16,)
    # Back to a token that was seen before: only the last one counts.
    cache.refresh("first", strides.read)
    assert strides.reads == 3


def test_plan_cache_remakes_the_plans_of_all_sizes_seen(monkeypatch):
    made = []

    def recorded(settings, axes, sizes, strides, original=plan_diff_stride, **options):
        made.append((sizes, strides))
        return original(settings, axes, sizes, strides, **options)

    monkeypatch.setattr(plan_cache, "plan_diff_stride", recorded)
    cache = PlanCache(make_settings(axes=(-2, -1)), 2)
    cache.refresh(1, Strides(2.0, 3.0).read)
    assert made == []
    first = {shape: cache.plan(shape) for shape in ((64, 64), (2, 64, 64), (64, 32), (5, 32, 64))}
    assert made == [(sizes, (2.0, 3.0)) for sizes in ((64, 64), (64, 32), (32, 64))]
    assert first[64, 64] is first[2, 64, 64] is cache.plan((64, 64))

    made.clear()
    cache.refresh(1, Strides(4.0, 5.0).read)
    assert made == []
    cache.refresh(2, Strides(4.0, 5.0).read)
    assert made == [(sizes, (4.0, 5.0)) for sizes in ((64, 64), (64, 32), (32, 64))]
    made.clear()
    for shape, before in first.items():
        assert cache.plan(shape) == make_plan(shape[-2:], (4.0, 5.0))
        assert cache.plan(shape) != before
    assert made == []


def test_plan_cache_keeps_16_plans_at_most(monkeypatch):
    made = []

    def recorded(settings, axes, sizes, strides, original=plan_diff_stride, **options):
        made.append(sizes)
        return original(settings, axes, sizes, strides, **options)

    monkeypatch.setattr(plan_cache, "plan_diff_stride", recorded)
    cache = PlanCache(make_settings(axes=(-1,)), 1)
    cache.refresh(1, Strides(2.0).read)
    for size in range(20, 60):
        assert cache.plan((size,)).axes[0].size == size
    assert made == [(size,) for size in range(20, 60)]
    cache.refresh(1, Strides(2.0).read)
    made.clear()
    cache.refresh(2, Strides(3.0).read)
    assert made == [(size,) for size in range(44, 60)]
    made.clear()
    cache.plan((59,))
    assert made == []
    assert cache.plan((20,)).output_sizes == make_plan((20,), (3.0,)).output_sizes
    assert made == [(20,)]


def test_plan_cache_bounds_hold_for_all_sizes_seen_since_the_last_projection():
    settings = make_settings(axes=(-2, -1), limits=(1.1, 20.0), convention="paper")
    cache = PlanCache(settings, 2)
    declared = declared_bounds(settings)
    assert declared == Bounds(floor=1.0, lower=1.1, upper=20.0)
    assert cache.bounds() == (declared, declared)
    assert cache.project((0.3, 50.0)) == (1.1, 20.0)
    cache.refresh(1, Strides(2.0, 2.0).read)
    for shape in ((64, 30), (16, 100), (3, 40, 40)):
        cache.plan(shape)
    floors = 16 / 12, 30 / 26
    assert cache.bounds() == (Bounds(floors[0], 1.1, 8.0), Bounds(floors[1], 1.1, 15.0))
    assert cache.project((0.3, 50.0)) == (floors[0], 15.0)
    assert cache.project((50.0, 0.3)) == (8.0, floors[1])
    assert cache.project((2.5, 3.5)) == (2.5, 3.5)
    # Sizes that are not seen again bound nothing any more, be it more tightly or less.
    cache.plan((40, 100))
    assert cache.bounds() == (Bounds(40 / 36, 1.1, 20.0), Bounds(100 / 96, 1.1, 20.0))
    assert cache.project((0.3, 50.0)) == (40 / 36, 20.0)
    cache.plan((40, 100))
    cache.plan((64, 30))
    assert cache.project((50.0, 50.0)) == (20.0, 15.0)


@pytest.mark.parametrize("project_first", [True, False])
def test_plan_cache_bounds_survive_new_strides(project_first):
    cache = PlanCache(make_settings(axes=(-1,), convention="paper"), 1, (2.0,))
    cache.plan((64,))
    cache.project((2.0,))
    cache.plan((16,))
    expected = (Bounds(16 / 12, 1.0, 8.0),)
    if project_first:
        cache.project((2.0,))
    other = cache.refreshed((3.0,))
    cache.update(None, (4.0,))
    for each in (cache, other):
        assert each.bounds() == expected
        each.plan((64,))
        # The size seen last counts beside the new one unless a projection came between them.
        assert each.bounds() == ((Bounds(64 / 60, 1.0, 32.0),) if project_first else expected)


def test_plan_cache_equality_neither_asks_for_nor_changes_bounds():
    one, other = (PlanCache(make_settings(axes=(-1,)), 1, (2.0,)) for _ in range(2))
    one.plan((64,))
    other.plan((16,))
    bounds = one.bounds(), other.bounds()
    assert bounds[0] != bounds[1]
    assert one == other  # Which compares plans for either's sizes.
    assert (one.bounds(), other.bounds()) == bounds
    one.project((2.0,))
    assert one == other
    assert hash(one) == hash(other)
    assert (one.bounds(), other.bounds()) == bounds


def test_plan_cache_gives_up_first_what_bounds_nothing():
    cache = PlanCache(make_settings(axes=(-1,), convention="paper"), 1, (2.0,))
    for size in range(20, 60):
        cache.plan((size,))
    cache.project((2.0,))
    cache.plan((20,))  # the plan made first
    for size in range(60, 64):
        cache.plan((size,))
    cache.refresh(None, lambda: (2.0,))
    assert cache.bounds() == (Bounds(20 / 16, 1.0, 10.0),)


def test_plan_cache_bounds_of_a_shared_stride():
    cache = PlanCache(make_settings(axes=(-2, -1), convention="paper"), 1)
    cache.refresh(1, Strides(2.0).read)
    cache.plan((64, 20))
    cache.plan((16, 50))
    assert set(cache.bounds()) == {Bounds(16 / 12, 1.0, 8.0)}
    assert cache.project((0.5,)) == (16 / 12,)
    assert cache.project((9.0,)) == (8.0,)


def test_plan_cache_bounds_switched_off():
    cache = PlanCache(make_settings(axes=(-1,), limits=None), 1)
    cache.refresh(1, Strides(2.0).read)
    cache.plan((64,))
    assert cache.bounds() == (Bounds(),)
    assert cache.project((0.5,)) == (1.0,)
    assert cache.project((500.0,)) == (500.0,)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda cache: pickle.loads(pickle.dumps(cache))],
    ids=["copy", "deepcopy", "pickle"],
)
def test_plan_cache_copies_start_empty(copied):
    # A token that means "unchanged" here may be any other parameter's in a copy.
    cache = PlanCache(make_settings(axes=(-1,), smoothness=0.5), 1)
    cache.refresh("token", Strides(2.0).read)
    cache.plan((64,))
    cache.project((2.0,))
    other, strides = copied(cache), Strides(4.0)
    assert other.bounds() == (Bounds(),) != cache.bounds()
    other.refresh("token", strides.read)
    assert strides.reads == 1
    assert other.plan((64,)) == make_plan((64,), (4.0,), smoothness=0.5)
    assert cache.plan((64,)) == make_plan((64,), (2.0,), smoothness=0.5)


def test_plan_cache_copies_know_the_strides():
    cache = PlanCache(make_settings(axes=(-1,)), 1, (2.0,))
    cache.refresh("token", Strides(4.0).read)
    assert copy.deepcopy(cache).plan((64,)).output_sizes == cache.plan((64,)).output_sizes


def test_plan_caches_are_equal_while_no_size_changes():
    cache = PlanCache(make_settings(axes=(-2, -1)), 2, (2.0, 3.0))
    close, far = cache.refreshed((2.001, 3.001)), cache.refreshed((2.5, 3.0))
    assert cache.refreshed((2.0, 3.0)) is cache
    assert cache == close == far  # no size seen yet that could differ
    assert hash(cache) == hash(far)
    close.plan((64, 64))
    assert cache == close != far
    # Sizes are seen by whoever is compared; those of a function compiled before count for ever.
    assert cache.plan((64, 64)).output_sizes == (32, 22)
    later = far.refreshed((2.0, 3.0))
    assert cache == later
    far.plan((20, 20))
    assert far == far.refreshed((2.5001, 3.0))
    assert cache != PlanCache(make_settings(axes=(-2, -1)), 1, (2.0,))
    assert cache != PlanCache(make_settings(axes=(-2, -1), norm="ortho"), 2, (2.0, 3.0))
    assert cache != (2.0, 3.0)


def test_refreshed_leaves_the_cache_as_it_is():
    cache = PlanCache(make_settings(axes=(-1,)), 1, (2.0,))
    before = cache.plan((64,))
    other = cache.refreshed((4.0,))
    assert cache.plan((64,)) is before
    assert other.bounds() == cache.bounds() != (declared_bounds(cache.settings),)
    assert other.plan((64,)).output_sizes == (16,)
    with pytest.raises(ValueError, match="strides must be finite"):
        cache.refreshed((math.nan,))


def test_settings_as_plain_values():
    for options in (
        {"axes": -1},
        {"axes": (1, 0), "limits": (None, 3), "smoothness": 1, "norm": "ortho"},
        {"axes": (-2, -1), "limits": None, "convention": "paper", "cropping": False},
        {"axes": (-2, -1), "convention": "tensorflow", "method": "matmul"},
    ):
        settings = make_settings(**options)
        plain = json.loads(json.dumps(settings.arguments()))
        assert make_settings(**plain) == settings


def test_plan_cache_without_values():
    cache = PlanCache(make_settings(axes=(-1,)), 1)
    for _ in range(2):
        with pytest.raises(ValueError, match="sizes must be given where the strides are traced"):
            cache.plan((64,))
        cache.refresh("traced", lambda: None)
    uncropped = PlanCache(make_settings(axes=(-1,), cropping=False), 1)
    uncropped.refresh("traced", lambda: None)
    assert uncropped.plan((64,)).output_sizes == (64,)


def test_plan_cache_token_none_is_never_the_same():
    cache, strides = PlanCache(make_settings(axes=(-1,)), 1), Strides(2.0)
    cache.refresh(None, strides.read)
    assert cache.plan((64,)).output_sizes == (32,)
    strides.values = (4.0,)
    cache.refresh(None, strides.read)
    assert strides.reads == 2
    assert cache.plan((64,)).output_sizes == (16,)


def test_plan_cache_refuses_strides_that_are_not_finite_until_they_are():
    cache, strides = PlanCache(make_settings(axes=(-1,)), 1), Strides(2.0)
    cache.refresh(1, strides.read)
    cache.plan((64,))
    strides.values = (math.nan,)
    for _ in range(2):
        with pytest.raises(ValueError, match=r"strides must be finite, got \(nan,\)"):
            cache.refresh(2, strides.read)
    strides.values = (4.0,)
    cache.refresh(2, strides.read)
    assert cache.plan((64,)).output_sizes == (16,)


def test_shared_bounds_are_the_intersection():
    settings = make_settings(axes=(-2, -1), convention="paper")
    each = [settings.convention.bounds(size, 4.0, (None, None)) for size in (64, 20)]
    plan = make_plan((64, 20), (2.0,), convention="paper")
    assert [axis.bounds for axis in plan.axes] == [reduce(Bounds.intersect, each)] * 2


def test_sizes_contradict_masking_alone():
    settings = make_settings(axes=-1, cropping=False)
    with pytest.raises(ValueError, match=r"sizes must not be given with cropping=False.*\(10,\)"):
        plan_diff_stride(settings, (-1,), (32,), (2.0,), shared=True, output_sizes=(10,))
