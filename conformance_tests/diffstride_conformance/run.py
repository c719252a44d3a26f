"""Running a case on a framework and comparing it with the oracle."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from diffstride_backends.registry import Framework
from numpy.typing import NDArray

from diffstride_conformance import oracle
from diffstride_conformance.cases import Case
from diffstride_conformance.comparison import Mismatch, Quantity, check
from diffstride_core import NothingToCropWarning

STRIDE_DTYPE = {
    "float64": "float64",
    "float32": "float32",
    "bfloat16": "float32",
    "float16": "float32",
}
"""The dtype of strides for a dtype of x: strides are never half."""


def run_case(framework: Framework, case: Case, dtype: str) -> dict[str, float]:
    """Evaluate a case, pull a random cotangent back, and compare with the oracle.

    Parameters
    ----------
    framework : Framework
        From `diffstride_backends.registry`.
    case : Case
    dtype : str
        Of the input: ``"float64"``, ``"float32"``, ``"bfloat16"`` or ``"float16"``.

    Returns
    -------
    dict of str to float
        Per quantity compared, the worst error in units of its tolerance.

    Raises
    ------
    Mismatch
        If a shape, dtype or value is not what it must be.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingToCropWarning)
        if case.operation == "complexity":
            return _run_complexity(framework, case, STRIDE_DTYPE[dtype])
        return _run_resampling(framework, case, dtype)


def _run_complexity(framework: Framework, case: Case, dtype: str) -> dict[str, float]:
    arrays = [framework.backend.from_host(np.array(s), dtype) for s in case.strides]
    value, pullback = framework.with_pullback.complexity(arrays)
    gradients = pullback(framework.backend.from_host(np.array(-1.25), dtype))
    # The oracle is given the strides in use: those below 1 are bounded, their gradient straight
    # through.
    used = [np.maximum(1, _rounded(framework, np.array(s), dtype)) for s in case.strides]
    expected, expected_gradients = oracle.complexity(used)
    worst = {"complexity": _check(framework, "output", value, expected, dtype)}
    worst["complexity gradient"] = max(
        _check(framework, "dx", gradient, -1.25 * reference, dtype)
        for gradient, reference in zip(gradients, expected_gradients, strict=True)
    )
    return worst


def _run_resampling(framework: Framework, case: Case, dtype: str) -> dict[str, float]:
    backend, random = framework.backend, case.random()
    x = backend.from_host(random.standard_normal(case.shape), dtype)
    host_x = backend.to_host(x).astype(np.float64)
    options = {key: value for key, value in case.options.items() if key != "method"}
    function = getattr(framework.with_pullback, case.operation)
    reference_function = getattr(oracle, case.operation)

    if case.operation == "spectral_resize":
        output, pullback = function(x, **case.options)
        arguments: tuple[Any, ...] = ()
    elif case.operation == "spectral_pool":
        output, pullback = function(x, case.strides, **case.options)
        arguments = (case.strides,)
    else:
        strides = backend.from_host(np.array(case.strides), STRIDE_DTYPE[dtype])
        output, pullback = function(x, strides, **case.options)
        arguments = (backend.to_host(strides).astype(np.float64),)

    g = backend.from_host(random.standard_normal(tuple(output.shape)), dtype)
    host_g = backend.to_host(g).astype(np.float64)
    reference = (
        reference_function(host_x, *arguments, host_g, **options)
        if arguments
        else (reference_function(host_x, cotangent=host_g, **options))
    )
    gradients = pullback(g)
    prefix = "" if case.operation == "diff_stride" else f"{case.operation} "
    worst = {
        f"{prefix}output": _check(framework, "output", output, reference.output, dtype),
        f"{prefix}dx": _check(framework, "dx", gradients[0], reference.dx, dtype),
    }
    if case.operation == "diff_stride":
        worst["dstrides"] = _check(
            framework,
            "dstrides",
            gradients[1],
            reference.dstrides,
            STRIDE_DTYPE[dtype],
            precision=dtype,
            bound=reference.bound,
        )
    return worst


def _check(
    framework: Framework,
    quantity: Quantity,
    array: Any,
    reference: Any,
    dtype: str,
    **options: Any,
) -> float:
    if array is None:
        raise Mismatch(f"{quantity}: None, expected an array")
    found = framework.backend.dtype_name(array)
    if found != dtype:
        raise Mismatch(f"{quantity}: dtype {found}, expected {dtype}")
    return check(quantity, framework.backend.to_host(array), reference, dtype=dtype, **options)


def _rounded(framework: Framework, array: NDArray[Any], dtype: str) -> NDArray[np.float64]:
    backend = framework.backend
    return backend.to_host(backend.from_host(array, dtype)).astype(np.float64)
