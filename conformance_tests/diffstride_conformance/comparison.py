"""One rule for all comparisons: dtype, device and shape must be equal, then values are compared.

The same accuracy is required of every implementation (:data:`TOLERANCES`). Errors of outputs and
input gradients are relative to the largest magnitude of the reference; errors of stride gradients
are relative to their bound ``B`` (:attr:`diffstride_conformance.oracle.Reference.bound`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Quantity = Literal["output", "dx", "dstrides"]


class Tolerance(NamedTuple):
    """Tolerances of one precision for each quantity.

    Attributes
    ----------
    output, dx : float
        Tolerance relative to the largest magnitude of the reference or, if `significand_bits` is
        set, in units in the last place of that magnitude.
    dstrides : float
        Tolerance in units of the bound ``B``.
    significand_bits : int or None
        Explicitly stored significand bits of a half-precision format; None for other formats.
    smallest_exponent : int
        Exponent of the smallest normal number of a half-precision format. Below it, an ulp does not
        become smaller.
    """

    output: float
    dx: float
    dstrides: float
    significand_bits: int | None = None
    smallest_exponent: int = 0


TOLERANCES: dict[str, Tolerance] = {
    "float64": Tolerance(output=1e-13, dx=1e-13, dstrides=1e-14),
    "float32": Tolerance(output=5e-6, dx=5e-6, dstrides=1e-7),
    "bfloat16": Tolerance(
        output=2, dx=4, dstrides=1e-7, significand_bits=7, smallest_exponent=-126
    ),
    "float16": Tolerance(output=2, dx=4, dstrides=1e-7, significand_bits=10, smallest_exponent=-14),
}

HOST_DTYPE = {"bfloat16": "float32"}
"""Dtypes on the host of results whose dtype NumPy does not have. Other dtypes stay the same."""


class Mismatch(AssertionError):  # noqa: N818 - it names what was found, as AssertionError does
    """A result differs from the reference by more than its precision allows.

    Attributes
    ----------
    units : float
        Worst error in units of the tolerance. It is infinite if something other than values
        differs.
    """

    def __init__(self, message: str, units: float = math.inf) -> None:
        super().__init__(message)
        self.units = units


class Result(NamedTuple):
    """An array that an implementation returned, with its values on the host.

    Attributes
    ----------
    host : ndarray
        Values of the array. bfloat16 is stored as float32.
    dtype : str
    device : object
    """

    host: npt.NDArray[Any]
    dtype: str
    device: Any


def check_result(
    quantity: Quantity,
    result: Result | None,
    reference: npt.ArrayLike,
    *,
    dtype: str,
    device: Any,
    precision: str | None = None,
    bound: npt.ArrayLike | None = None,
) -> float:
    """Compare a result of an implementation with the reference.

    Parameters
    ----------
    quantity, reference, dtype, precision, bound
        See :func:`check`.
    result : Result or None
        Result to check. None, if the implementation returned None, never passes.
    device : object
        Device that the result must be on: the device of the arrays that it was computed from.

    Returns
    -------
    float
        See :func:`check`.

    Raises
    ------
    Mismatch
        If :func:`check` raises it, or if the dtype or the device is wrong.
    """
    if result is None:
        raise Mismatch(f"{quantity}: None, expected an array")
    if result.dtype != dtype:
        raise Mismatch(f"{quantity}: dtype {result.dtype}, expected {dtype}")
    if result.device != device:
        raise Mismatch(f"{quantity}: device {result.device}, expected {device}")
    return check(quantity, result.host, reference, dtype=dtype, precision=precision, bound=bound)


def check(
    quantity: Quantity,
    actual: npt.NDArray[Any],
    reference: npt.ArrayLike,
    *,
    dtype: str,
    precision: str | None = None,
    bound: npt.ArrayLike | None = None,
    extra: float = 0.0,
) -> float:
    """Compare a result with the reference.

    Parameters
    ----------
    quantity : {"output", "dx", "dstrides"}
        Kind of quantity. It decides the column of the tolerance table and the scale.
    actual : ndarray
        Result on the host. A bfloat16 result is passed as a float32 array.
    reference : array_like
        Float64 evaluation of the input as rounded to its dtype, so that only the implementation's
        own errors count.
    dtype : str
        Name of the dtype that the result must have. It may be ``"bfloat16"``.
    precision : str, optional
        Name of the dtype of the input if it differs from the result's: a stride gradient has the
        dtype of the strides, but cannot be more accurate than the input. The looser of the two
        tolerances counts. Default: `dtype`.
    bound : array_like, optional
        ``B``, of the reference's shape. It is required for ``"dstrides"``.
    extra : float
        Value that is added to the relative tolerance of the table. Without double precision, a
        traced float32 stride is allowed an extra ``1e-7 * N/(2 S R)``, where `R` is the width of
        the ramp in frequencies.

    Returns
    -------
    float
        Worst error in units of the tolerance, at most 1.

    Raises
    ------
    Mismatch
        If shapes or dtypes differ, or if an error exceeds the tolerance. If the scale is zero, an
        exact zero is required. NaN never passes.
    """
    expected = np.asarray(reference, dtype=np.float64)
    if actual.shape != expected.shape:
        raise Mismatch(f"{quantity}: shape {actual.shape}, expected {expected.shape}")
    host_dtype = HOST_DTYPE.get(dtype, dtype)
    if actual.dtype.name != host_dtype:
        raise Mismatch(f"{quantity}: dtype {actual.dtype.name}, expected {host_dtype}")
    if dtype == "bfloat16" and np.any(np.ascontiguousarray(actual).view(np.uint32) & 0xFFFF):
        raise Mismatch(f"{quantity}: not rounded to bfloat16, though stored as float32")
    if expected.size == 0:
        return 0.0

    tolerance = np.maximum(
        allowed(quantity, expected, precision=dtype, bound=bound, extra=extra),
        allowed(quantity, expected, precision=precision or dtype, bound=bound, extra=extra),
    )
    return worst(f"{quantity} ({dtype})", actual, expected, tolerance)


def worst(
    what: str,
    actual: npt.NDArray[Any],
    expected: npt.NDArray[np.float64],
    tolerance: npt.NDArray[np.float64],
) -> float:
    """Return the worst error in units of the tolerance. All arrays have the same shape.

    Raises
    ------
    Mismatch
        If the error is greater than 1 or not a number. The message names `what` and the element.
    """
    error = np.abs(actual.astype(np.float64) - expected)
    # NaN and infinite errors must exceed the tolerance. An exact zero must meet a tolerance of 0.
    units = np.full(expected.shape, math.inf)
    np.divide(error, tolerance, out=units, where=np.isfinite(error) & (tolerance > 0))
    units = np.where(error == 0, 0.0, units)

    at = np.unravel_index(np.argmax(units), units.shape)
    if units[at] > 1:
        element = tuple(int(i) for i in at)
        raise Mismatch(
            f"{what}: worst at {element}: {float(actual[at])!r}, "
            f"expected {float(expected[at])!r}; error {error[at]:.3g} is {units[at]:.3g} "
            f"times the tolerance {tolerance[at]:.3g}; "
            f"{int(np.sum(units > 1))} of {units.size} elements are off",
            float(units[at]),
        )
    return float(units[at])


def allowed(
    quantity: Quantity,
    reference: npt.NDArray[np.float64],
    *,
    precision: str,
    bound: npt.ArrayLike | None = None,
    extra: float = 0.0,
) -> npt.NDArray[np.float64]:
    """Return the largest error that `precision` allows, element by element.

    The parameters are the same as in :func:`check`.

    Raises
    ------
    ValueError
        If the bound of ``"dstrides"`` is missing or has another shape.
    """
    row = TOLERANCES[precision]
    if quantity == "dstrides":
        if bound is None or np.shape(bound) != reference.shape:
            raise ValueError("dstrides needs a bound of its own shape")
        return (row.dstrides + extra) * np.asarray(bound, dtype=np.float64)
    largest = float(np.max(np.abs(reference), initial=0.0))
    relative = row.output if quantity == "output" else row.dx
    if row.significand_bits is None or largest == 0:
        limit = relative * largest
    else:
        # The mantissa of frexp is in [1/2, 1), the mantissa of the format is in [1, 2).
        exponent = max(math.frexp(largest)[1] - 1, row.smallest_exponent)
        limit = relative * math.ldexp(1.0, exponent - row.significand_bits)
    return np.full(reference.shape, limit + extra * largest)
