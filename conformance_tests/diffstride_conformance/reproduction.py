"""Comparing an implementation with recordings of the authors' own TensorFlow code."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import numpy as np
import numpy.typing as npt

from diffstride_conformance import oracle
from diffstride_conformance.comparison import Mismatch, worst
from diffstride_conformance.golden import (
    GoldenCase,
    GoldenConfig,
    GoldenTrajectory,
    load_cases,
    load_trajectories,
)
from diffstride_conformance.implementation import HostArray, Implementation, offers
from diffstride_conformance.run import Outcome, outcomes_of, precision
from diffstride_core import NothingToCropWarning

TOLERANCES = {"float64": (5e-7, 5e-6, 2e-7), "float32": (2e-6, 5e-6, 1e-6)}
"""Tolerances of a precision against the float32 recording (``golden/README.md``): outputs and dx
relative to the largest magnitude, dstrides relative to the sum of the absolute terms."""

TRAJECTORY_DTYPE = "float32"
TRAJECTORY_TOLERANCES = {"strides": 2e-5, "gradients": 5e-5}
"""Absolute tolerances for twelve steps that an implementation takes on its own float32 strides."""

AT_INFINITY = "082_D_8x8"
"""A case in which the authors' floor is 8/(8 - 8) and their stride becomes infinite. This project
has no floor then, and the largest finite stride gives the same results as theirs at infinity."""


@cache
def recorded_cases() -> tuple[GoldenCase, ...]:
    """Return every recorded call."""
    return tuple(load_cases())


@cache
def recorded_trajectories() -> tuple[GoldenTrajectory, ...]:
    """Return every recorded trajectory."""
    return tuple(load_trajectories())


def is_reproducible(implementation: Implementation, case: GoldenCase, dtype: str) -> bool:
    """Return whether an implementation can be compared with a recorded call in a dtype.

    The implementation must offer the function. If float32 rounding decides a recorded result, the
    result is the same only if everything else is computed in float64.
    """
    precise = dtype == "float64" or (dtype == "float32" and case.special is None)
    return precise and offers(implementation, _operation(case))


def reproduce(implementation: Implementation, case: GoldenCase, dtype: str) -> list[Outcome]:
    """Compare an implementation's output, gradients and strides with a recorded call.

    Parameters
    ----------
    implementation : Implementation
    case : GoldenCase
        Call that `is_reproducible`.
    dtype : {"float64", "float32"}
        Dtype of input and strides.
    """
    arrays = case.arrays
    with warnings.catch_warnings(), precision(implementation, dtype):
        warnings.simplefilter("ignore", NothingToCropWarning)
        results = _evaluate(implementation, case, dtype)
        held = None
        if case.layer == "DiffStride" and offers(implementation, "authors_strides"):
            held = _authors_strides(
                implementation, case.config, arrays["x"].shape, arrays["strides_before"]
            )
    of_output, of_dx, of_dstrides = TOLERANCES[dtype]
    scales = {
        "output": (arrays["y"], of_output * np.abs(arrays["y"]).max()),
        "dx": (arrays["dx"], of_dx * np.abs(arrays["dx"]).max()),
    }
    if case.layer == "DiffStride":
        scales["dstrides"] = arrays["dstrides"], of_dstrides * _terms(case)
    checks: list[tuple[str, Callable[[], float]]] = [
        (f"golden {name}", partial(_check, name, result, *scales[name]))
        for name, result in zip(scales, results, strict=True)
    ]
    if held is not None:
        after = arrays["strides_before" if case.id == AT_INFINITY else "strides_after"]
        checks.append(("golden strides", partial(_check, "strides", held, after, 0.0)))
    return outcomes_of(checks)


def follow(implementation: Implementation, trajectory: GoldenTrajectory) -> list[Outcome]:
    """Take the steps of a trajectory in float32, each with the strides of the step before.

    Parameters
    ----------
    implementation : Implementation
        Implementation that offers ``diff_stride`` and ``authors_strides``.
    trajectory : GoldenTrajectory
    """
    return outcomes_of([("golden trajectory", partial(_follow, implementation, trajectory))])


def _follow(implementation: Any, trajectory: GoldenTrajectory) -> float:
    config, arrays = trajectory.config, trajectory.arrays
    x = implementation.from_host(arrays["x"], TRAJECTORY_DTYPE)
    lower, upper = config.limits
    strides = np.asarray(arrays["strides"][0], dtype=np.float32)
    velocity = np.zeros_like(strides)
    units = []
    for step in range(trajectory.steps):
        recorded = arrays["strides"][step]
        units.append(_check("strides", strides, recorded, TRAJECTORY_TOLERANCES["strides"]))
        held = _authors_strides(implementation, config, arrays["x"].shape, strides)
        y, pullback = _diff_stride(
            implementation, config, x, implementation.from_host(strides, TRAJECTORY_DTYPE)
        )
        y = implementation.to_host(y)
        if y.shape != tuple(arrays["y_shape"][step]):
            raise Mismatch(f"output: shape {y.shape}, expected {tuple(arrays['y_shape'][step])}")
        sign = 1 if step < trajectory.switch else -1
        g = implementation.from_host(sign * 2 * y / y.size, TRAJECTORY_DTYPE)
        gradient = implementation.to_host(pullback(g)[1])
        recorded = arrays["grad"][step]
        units.append(_check("dstrides", gradient, recorded, TRAJECTORY_TOLERANCES["gradients"]))
        velocity = np.float32(trajectory.momentum) * velocity - np.float32(trajectory.lr) * gradient
        strides = np.clip(held + velocity, lower or 1, math.inf if upper is None else upper)
    last = arrays["strides"][-1]
    return max(*units, _check("strides", strides, last, TRAJECTORY_TOLERANCES["strides"]))


def _evaluate(implementation: Any, case: GoldenCase, dtype: str) -> list[HostArray]:
    config = case.config
    x, g = (implementation.from_host(case.arrays[name], dtype) for name in ("x", "g"))
    if case.layer == "FixedSpectralPooling":
        y, pullback = implementation.spectral_pool(
            x, config.strides, axes=config.axes, convention="tensorflow"
        )
    else:
        strides = implementation.from_host(_strides(case), dtype)
        y, pullback = _diff_stride(implementation, config, x, strides)
    return [implementation.to_host(array) for array in (y, *pullback(g))]


def _diff_stride(implementation: Any, config: GoldenConfig, x: Any, strides: Any) -> Any:
    return implementation.diff_stride(
        x,
        strides,
        axes=config.axes,
        smoothness=config.smoothness,
        limits=config.limits,
        cropping=config.cropping,
        convention="tensorflow",
    )


def _authors_strides(
    implementation: Any, config: GoldenConfig, shape: tuple[int, ...], strides: HostArray
) -> HostArray:
    held = implementation.authors_strides(
        shape, strides, axes=config.axes, smoothness=config.smoothness
    )
    return np.array(held, dtype=np.float32)


def _operation(case: GoldenCase) -> str:
    return "spectral_pool" if case.layer == "FixedSpectralPooling" else "diff_stride"


def _strides(case: GoldenCase) -> HostArray:
    strides = case.arrays["strides_before"]
    return np.full_like(strides, np.finfo(np.float32).max) if case.id == AT_INFINITY else strides


def _terms(case: GoldenCase) -> npt.NDArray[np.float64]:
    """Return the scale that the accuracy of the recorded dstrides is relative to."""
    if case.dstrides_sum_abs_terms is not None:
        return case.dstrides_sum_abs_terms
    bound = oracle.diff_stride(
        case.arrays["x"],
        case.arrays["strides_before"],
        case.arrays["g"],
        axes=case.config.axes,
        smoothness=case.config.smoothness,
        convention="tensorflow",
    ).bound
    assert bound is not None
    return bound


def _check(what: str, actual: HostArray, recorded: HostArray, tolerance: npt.ArrayLike) -> float:
    if actual.shape != recorded.shape:
        raise Mismatch(f"{what}: shape {actual.shape}, expected {recorded.shape}")
    return worst(
        what, actual, recorded.astype(np.float64), np.broadcast_to(tolerance, recorded.shape)
    )
