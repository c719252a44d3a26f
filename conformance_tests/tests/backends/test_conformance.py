"""Every backend computes what the oracle computes."""

from dataclasses import replace

import pytest
from diffstride_conformance.cases import all_cases
from diffstride_conformance.implementation import offers
from diffstride_conformance.problems import is_posed, pose
from diffstride_conformance.run import agree, judge, run_case, solve
from diffstride_conformance.selection import paired_cases, representative_cases
from support.amounts import quick_every, quick_where
from support.subjects import CONVOLVING, EAGER, subject

from diffstride_core.testing import block_elements

# The quick tests go through these, and through fewer where each is compiled.
SELECTED = representative_cases()
OTHERS = [case for case in all_cases() if case not in SELECTED]
DTYPES = ("float64", "float32")
over_dtypes = pytest.mark.parametrize("dtype", DTYPES)


def named(value):
    return getattr(value, "name", value)


def in_turn(cases):
    """Pair cases with one dtype each, the two in turn, which compiles half as much as both."""
    return [(case, DTYPES[position % 2]) for position, case in enumerate(cases)]


def over_cases(cases):
    return pytest.mark.parametrize("case", cases, ids=named)


def is_offered(name, case):
    return name in CONVOLVING or case.method != "separate"


def over_cases_offered(names, cases):
    pairs = [(name, case) for case in cases for name in names if is_offered(name, case)]
    return pytest.mark.parametrize(("name", "case"), pairs, ids=named)


@over_dtypes
@over_cases_offered(EAGER, SELECTED)
def test_case(case, name, dtype):
    assert run_case(subject(name), case, dtype)


@pytest.mark.slow
@over_dtypes
@over_cases_offered(EAGER, OTHERS)
def test_every_case(case, name, dtype):
    assert run_case(subject(name), case, dtype)


@over_cases_offered(["numpy", "torch"], SELECTED)
def test_case_in_blocks(name, case):
    with block_elements(1):
        assert run_case(subject(name), case, "float64")


@pytest.mark.parametrize(
    ("case", "dtype"),
    quick_where(lambda position: SELECTED[position] in paired_cases(), in_turn(SELECTED)),
    ids=named,
)
def test_case_on_jax(case, dtype):
    assert run_case(subject("jax"), case, dtype)


@pytest.mark.slow
@pytest.mark.parametrize(("case", "dtype"), in_turn(OTHERS), ids=named)
def test_every_case_on_jax(case, dtype):
    assert run_case(subject("jax"), case, dtype)


@pytest.mark.parametrize(
    ("case", "dtype"),
    quick_every(9, in_turn([case for case in SELECTED if is_offered("dask", case)])),
    ids=named,
)
def test_case_on_dask(case, dtype):
    assert run_case(subject("dask"), case, dtype)


SEPARATE = [case for case in SELECTED if case.method == "separate"]


@over_cases(SEPARATE[:1])
@pytest.mark.parametrize("name", [*EAGER, "jax", "dask"])
def test_separate_is_offered_where_there_is_a_convolution(name, case):
    implementation = subject(name)
    assert offers(implementation, case.operation, case.method) == is_offered(name, case)
    if not is_offered(name, case):
        with pytest.raises(ValueError, match="method must be 'fused' or 'auto' for a framework"):
            run_case(implementation, case, "float64")


@over_cases(SEPARATE)
def test_half_precision_is_owed_by_the_fused_convolution_alone(case):
    for dtype in ("bfloat16", "float16"):
        for method in ("separate", "auto"):
            other = replace(case, options={**case.options, "method": method})
            assert not is_posed(other, dtype)
            with pytest.raises(ValueError, match=f"is no problem in {dtype}"):
                run_case(subject("torch"), other, dtype)
        assert is_posed(replace(case, options={**case.options, "method": "fused"}), dtype)
    assert is_posed(case, "float32")


@over_cases_offered(["torch", "array-api-strict"], SELECTED[::2])
def test_case_on_another_device(name, case):
    implementation = subject(name)
    devices = implementation.devices()
    if len(devices) == 1:
        assert name == "torch"
        pytest.skip("torch has no accelerator here")
    assert run_case(implementation, case, "float32", device=devices[1])


@over_cases(quick_every(8, SELECTED[::2]))
def test_case_on_another_device_of_jax(case):
    assert run_case(subject("jax"), case, "float32", device=subject("jax").devices()[1])


@over_cases(SELECTED)
def test_backends_agree_with_each_other(case):
    names = EAGER if is_offered("numpy", case) else CONVOLVING
    problem = pose(case, "float64")
    solutions = [solve(subject(name), problem) for name in names]
    assert len(solutions) > 1
    for i, first in enumerate(solutions):
        for second in solutions[i + 1 :]:
            outcomes = agree(problem, first, second)
            assert outcomes
            assert [outcome.failure for outcome in outcomes if outcome.failure] == []


@over_cases(quick_every(3, SELECTED[::4]))
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
