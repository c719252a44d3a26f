"""Solving a problem with an implementation, and judging the results."""

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
    """Outcome of a comparison.

    Attributes
    ----------
    quantity : str
    units : float
        Worst error in units of its tolerance. It is infinite if there is no number.
    failure : str or None
        Description of the failure, or None if the comparison passed.
    """

    quantity: str
    units: float
    failure: str | None = None


class Solution(NamedTuple):
    """Results of an implementation for a problem.

    Attributes
    ----------
    results : tuple of Result or None
        The value, then the gradients.
    device : object
        Device of the input arrays.
    sizes : tuple or None
        Result of ``output_sizes``, or None if it was not called.
    """

    results: tuple[Result | None, ...]
    device: Any
    sizes: Any = None


def precision(implementation: Implementation, dtype: str) -> AbstractContextManager[Any]:
    """Return the context to compute a dtype in: double precision only for float64."""
    return implementation.double_precision() if dtype == "float64" else nullcontext()


def run_case(
    subject: Implementation | Framework, case: Case, dtype: str, *, device: Any = None
) -> dict[str, float]:
    """Evaluate a case, pull back a random cotangent, and compare all results with the oracle.

    Parameters
    ----------
    subject : Implementation or Framework
    case : Case
    dtype : str
        Dtype of the input: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.
    device : object, optional
        One of the implementation's devices. None: its default device.

    Returns
    -------
    dict of str to float
        For each compared quantity, the worst error in units of its tolerance.

    Raises
    ------
    Mismatch
        If a dtype, device, shape or value is wrong.
    """
    problem = pose(case, dtype)
    outcomes = judge(problem, solve(as_implementation(subject), problem, device))
    for outcome in outcomes:
        if outcome.failure is not None:
            raise Mismatch(outcome.failure, outcome.units)
    return {outcome.quantity: outcome.units for outcome in outcomes}


def solve(implementation: Implementation, problem: Problem, device: Any = None) -> Solution:
    """Solve a problem with an implementation.

    Raises
    ------
    Mismatch
        If a host array changes when it is sent to the implementation and back.
    Exception
        Any error that the implementation raises.
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
    """Compare the results of an implementation with the expected ones, quantity by quantity."""
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
    """Compare two solutions with each other, by the same rule as with the oracle.

    Parameters
    ----------
    problem : Problem
    first, second : Solution
    gradients_only : bool
        Whether to leave out the outputs.
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
    """Return one outcome per quantity: the first failure or, without one, the worst."""
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
