"""A case in one dtype: the arrays to compute with, and every result that is owed for them."""

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
"""The dtype of strides for a dtype of x: strides are never half."""

SCIPY = "spectral_resize as scipy"
OUTPUT_SIZES = "output sizes"


@dataclass(frozen=True)
class Owed:
    """One array that is owed.

    Attributes
    ----------
    quantity : str
        What the tables call it.
    kind : {"output", "dx", "dstrides"}
        Which tolerance it has.
    position : int
        0 for the value, then the gradients in their order.
    reference : ndarray of float64
    dtype : str
        Of the result.
    precision : str
        Of the input, where that limits what the result can be.
    bound : ndarray or None
        As for `comparison.check`.
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
    """What an implementation is given for a case, and what it owes.

    Attributes
    ----------
    case : Case
    dtype : str
        Of x.
    arrays : tuple of (ndarray, str)
        The arrays that are differentiated, in float64 but rounded already to the dtype named: x
        and, for ``"diff_stride"``, the strides; x, weight, strides and bias, if there is one, for
        ``"conv_diff_stride"``; each layer's strides for ``"complexity"``.
    cotangent : (ndarray, str)
        Of the value, likewise.
    owed : tuple of Owed
    sizes : tuple of int or None
        What ``output_sizes`` owes; None where it does not apply.
    """

    case: Case
    dtype: str
    arrays: tuple[tuple[FloatArray, str], ...]
    cotangent: tuple[FloatArray, str]
    owed: tuple[Owed, ...]
    sizes: tuple[int, ...] | None = None

    @property
    def quantities(self) -> tuple[str, ...]:
        """The names of all that is compared, each once."""
        sizes = () if self.sizes is None else (OUTPUT_SIZES,)
        return (*dict.fromkeys(owed.quantity for owed in self.owed), *sizes)


def is_posed(case: Case, dtype: str) -> bool:
    """Return whether a case is a problem in a dtype.

    A framework's own convolution rounds half precision as it does, so that what comes of it owes no
    accuracy: there only ``conv_diff_stride`` by the method ``"fused"`` does.
    """
    is_half = TOLERANCES[dtype].significand_bits is not None
    return not (is_half and case.operation == "conv_diff_stride" and case.method != "fused")


# Every implementation is given the same problem, and the sums of the oracle take longer than all
# of them.
@lru_cache(maxsize=64)
def pose(case: Case, dtype: str) -> Problem:
    """Return the problem of a case in a dtype.

    Raises
    ------
    ValueError
        Unless it `is_posed`.
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
    # The oracle is given the strides in use: those below 1 are bounded, their gradient straight
    # through.
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
    # So that neither the output nor its gradients grow with the kernel.
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
    """Return the axes, and those options of a case that ``output_sizes`` has too."""
    names = ("smoothness", "limits", "cropping", "multiple_of", "convention")
    known = {name: case.options[name] for name in names if name in case.options}
    return {"axes": case.axes, **known}
