"""The interface of an implementation under test, and how to load a third party's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

HostArray: TypeAlias = npt.NDArray[Any]
Pullback: TypeAlias = Callable[[Any], tuple[Any, ...]]

DTYPES = ("float64", "float32", "bfloat16", "float16")
"""Dtypes that an input may have."""

OPERATIONS = (
    "diff_stride",
    "conv_diff_stride",
    "spectral_resize",
    "spectral_pool",
    "complexity",
    "output_sizes",
    "authors_strides",
)
"""Functions of an implementation. It may leave out any of them."""


class Implementation(Protocol):
    """An implementation of the operators on the arrays of some framework.

    Besides the members below, it has the functions of the adapters, under the same names and with
    the same arguments. ``diff_stride``, ``conv_diff_stride``, ``spectral_resize``,
    ``spectral_pool`` and ``complexity`` each return a pair of the value and its pullback. The
    pullback maps a cotangent to a tuple of gradients: of x, then of the strides; for
    ``conv_diff_stride``, of x, weight, strides and, if there is one, bias; for ``complexity``, of
    each layer's strides. ``output_sizes`` and ``authors_strides`` return tuples of numbers.
    `diffstride_backends.functional.Functional` documents what each function computes, and
    `diffstride_conformance.oracle` gives it as plain sums. A function that is missing or None is
    reported as not offered. If there is an attribute ``conv_methods``, the methods ``"fused"`` and
    ``"separate"`` of ``conv_diff_stride`` that it lacks are also reported as not offered.

    Attributes
    ----------
    name, version : str
        Name and version for the tables.
    plain_autodiff : callable or None
        Function that returns a context in which the implementation does not use the derivatives
        that it attaches, and lets its framework differentiate the forward pass. None if there is no
        such context.
    """

    name: str
    version: str
    plain_autodiff: Callable[[], AbstractContextManager[Any]] | None

    def devices(self) -> Sequence[Any]:
        """Return the devices to compute on, the default one first."""

    def dtypes(self, device: Any) -> Sequence[str]:
        """Return the `DTYPES` that an input may have on a device from `devices`."""

    def double_precision(self) -> AbstractContextManager[Any]:
        """Return a context in which float64 arrays can be made."""

    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:
        """Return a copy of a NumPy array in the given dtype, on a device from `devices`."""

    def to_host(self, array: Any) -> HostArray:
        """Return an array's values as a NumPy array of the same dtype, or float32 for bfloat16."""

    def dtype_name(self, array: Any) -> str:
        """Return the name of an array's dtype, spelled as in NumPy or ml_dtypes."""

    def device_of(self, array: Any) -> Any:
        """Return the device of an array, comparable with ``==``, or None if it has no device."""


class ImplementationError(ValueError):
    """An implementation cannot be used; the message says which and why."""


def offers(implementation: Implementation, operation: str, method: str = "auto") -> bool:
    """Return whether an implementation has one of the `OPERATIONS`, with the given method."""
    if getattr(implementation, operation, None) is None:
        return False
    methods = getattr(implementation, "conv_methods", None)
    return operation != "conv_diff_stride" or methods is None or method in ("auto", *methods)


def load(location: str) -> Implementation:
    """Import an implementation.

    Parameters
    ----------
    location : str
        ``"package.module:name"`` of an `Implementation`, or of a class that makes one if it is
        called without arguments.

    Raises
    ------
    ImplementationError
        If there is no implementation of this name, if it cannot be made, or if it lacks a member.
    """
    module_name, colon, name = location.partition(":")
    if not (module_name and colon and name):
        raise ImplementationError(
            f"an implementation is named package.module:Backend, got {location!r}"
        )
    try:
        found = importlib.import_module(module_name)
        for part in name.split("."):
            found = getattr(found, part)
        implementation: Any = found() if isinstance(found, type) else found
    except Exception as error:
        raise ImplementationError(
            f"{location} cannot be loaded: {type(error).__name__}: {error}"
        ) from error
    members = (*Implementation.__annotations__, *_METHODS)
    missing = [member for member in members if not hasattr(implementation, member)]
    if missing:
        raise ImplementationError(f"{location} is no implementation: it lacks {', '.join(missing)}")
    if not any(offers(implementation, operation) for operation in OPERATIONS):
        raise ImplementationError(f"{location} offers none of {', '.join(OPERATIONS)}")
    checked: Implementation = implementation
    return checked


_METHODS = tuple(name for name in vars(Implementation) if not name.startswith("_"))


def rounded(array: npt.ArrayLike, dtype: str) -> npt.NDArray[np.float64]:
    """Return an array rounded to a dtype, as float64, which can hold the values of all dtypes."""
    values = np.asarray(array, dtype=np.float64)
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    # bfloat16 is the upper half of a float32. Round to nearest, ties to even.
    bits = values.astype(np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
