"""Running a selection with several implementations, and the report on it."""

from __future__ import annotations

import math
import shlex
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, TypeAlias

from diffstride_conformance.comparison import Mismatch
from diffstride_conformance.implementation import OPERATIONS, Implementation, offers
from diffstride_conformance.problems import Problem, is_posed, pose
from diffstride_conformance.refusals import possible_calls, refusal
from diffstride_conformance.reproduction import (
    TRAJECTORY_DTYPE,
    follow,
    is_reproducible,
    reproduce,
)
from diffstride_conformance.run import Outcome, Solution, agree, judge, solve
from diffstride_conformance.selection import GOLDEN, Selection

PAIR = " / "
"""Separator of the names of two implementations that are compared with each other."""

RUNS = "runs"
REFUSALS = "refusals"
AUTODIFF = "gradients as autodiff"
ELSEWHERE = "on other devices"

REFUSALS_DTYPE = "float64"
"""Dtype of the input of the wrong calls, which do not depend on it."""

Step: TypeAlias = Callable[[str], object]


@dataclass(frozen=True)
class Comparison:
    """One comparison.

    Attributes
    ----------
    subject : str
        Name of an implementation, or ``"first / second"`` for two compared with each other.
    dtype : str
        Dtype of the input.
    case, quantity : str
    units : float
        Worst error in units of the tolerance. It is infinite if there is no number.
    failure : str or None
        Description of the failure, or None if the comparison passed.
    """

    subject: str
    dtype: str
    case: str
    quantity: str
    units: float
    failure: str | None = None

    @property
    def is_pair(self) -> bool:
        """Whether two implementations were compared with each other."""
        return PAIR in self.subject


@dataclass(frozen=True)
class Report:
    """Findings of a run.

    Attributes
    ----------
    facts : dict of str to str
        Versions, devices, threads and the like.
    comparisons : tuple of Comparison
    absent : dict of str to str
        For each implementation that was not requested and not found, the reason.
    missing : dict of str to str
        For each implementation that was requested but not found, the reason. It counts as a
        failure.
    not_offered : dict of str to tuple of str
        For each implementation, the parts that it does not have and that were not compared.
    options : dict of str to str
        For each implementation, the option of the command that names it.
    seconds : float
    """

    facts: dict[str, str]
    comparisons: tuple[Comparison, ...]
    absent: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    not_offered: dict[str, tuple[str, ...]] = field(default_factory=dict)
    options: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def failures(self) -> tuple[Comparison, ...]:
        """Comparisons that did not pass."""
        return tuple(each for each in self.comparisons if each.failure is not None)

    @property
    def passed(self) -> bool:
        """Whether everything that was requested was compared and passed."""
        return bool(self.comparisons) and not self.failures and not self.missing

    def rerun(self, comparison: Comparison) -> str:
        """Return the command that repeats one comparison."""
        named = [self.options[subject] for subject in comparison.subject.split(PAIR)]
        case = shlex.quote(comparison.case)
        return " ".join(["diffstride-verify", *named, "--dtype", comparison.dtype, "--case", case])


Table: TypeAlias = dict[str, dict[str, Comparison]]


def worst(report: Report, dtype: str, *, pairs: bool) -> Table:
    """Return the worst comparison per quantity and subject, for pairs or for single subjects.

    All rows have the subjects in the same order. Subjects without the quantity are left out.
    """
    table: Table = {}
    for each in report.comparisons:
        if each.dtype == dtype and each.is_pair == pairs:
            keep_worst(table.setdefault(each.quantity, {}), each.subject, each)
    return table


def keep_worst(row: dict[str, Comparison], key: str, comparison: Comparison) -> None:
    """Put a comparison into a row unless the row has one that is as bad."""
    before = row.get(key)
    if before is None or comparison.units > before.units:
        row[key] = comparison


def subjects(table: Table) -> tuple[str, ...]:
    """Return the columns of a table."""
    return tuple(dict.fromkeys(subject for row in table.values() for subject in row))


def dtypes_of(report: Report) -> tuple[str, ...]:
    """Return the dtypes of the comparisons."""
    return tuple(dict.fromkeys(each.dtype for each in report.comparisons))


def not_offered(
    implementation: Implementation, selection: Selection, dtypes: Sequence[str]
) -> tuple[str, ...]:
    """Return the parts of a run that an implementation does not offer."""
    there = implementation.dtypes(implementation.devices()[0])
    lacking = [name for name in OPERATIONS if not offers(implementation, name)]
    asked = {(case.operation, case.method): None for case in selection.cases}
    lacking += [
        f"{operation} by method {method!r}"
        for operation, method in asked
        if operation not in lacking and not offers(implementation, operation, method)
    ]
    lacking += [f"inputs of {dtype}" for dtype in dtypes if dtype not in there]
    if selection.autodiff and implementation.plain_autodiff is None:
        lacking.append("automatic differentiation")
    possible = {call.name for call in possible_calls(implementation)}
    impossible = [call for call in selection.calls if call.name not in possible]
    if impossible:
        lacking.append(f"what {len(impossible)} wrong calls need")
    return tuple(lacking)


def count_steps(
    implementations: Sequence[Implementation], selection: Selection, dtypes: Sequence[str]
) -> int:
    """Return the number of steps that `verify` reports."""
    cases = sum(is_posed(case, dtype) for case in selection.cases for dtype in dtypes)
    recorded = len(selection.recorded) * len(dtypes)
    trajectories = len(selection.trajectories) if TRAJECTORY_DTYPE in dtypes else 0
    return len(implementations) * (cases + recorded + trajectories + 1)


def verify(
    implementations: Sequence[Implementation],
    selection: Selection,
    dtypes: Sequence[str],
    step: Step = lambda text: None,
) -> Iterator[Comparison]:
    """Compare implementations with the oracle, with the recordings and with each other.

    Parameters
    ----------
    implementations : sequence of Implementation
        Implementations with different names.
    selection : Selection
    dtypes : sequence of str
        Dtypes of the inputs. Dtypes that an implementation does not have are skipped for it.
    step : callable
        Function that is called with a text before each step, `count_steps` times.

    Yields
    ------
    Comparison
    """
    dtypes_on = {
        implementation.name: [
            (device, implementation.dtypes(device)) for device in implementation.devices()
        ]
        for implementation in implementations
    }
    for dtype in dtypes:
        able = [each for each in implementations if dtype in dtypes_on[each.name][0][1]]
        for case in selection.cases:
            if not is_posed(case, dtype):
                continue
            problem, solutions = pose(case, dtype), []
            for implementation in implementations:
                step(f"{implementation.name}: {case.name}")
                offered = offers(implementation, case.operation, case.method)
                if implementation not in able or not offered:
                    continue
                others = [on for on, have in dtypes_on[implementation.name][1:] if dtype in have]
                solution, outcomes = _compare(implementation, problem, selection, others)
                yield from _named(implementation.name, dtype, case.name, outcomes)
                if solution is not None:
                    solutions.append((implementation.name, solution))
            for (name, first), (other, second) in combinations(solutions, 2):
                outcomes = agree(problem, first, second)
                yield from _named(f"{name}{PAIR}{other}", dtype, case.name, outcomes)
    for implementation in implementations:
        yield from _recordings(implementation, selection, dtypes, step)
    yield from _refusals(implementations, selection, step)


def _compare(
    implementation: Implementation, problem: Problem, selection: Selection, others: Sequence[Any]
) -> tuple[Solution | None, list[Outcome]]:
    """Return the solution of an implementation, and the outcomes of comparing it on its own."""
    try:
        solution = solve(implementation, problem)
        outcomes = judge(problem, solution)
    except Exception as error:
        return None, [_raised(error)]
    if problem.case in selection.autodiff and implementation.plain_autodiff is not None:
        outcomes += _guarded(_against_autodiff, implementation, problem, solution)
    if problem.case in selection.elsewhere:
        for device in others:
            outcomes += _guarded(_elsewhere, implementation, problem, device)
    return solution, outcomes


def _against_autodiff(
    implementation: Implementation, problem: Problem, attached: Solution
) -> list[Outcome]:
    assert implementation.plain_autodiff is not None
    with implementation.plain_autodiff():
        plain = solve(implementation, problem)
    outcomes = agree(problem, attached, plain, gradients_only=True)
    return [outcome._replace(quantity=AUTODIFF) for outcome in outcomes]


def _elsewhere(implementation: Implementation, problem: Problem, device: Any) -> list[Outcome]:
    outcomes = judge(problem, solve(implementation, problem, device))
    return [
        Outcome(ELSEWHERE, units, failure and f"on {device}, {failure}")
        for _, units, failure in outcomes
    ]


def _recordings(
    implementation: Implementation, selection: Selection, dtypes: Sequence[str], step: Step
) -> Iterator[Comparison]:
    for dtype in dtypes:
        for recorded in selection.recorded:
            step(f"{implementation.name}: {GOLDEN}{recorded.id}")
            if is_reproducible(implementation, recorded, dtype):
                outcomes = _guarded(reproduce, implementation, recorded, dtype)
                yield from _named(implementation.name, dtype, GOLDEN + recorded.id, outcomes)
    if TRAJECTORY_DTYPE not in dtypes:
        return
    for trajectory in selection.trajectories:
        step(f"{implementation.name}: {GOLDEN}{trajectory.id}")
        if offers(implementation, "diff_stride") and offers(implementation, "authors_strides"):
            outcomes = _guarded(follow, implementation, trajectory)
            name = GOLDEN + trajectory.id
            yield from _named(implementation.name, TRAJECTORY_DTYPE, name, outcomes)


def _refusals(
    implementations: Sequence[Implementation], selection: Selection, step: Step
) -> Iterator[Comparison]:
    messages: dict[str, dict[str, str]] = {call.name: {} for call in selection.calls}
    for implementation in implementations:
        step(f"{implementation.name}: {REFUSALS}")
        for call in possible_calls(implementation):
            if call.name in messages:
                outcome = Outcome(REFUSALS, 0.0)
                try:
                    messages[call.name][implementation.name] = refusal(implementation, call)
                except Mismatch as mismatch:
                    outcome = Outcome(REFUSALS, math.inf, str(mismatch))
                except Exception as error:
                    outcome = _raised(error)
                yield from _named(implementation.name, REFUSALS_DTYPE, call.name, [outcome])
    for call_name, of_call in messages.items():
        for (name, first), (other, second) in combinations(of_call.items(), 2):
            outcome = Outcome(REFUSALS, 0.0)
            if first != second:
                outcome = Outcome(REFUSALS, math.inf, f"{first!r} against {second!r}")
            yield from _named(f"{name}{PAIR}{other}", REFUSALS_DTYPE, call_name, [outcome])


def _named(
    subject: str, dtype: str, case: str, outcomes: Iterable[Outcome]
) -> Iterator[Comparison]:
    for outcome in outcomes:
        yield Comparison(subject, dtype, case, *outcome)


def _guarded(compute: Callable[..., list[Outcome]], *arguments: Any) -> list[Outcome]:
    try:
        return compute(*arguments)
    except Exception as error:
        return [_raised(error)]


def _raised(error: Exception) -> Outcome:
    """Return an error as an outcome, with the place that it came from."""
    where = traceback.extract_tb(error.__traceback__)[-1]
    failure = f"{type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    return Outcome(RUNS, math.inf, failure)
