"""Having an implementation solve a problem, and judging what it returns."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from diffstride_backends.registry import Framework

from diffstride_conformance.cases import Case
from diffstride_conformance.comparison import Mismatch, Result, check_result
from diffstride_conformance.frameworks import as_implementation
from diffstride_conformance.implementation import Implementation, offers
from diffstride_conformance.problems import OUTPUT_SIZES, SCIPY, Owed, Problem, pose, sizing_options
from diffstride_core import NothingToCropWarning


class Outcome(NamedTuple):
    """What a comparison found.

    Attributes
    ----------
    quantity : str
    units : float
        The worst error in units of its tolerance; infinite where there is no number to give.
    failure : str or None
        What is wrong, None if the comparison passed.
    """

    quantity: str
    units: float
    failure: str | None = None


class Solution(NamedTuple):
    """What an implementation returned for a problem.

    Attributes
    ----------
    results : tuple of Result or None
        The value, then the gradients.
    device : object
        Of the arrays that it was given.
    sizes : tuple or None
        What ``output_sizes`` returned; None where it was not asked.
    """

    results: tuple[Result | None, ...]
    device: Any
    sizes: Any = None


def precision(implementation: Implementation, dtype: str) -> AbstractContextManager[Any]:
    """Return the context that a dtype is computed in: double precision for float64 alone."""
    return implementation.double_precision() if dtype == "float64" else nullcontext()


def run_case(
    subject: Implementation | Framework, case: Case, dtype: str, *, device: Any = None
) -> dict[str, float]:
    """Evaluate a case, pull a random cotangent back, and compare all with the oracle.

    Parameters
    ----------
    subject : Implementation or Framework
    case : Case
    dtype : str
        Of the input: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    device : object, optional
        One of the implementation's devices; its default if None.

    Returns
    -------
    dict of str to float
        Per quantity compared, the worst error in units of its tolerance.

    Raises
    ------
    Mismatch
        If a dtype, device, shape or value is not what it must be.
    """
    problem = pose(case, dtype)
    outcomes = judge(problem, solve(as_implementation(subject), problem, device))
    for outcome in outcomes:
        if outcome.failure is not None:
            raise Mismatch(outcome.failure, outcome.units)
    return {outcome.quantity: outcome.units for outcome in outcomes}


def solve(implementation: Implementation, problem: Problem, device: Any = None) -> Solution:
    """Have an implementation compute a problem.

    Raises
    ------
    Mismatch
        If a host array does not come back as it was sent.
    Exception
        Whatever the implementation raises.
    """
    with warnings.catch_warnings(), precision(implementation, problem.dtype):
        warnings.simplefilter("ignore", NothingToCropWarning)
        arrays = [_sent(implementation, values, dtype, device) for values, dtype in problem.arrays]
        value, pullback = _called(implementation, problem.case, arrays)
        gradients = pullback(_sent(implementation, *problem.cotangent, device))
        sizes = None
        if problem.sizes is not None and offers(implementation, "output_sizes"):
            sizes = implementation.output_sizes(
                problem.case.shape, arrays[1], **sizing_options(problem.case)
            )
        return Solution(
            tuple(_fetched(implementation, array) for array in (value, *gradients)),
            implementation.device_of(arrays[0]),
            sizes,
        )


def _called(implementation: Any, case: Case, arrays: list[Any]) -> Any:
    if case.operation == "complexity":
        return implementation.complexity(arrays)
    if case.operation == "spectral_pool":
        return implementation.spectral_pool(*arrays, case.strides, **case.options)
    if case.has_bias:
        *arrays, bias = arrays
        return implementation.conv_diff_stride(*arrays, bias=bias, **case.options)
    return getattr(implementation, case.operation)(*arrays, **case.options)


def _sent(
    implementation: Implementation, values: npt.NDArray[np.float64], dtype: str, device: Any
) -> Any:
    array = implementation.from_host(values, dtype, device)
    back = _fetched(implementation, array)
    assert back is not None
    check_result("output", back, values, dtype=dtype, device=device or back.device)
    if not np.array_equal(back.host, values):
        raise Mismatch(f"from_host and to_host change the values of a {dtype} array")
    return array


def _fetched(implementation: Implementation, array: Any) -> Result | None:
    if array is None:
        return None
    return Result(
        implementation.to_host(array),
        implementation.dtype_name(array),
        implementation.device_of(array),
    )


def judge(problem: Problem, solution: Solution) -> list[Outcome]:
    """Compare what an implementation returned with what it owes, quantity by quantity."""
    checks = [
        (
            owed.quantity,
            partial(
                check_result,
                owed.kind,
                _at(solution, owed),
                owed.reference,
                dtype=owed.dtype,
                device=solution.device,
                precision=owed.precision,
                bound=owed.bound,
            ),
        )
        for owed in problem.owed
    ]
    if solution.sizes is not None:
        checks.append((OUTPUT_SIZES, partial(_check_sizes, solution.sizes, problem.sizes)))
    return outcomes_of(checks)


def agree(
    problem: Problem, first: Solution, second: Solution, *, gradients_only: bool = False
) -> list[Outcome]:
    """Compare two solutions with each other, by the rule that compares each with the oracle.

    Parameters
    ----------
    problem : Problem
    first, second : Solution
    gradients_only : bool
        Leave the outputs out.
    """
    checks = []
    for owed in problem.owed:
        if owed.quantity == SCIPY or (gradients_only and owed.position == 0):
            continue
        results = _at(first, owed), _at(second, owed)
        checks.append((owed.quantity, partial(_check_pair, owed, *results)))
    return outcomes_of(checks)


def _check_pair(owed: Owed, first: Result | None, second: Result | None) -> float:
    if second is None:
        raise Mismatch(f"{owed.kind}: None, expected an array")
    return check_result(
        owed.kind,
        first,
        second.host,
        dtype=second.dtype,
        device=None if first is None else first.device,
        precision=owed.precision,
        bound=owed.bound,
    )


def _check_sizes(sizes: Any, expected: Any) -> float:
    if type(sizes) is not tuple or not all(type(size) is int for size in sizes):
        raise Mismatch(f"{OUTPUT_SIZES}: {sizes!r}, expected a tuple of ints")
    if sizes != expected:
        raise Mismatch(f"{OUTPUT_SIZES}: {sizes}, expected {expected}")
    return 0.0


def _at(solution: Solution, owed: Owed) -> Result | None:
    return solution.results[owed.position] if owed.position < len(solution.results) else None


def outcomes_of(checks: Iterable[tuple[str, Callable[[], float]]]) -> list[Outcome]:
    """Return one outcome per quantity: the worst, or the first failure."""
    outcomes: dict[str, Outcome] = {}
    for quantity, compute in checks:
        try:
            outcome = Outcome(quantity, compute())
        except Mismatch as mismatch:
            outcome = Outcome(quantity, mismatch.units, str(mismatch))
        before = outcomes.get(quantity)
        if before is None or (before.failure is None and outcome.units >= before.units):
            outcomes[quantity] = outcome
    return list(outcomes.values())
