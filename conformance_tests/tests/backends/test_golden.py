"""Every backend reproduces the authors' own TensorFlow code, case by case."""

import pytest
from diffstride_conformance.reproduction import (
    follow,
    is_reproducible,
    recorded_cases,
    recorded_trajectories,
    reproduce,
)
from support.amounts import quick_first, quick_where
from support.subjects import EAGER, subject

NAMES = (*EAGER, pytest.param("jax", marks=pytest.mark.slow))
SPECIAL = {"015_D_28x28", "082_D_8x8", "092_D_26x58"}


def by_id(entry):
    return entry.id


def assert_passed(outcomes, expected):
    assert {outcome.quantity for outcome in outcomes} >= expected
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("case", recorded_cases(), ids=by_id)
def test_recorded_call(case, name, dtype):
    # What float32 decides in the recording needs everything else in double precision.
    if dtype == "float32" and case.special is not None:
        assert not is_reproducible(subject(name), case, dtype)
        return
    assert is_reproducible(subject(name), case, dtype)
    expected = {"golden output", "golden dx"}
    if case.layer == "DiffStride":
        expected |= {"golden dstrides", "golden strides"}
    assert_passed(reproduce(subject(name), case, dtype), expected)


@pytest.mark.parametrize("name", EAGER)
@pytest.mark.parametrize("trajectory", recorded_trajectories(), ids=by_id)
def test_trajectory(trajectory, name):
    assert_passed(follow(subject(name), trajectory), {"golden trajectory"})


# The second is a fraction as long as the first.
@pytest.mark.parametrize(
    "trajectory", quick_where(lambda position: position == 1, recorded_trajectories()), ids=by_id
)
def test_trajectory_on_jax(trajectory):
    test_trajectory(trajectory, "jax")


@pytest.mark.parametrize("case", quick_first(2, recorded_cases()[::4]), ids=by_id)
def test_recorded_call_on_jax(case):
    assert_passed(reproduce(subject("jax"), case, "float64"), {"golden output", "golden dx"})


def test_the_special_cases_are_among_them():
    assert {case.id for case in recorded_cases() if case.special} == SPECIAL
