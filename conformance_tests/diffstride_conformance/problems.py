"""A case in one dtype: the arrays to compute with, and all results that are expected for them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import scipy.signal

from diffstride_conformance import oracle
from diffstride_conformance.cases import Case
from diffstride_conformance.comparison import TOLERANCES, Quantity
from diffstride_conformance.implementation import rounded

FloatArray = npt.NDArray[np.float64]

STRIDE_DTYPE = {
    "float64": "float64",
    "float32": "float32",
    "bfloat16": "float32",
    "float16": "float32",
}
"""Dtype of the strides for each dtype of x. Strides are never in half precision."""

SCIPY = "spectral_resize as scipy"
OUTPUT_SIZES = "output sizes"


@dataclass(frozen=True)
class Owed:
    """One array that an implementation must return.

    Attributes
    ----------
    quantity : str
        Name in the tables.
    kind : {"output", "dx", "dstrides"}
        Kind, which decides the tolerance.
    position : int
        0 for the value, then 1, 2, ... for the gradients in their order.
    reference : ndarray of float64
    dtype : str
        Dtype of the result.
    precision : str
        Dtype of the input, which limits the accuracy of the result.
    bound : ndarray or None
        See `comparison.check`.
    """

    quantity: str
    kind: Quantity
    position: int
    reference: FloatArray
    dtype: str
    precision: str
    bound: FloatArray | None = None


@dataclass(frozen=True)
class Problem:
    """Arrays that an implementation is given for a case, and results that it must return.

    Attributes
    ----------
    case : Case
    dtype : str
        Dtype of x.
    arrays : tuple of (ndarray, str)
        Arrays that are differentiated and their dtypes. The arrays are float64, but already rounded
        to these dtypes: x and, for ``"diff_stride"``, the strides; for ``"conv_diff_stride"``, x,
        weight, strides and, if there is one, bias; for ``"complexity"``, each layer's strides.
    cotangent : (ndarray, str)
        Cotangent of the value, in the same form.
    owed : tuple of Owed
    sizes : tuple of int or None
        Expected result of ``output_sizes``, or None if it does not apply.
    """

    case: Case
    dtype: str
    arrays: tuple[tuple[FloatArray, str], ...]
    cotangent: tuple[FloatArray, str]
    owed: tuple[Owed, ...]
    sizes: tuple[int, ...] | None = None

    @property
    def quantities(self) -> tuple[str, ...]:
        """Names of all compared quantities, each once."""
        sizes = () if self.sizes is None else (OUTPUT_SIZES,)
        return (*dict.fromkeys(owed.quantity for owed in self.owed), *sizes)


def is_posed(case: Case, dtype: str) -> bool:
    """Return whether a case is a problem in a dtype.

    A framework's own convolution rounds half precision in its own way, so no accuracy is required
    of results that depend on it. In half precision, ``conv_diff_stride`` is therefore a problem
    only with the method ``"fused"``.
    """
    is_half = TOLERANCES[dtype].significand_bits is not None
    return not (is_half and case.operation == "conv_diff_stride" and case.method != "fused")


# Cached, because all implementations are given the same problem, and the sums of the oracle take
# longer than all of them together.
@lru_cache(maxsize=64)
def pose(case: Case, dtype: str) -> Problem:
    """Return the problem of a case in a dtype.

    Raises
    ------
    ValueError
        If `is_posed` is false for it.
    """
    if not is_posed(case, dtype):
        raise ValueError(f"{case.name} is no problem in {dtype}")
    if case.operation == "complexity":
        return _complexity(case, STRIDE_DTYPE[dtype])
    if case.operation == "conv_diff_stride":
        return _convolution(case, dtype)
    return _resampling(case, dtype)


def _complexity(case: Case, dtype: str) -> Problem:
    arrays = [rounded(strides, dtype) for strides in case.strides]
    # The oracle is given the strides in use: strides below 1 are raised to 1, and their gradient
    # passes straight through.
    value, gradients = oracle.complexity([np.maximum(1, strides) for strides in arrays])
    g = -1.25
    owed = [Owed("complexity", "output", 0, np.array(value), dtype, dtype)]
    owed += [
        Owed("complexity gradient", "dx", position, g * gradient, dtype, dtype)
        for position, gradient in enumerate(gradients, start=1)
    ]
    return Problem(
        case,
        dtype,
        tuple((strides, dtype) for strides in arrays),
        (np.array(g), dtype),
        tuple(owed),
    )


def _resampling(case: Case, dtype: str) -> Problem:
    random = case.random()
    x = rounded(random.standard_normal(case.shape), dtype)
    arrays = [(x, dtype)]
    options = _oracle_options(case)
    reference_function = getattr(oracle, case.operation)
    prefix, sizes = f"{case.operation} ", None
    if case.operation == "diff_stride":
        prefix = ""
        strides = rounded(case.strides, STRIDE_DTYPE[dtype])
        arrays.append((strides, STRIDE_DTYPE[dtype]))
        options["strides"] = strides
        if "sizes" not in case.options:
            sizes = oracle.output_sizes(case.shape, strides, **sizing_options(case))
    elif case.operation == "spectral_pool":
        options["strides"] = case.strides

    g = rounded(random.standard_normal(_output_shape(case, sizes)), dtype)
    reference = reference_function(x, cotangent=g, **options)
    owed = [
        Owed(f"{prefix}output", "output", 0, reference.output, dtype, dtype),
        Owed(f"{prefix}dx", "dx", 1, reference.dx, dtype, dtype),
    ]
    if case.operation == "diff_stride":
        owed.append(
            Owed(
                "dstrides",
                "dstrides",
                2,
                reference.dstrides,
                STRIDE_DTYPE[dtype],
                dtype,
                reference.bound,
            )
        )
    if case.operation == "spectral_resize" and options.get("norm", "forward") == "forward":
        resampled = x
        for axis, size in zip(options["axes"], options["sizes"], strict=True):
            resampled = scipy.signal.resample(resampled, size, axis=axis)
        owed.append(Owed(SCIPY, "output", 0, resampled, dtype, dtype))
    return Problem(case, dtype, tuple(arrays), (g, dtype), tuple(owed), sizes)


def _convolution(case: Case, dtype: str) -> Problem:
    random = case.random()
    # With this scale, neither the output nor its gradients grow with the kernel.
    scale = 1 / math.sqrt(math.prod(case.weight_shape[1:]))
    drawn: dict[str, tuple[FloatArray, str]] = {
        "x": (random.standard_normal(case.shape), dtype),
        "weight": (scale * random.standard_normal(case.weight_shape), dtype),
        "strides": (np.array(case.strides), STRIDE_DTYPE[dtype]),
    }
    if case.has_bias:
        drawn["bias"] = (random.standard_normal(case.weight_shape[0]), dtype)
    arrays = {name: (rounded(values, own), own) for name, (values, own) in drawn.items()}
    values = {name: array for name, (array, _) in arrays.items()}
    sizes = None
    if "sizes" not in case.options:
        sizes = oracle.output_sizes(case.shape, values["strides"], **sizing_options(case))
    g = rounded(random.standard_normal(_output_shape(case, sizes)), dtype)
    reference = oracle.conv_diff_stride(**values, cotangent=g, **_oracle_options(case))
    owed = [Owed(f"{case.operation} output", "output", 0, reference.output, dtype, dtype)]
    for position, (name, (_, own)) in enumerate(arrays.items(), start=1):
        kind: Quantity = "dstrides" if name == "strides" else "dx"
        owed.append(
            Owed(
                f"{case.operation} d{name}",
                kind,
                position,
                getattr(reference, f"d{name}"),
                own,
                dtype,
                reference.bound if kind == "dstrides" else None,
            )
        )
    return Problem(case, dtype, tuple(arrays.values()), (g, dtype), tuple(owed))


def _oracle_options(case: Case) -> dict[str, Any]:
    return {key: case.options[key] for key in case.options if key != "method"}


def _output_shape(case: Case, sizes: tuple[int, ...] | None) -> tuple[int, ...]:
    if case.operation == "spectral_pool":
        pooled = oracle.spectral_pool(np.zeros(case.shape), case.strides, **case.options)
        return pooled.output.shape
    shape = list(case.shape)
    resized = case.options["sizes"] if sizes is None else sizes
    for axis, size in zip(case.axes, resized, strict=True):
        shape[axis] = size
    if case.weight_shape:
        shape[-1 if -1 not in case.axes else case.axes[0] - 1] = case.weight_shape[0]
    return tuple(shape)


def sizing_options(case: Case) -> dict[str, Any]:
    """Return the axes of a case, and its options that ``output_sizes`` also has."""
    names = ("smoothness", "limits", "cropping", "multiple_of", "convention")
    known = {name: case.options[name] for name in names if name in case.options}
    return {"axes": case.axes, **known}
