"""The plans of a layer, and the warning where nothing can be cropped."""

import copy
import json
import math
import pickle
import warnings
from functools import reduce

import numpy as np
import pytest
from support.core_plans import SMOOTHNESS, make_plan, numpy

from diffstride_core import NothingToCropWarning, plan_cache
from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import Bounds
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import (
    plan_diff_stride,
)
from diffstride_core.settings import declared_bounds, make_settings

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


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
    for size in range(60, 80):
        cache.plan((size,))
    first = cache.refreshed((4.0,))
    made.clear()
    first.refreshed((5.0,))
    assert made == [(size,) for size in range(64, 80)]


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


def test_plans_of_values_that_are_not_the_caches():
    cache = PlanCache(make_settings(axes=(-1,)), 1, (2.0,))
    assert cache.plan_of((64,), None).output_sizes == (32,)
    assert cache.plan_of((48,), (4.0,)).output_sizes == (12,)
    assert cache.plan((48,)).output_sizes == (24,)
    assert [plan.axes[0].size for plan in cache.seen()] == [64, 48]
    with pytest.raises(ValueError, match="strides must be finite"):
        cache.plan_of((64,), (math.inf,))


def test_whether_a_cache_holds_a_plan():
    cache = PlanCache(make_settings(axes=(-1,)), 1, (2.0,))
    plan = PlanCache(cache.settings, 1, (2.01,)).plan((64,))
    assert cache.holds(plan)
    assert cache.seen() == ()
    assert not cache.refreshed((3.0,)).holds(plan)
    # However it has been used: other sizes do not matter.
    cache.plan((20,))
    assert cache.refreshed((2.1,)) != cache
    assert cache.refreshed((2.02,)).holds(plan)


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


@pytest.mark.parametrize(
    ("axes", "shape", "message"),
    [
        ((-2, -1), (3, 0, 8), "x must not be empty along the resized axes"),
        ((-2, -1), (8,), "axes must lie between -1 and 0"),
        ((-1, 2), (3, 8, 8), "axes must not name an axis twice"),
        ((0, 3), (3, 8, 8), "axes must lie between -3 and 2"),
    ],
)
def test_a_layer_refuses_shapes_that_its_axes_do_not_fit(axes, shape, message):
    plans = PlanCache(make_settings(axes=axes), 2, (2.0, 2.0))
    plans.plan((3, 9, 8, 8))
    with pytest.raises(ValueError, match=message):
        plans.plan(shape)
    assert len(plans.seen()) == 1


def test_axes_counted_from_the_front_share_the_plans_of_those_from_the_end():
    plans = PlanCache(make_settings(axes=(1, 2)), 2, (2.0, 2.0))
    assert plans.plan((3, 8, 9)) is plans.plan((5, 8, 9))
    assert [axis.axis for axis in plans.plan((3, 8, 9)).axes] == [-2, -1]
    assert [axis.axis for axis in plans.plan((3, 8, 9, 4)).axes] == [-3, -2]
