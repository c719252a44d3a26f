"""The one rule by which results are compared: dtype, device and shape exactly, then values.

Every implementation owes the same accuracy (:data:`TOLERANCES`). Outputs and input gradients are
measured against the largest magnitude of the reference, stride gradients against their bound ``B``
(:attr:`diffstride_conformance.oracle.Reference.bound`).
"""

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

Quantity = Literal["output", "dx", "dstrides"]


class Tolerance(NamedTuple):
    """What one precision owes for each quantity.

    Attributes
    ----------
    output, dx : float
        Relative to the reference's largest magnitude or, where `significand_bits` is set, in units
        in the last place of that magnitude.
    dstrides : float
        In units of the bound ``B``.
    significand_bits : int or None
        Explicitly stored bits of a half precision; None for the others.
    smallest_exponent : int
        Exponent of a half precision's smallest normal number: below it an ulp shrinks no further.
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
"""How a dtype that NumPy does not have arrives here; any other arrives as itself."""


class Mismatch(AssertionError):  # noqa: N818 - it names what was found, as AssertionError does
    """A result differs from the reference by more than its precision allows.

    Attributes
    ----------
    units : float
        The worst error in units of the tolerance; infinite where the difference is not one of
        values.
    """

    def __init__(self, message: str, units: float = math.inf) -> None:
        super().__init__(message)
        self.units = units


class Result(NamedTuple):
    """An array that an implementation returned, as the host sees it.

    Attributes
    ----------
    host : ndarray
        Its values; bfloat16 as float32.
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
    """Compare a result of an implementation with what it owes.

    Parameters
    ----------
    quantity, reference, dtype, precision, bound
        As for :func:`check`.
    result : Result or None
        None where the implementation returned that, which never passes.
    device : object
        The device that the result must be on: that of the arrays it was computed from.

    Returns
    -------
    float
        As for :func:`check`.

    Raises
    ------
    Mismatch
        Also if the dtype or the device is another.
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
        What is compared; decides the row of the tolerance table and the scale.
    actual : ndarray
        The result, on the host. A bfloat16 result is passed as a float32 array.
    reference : array_like
        The float64 evaluation: of the input as rounded to its dtype, so that only the
        implementation's own errors count.
    dtype : str
        Name of the dtype the result must have, ``"bfloat16"`` included.
    precision : str, optional
        Name of the dtype of the input, where the result's differs: a stride gradient has the
        stride's dtype but cannot be better than the input's. The looser of the two counts.
        `dtype` if None.
    bound : array_like, optional
        ``B``, of the reference's shape; required for ``"dstrides"``.
    extra : float
        Added to the table's relative tolerance. Without double precision a traced float32 stride
        is owed ``1e-7 * N/(2 S R)``, where `R` is the width of the ramp in frequencies.

    Returns
    -------
    float
        The worst error in units of the tolerance, at most 1.

    Raises
    ------
    Mismatch
        If shapes or dtypes differ, or any value is off by more than the tolerance; an exact zero
        is required where the scale is zero, and NaN never passes.
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
    """Return the worst error in units of the tolerance; all arrays have one shape.

    Raises
    ------
    Mismatch
        Saying `what` is off and where, if the error is greater than 1 or not a number.
    """
    error = np.abs(actual.astype(np.float64) - expected)
    # Written so that NaN and infinite errors exceed, and an exact zero meets a tolerance of zero.
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
    """Return the largest error that `precision` permits, element by element.

    Parameters are those of :func:`check`.

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
        # frexp's mantissa lies in [1/2, 1), that of the format in [1, 2).
        exponent = max(math.frexp(largest)[1] - 1, row.smallest_exponent)
        limit = relative * math.ldexp(1.0, exponent - row.significand_bits)
    return np.full(reference.shape, limit + extra * largest)
