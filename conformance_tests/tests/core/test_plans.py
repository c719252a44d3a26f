"""Plans: numbers alone, equal exactly when results are; the order of the axes."""

import copy
import dataclasses
import itertools
import math
import pickle

import numpy as np
import pytest
from support.core_plans import make_plan

from diffstride_core.arguments import axis_sizes, checked_sizes
from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import AxisPlan, order_of_application
from diffstride_core.planning import (
    plan_diff_stride,
    plan_pool,
    plan_resize,
)
from diffstride_core.settings import make_settings

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


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
        assert [plan.axes[i].axis for (i,) in plan.steps] == [-1, -2]
