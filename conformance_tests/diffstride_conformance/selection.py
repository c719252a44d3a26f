"""The selection of cases, recordings and wrong calls to run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from os.path import commonprefix

from diffstride_conformance.bad_input import BadCall, all_bad_calls
from diffstride_conformance.cases import METHODS, Case, all_cases
from diffstride_conformance.golden import GoldenCase, GoldenTrajectory
from diffstride_conformance.reproduction import recorded_cases, recorded_trajectories

GOLDEN = "golden-"
"""Prefix that makes the identifier of a recording its name."""


@dataclass(frozen=True)
class Selection:
    """Cases, recordings and wrong calls to run.

    Attributes
    ----------
    cases : tuple of Case
        Cases that are compared with the oracle, on the default device.
    autodiff : tuple of Case
        Cases whose attached gradients are also compared with plain automatic differentiation.
    elsewhere : tuple of Case
        Cases that are also computed on every other device.
    recorded : tuple of GoldenCase
    trajectories : tuple of GoldenTrajectory
    calls : tuple of BadCall
    """

    cases: tuple[Case, ...]
    autodiff: tuple[Case, ...]
    elsewhere: tuple[Case, ...]
    recorded: tuple[GoldenCase, ...]
    trajectories: tuple[GoldenTrajectory, ...]
    calls: tuple[BadCall, ...]


def everything() -> Selection:
    """Return the selection of everything."""
    cases = all_cases()
    return Selection(
        cases, cases, cases, recorded_cases(), recorded_trajectories(), all_bad_calls()
    )


def representative() -> Selection:
    """Return a fixed selection, small enough for a traced framework, which compiles each case."""
    cases = representative_cases()
    return replace(
        everything(),
        cases=cases,
        autodiff=cases[3::4],
        elsewhere=cases[3::6],
        recorded=recorded_cases()[::8],
        trajectories=recorded_trajectories()[:1],
    )


def only(names: Iterable[str]) -> Selection:
    """Return the selection of some names, with everything that is compared for them.

    Raises
    ------
    ValueError
        If a name is unknown. The message has the most similar names.
    """
    whole = everything()
    wanted = set(names)
    known = {case.name for case in (*whole.cases, *whole.calls)}
    known |= {GOLDEN + entry.id for entry in (*whole.recorded, *whole.trajectories)}
    if unknown := sorted(wanted - known):
        # Names begin with the subject of their cases.
        alike = {name: len(commonprefix([unknown[0], name])) for name in known}  # noqa: RUF071
        similar = sorted(known, key=lambda name: (-alike[name], name))
        raise ValueError(f"there is no case {unknown[0]!r}; similar: {', '.join(similar[:3])}")
    return _filtered(whole, wanted.__contains__)


def with_methods(selection: Selection, methods: Sequence[str]) -> Selection:
    """Return a selection without the cases that ask for other methods than these.

    If an operation has none of these methods, all its cases stay.
    """
    left_out = {
        operation: {*of_operation} - {*methods}
        for operation, of_operation in METHODS.items()
        if not {*of_operation}.isdisjoint(methods)
    }
    others = {case.name for case in all_cases() if case.method in left_out.get(case.operation, ())}
    return _filtered(selection, lambda name: name not in others)


def _filtered(selection: Selection, keep: Callable[[str], bool]) -> Selection:
    def kept(cases: tuple[Case, ...]) -> tuple[Case, ...]:
        return tuple(case for case in cases if keep(case.name))

    return Selection(
        kept(selection.cases),
        kept(selection.autodiff),
        kept(selection.elsewhere),
        tuple(case for case in selection.recorded if keep(GOLDEN + case.id)),
        tuple(entry for entry in selection.trajectories if keep(GOLDEN + entry.id)),
        tuple(call for call in selection.calls if keep(call.name)),
    )


@cache
def representative_cases() -> tuple[Case, ...]:
    """Return few cases that cover every value of every option, and every pair of main options."""
    return _covering({case: _features(case) for case in all_cases()})


@cache
def paired_cases() -> tuple[Case, ...]:
    """Return fewer of these cases, with every pair of convention, method, norm and rank."""
    main = ("convention", "method", "norm", "axes")

    def pairs(case: Case) -> set[frozenset[str]]:
        return {
            feature
            for feature in _features(case)
            if len(feature) == 2 and all(name.split()[1] in main for name in feature)
        }

    return _covering({case: pairs(case) for case in representative_cases()})


def _covering(features: dict[Case, set[frozenset[str]]]) -> tuple[Case, ...]:
    """Choose cases one by one: always one that adds most for the cost of its sums in the oracle."""
    missing = set[frozenset[str]]().union(*features.values())
    chosen = set()
    while missing:
        best = max(features, key=lambda case: len(features[case] & missing) / _price(case))
        chosen.add(best)
        missing -= features[best]
    return tuple(case for case in features if case in chosen)


def _price(case: Case) -> float:
    if case.operation == "complexity":
        return 1.0
    return 1.0 + sum(case.shape[axis] ** 2 for axis in case.axes) / 1e4


def _features(case: Case) -> set[frozenset[str]]:
    """Return the features of a case: values of options, and pairs of them."""
    options = case.options
    if case.operation == "complexity":
        return {frozenset({case.name})}
    sizes = [case.shape[axis] for axis in case.axes]
    # If there is next to nothing to compute, options make next to no difference.
    if 0 in case.shape:
        return {frozenset({f"{case.operation} without entries"})}
    if min(sizes) < 4:
        return {frozenset({f"{case.operation} of size {min(sizes)}"})}
    if case.name.startswith("tie_"):
        return {frozenset({f"{case.name.partition('-')[0]} {case.method}"})}
    main = {key: options.get(key) for key in ("convention", "method", "norm")}
    main["axes"] = len(case.axes)
    others = {
        "norm is None": options.get("norm", "") is None,
        "smoothness": options.get("smoothness"),
        "limits": options.get("limits", (None, None)),
        "cropping": options.get("cropping", True),
        "multiple_of": options.get("multiple_of", 1),
        "sizes": "sizes" in options,
        "shared": len(case.strides) == 1 < len(case.axes),
        "parities": {size % 2 for size in sizes},
        "order": case.axes == tuple(sorted(case.axes)),
    }
    if case.operation == "conv_diff_stride":
        outputs, inputs, *kernel = case.weight_shape
        groups = options.get("groups", 1)
        main |= {
            "border": options.get("padding_mode", "zeros"),
            "channels last": options.get("channels_last", False),
        }
        others |= {
            "kernel": {*kernel},
            "dilation": options.get("dilation", 1),
            "groups": (groups, inputs == 1, outputs > groups),
            "bias": case.has_bias,
            "batch axes": len(case.shape) - len(case.weight_shape) + 1,
        }
    if case.operation == "spectral_resize":
        others["targets"] = {
            (target % 2, (target > size) - (target < size))
            for target, size in zip(options["sizes"], sizes, strict=True)
        }
    named = [f"{case.operation} {key} {value}" for key, value in main.items()]
    single = [*named, *(f"{case.operation} {key} {value}" for key, value in others.items())]
    return {frozenset(names) for names in (*((name,) for name in single), *combinations(named, 2))}
