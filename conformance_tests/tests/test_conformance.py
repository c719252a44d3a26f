"""Every backend computes what the oracle computes."""

import pytest
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import pose
from diffstride_conformance.run import agree, judge, run_case, solve
from diffstride_conformance.selection import representative_cases
from subjects import EAGER, subject

# A compilation a case: all of them are slow tests.
SELECTED = representative_cases()
over_dtypes = pytest.mark.parametrize("dtype", ["float64", "float32"])


def over_cases(cases):
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.name)


@over_dtypes
@pytest.mark.parametrize("name", EAGER)
@over_cases(all_cases())
def test_case(case, name, dtype):
    assert run_case(subject(name), case, dtype)


@over_dtypes
@over_cases(SELECTED)
def test_case_on_jax(case, dtype):
    assert run_case(subject("jax"), case, dtype)


@pytest.mark.slow
@over_dtypes
@over_cases([case for case in all_cases() if case not in SELECTED])
def test_every_case_on_jax(case, dtype):
    assert run_case(subject("jax"), case, dtype)


@over_dtypes
@over_cases(SELECTED)
def test_case_on_dask(case, dtype):
    assert run_case(subject("dask"), case, dtype)


@over_cases(SELECTED[::2])
@pytest.mark.parametrize("name", ["torch", "jax", "array-api-strict"])
def test_case_on_another_device(name, case):
    implementation = subject(name)
    devices = implementation.devices()
    if len(devices) == 1:
        assert name == "torch"
        pytest.skip("torch has no accelerator here")
    assert run_case(implementation, case, "float32", device=devices[1])


@over_cases(SELECTED)
def test_backends_agree_with_each_other(case):
    problem = pose(case, "float64")
    solutions = [solve(subject(name), problem) for name in EAGER]
    for i, first in enumerate(solutions):
        for second in solutions[i + 1 :]:
            outcomes = agree(problem, first, second)
            assert outcomes
            assert [outcome.failure for outcome in outcomes if outcome.failure] == []


@over_cases(SELECTED[::4])
@pytest.mark.parametrize("name", ["torch", "jax"])
def test_attached_gradient_is_that_of_autodiff(name, case):
    implementation, problem = subject(name), pose(case, "float64")
    attached = solve(implementation, problem)
    with implementation.plain_autodiff():
        plain = solve(implementation, problem)
    outcomes = agree(problem, attached, plain, gradients_only=True)
    assert outcomes
    assert [outcome.failure for outcome in outcomes if outcome.failure] == []


def test_a_device_that_is_not_the_inputs_is_noticed():
    problem = pose(SELECTED[0], "float64")
    moved = solve(subject("numpy"), problem)._replace(device="elsewhere")
    assert all("device" in outcome.failure for outcome in judge(problem, moved)[:2])
