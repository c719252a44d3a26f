"""What the kit asks of an implementation under test, and how a third party's is found."""

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
"""The dtypes that an input may have."""

OPERATIONS = (
    "diff_stride",
    "conv_diff_stride",
    "spectral_resize",
    "spectral_pool",
    "complexity",
    "output_sizes",
    "authors_strides",
)
"""The functions of an implementation, any of which it may leave out."""


class Implementation(Protocol):
    """An implementation of the operators, on the arrays of whatever framework it has.

    Beside the members below it has the functions of the adapters, under the same names and with
    the same arguments: ``diff_stride``, ``conv_diff_stride``, ``spectral_resize``,
    ``spectral_pool`` and ``complexity``, each returning a pair of the value and its pullback, which
    maps a cotangent to a tuple of gradients (of x, then of the strides; of x, weight, strides and,
    if there is one, bias for ``conv_diff_stride``; of each layer's strides for ``complexity``);
    ``output_sizes`` and ``authors_strides``, which return tuples of numbers. What each computes is
    said in `diffstride_backends.functional.Functional` and, as plain sums, in
    `diffstride_conformance.oracle`. A function that is missing, or None, is reported as not
    offered; so are the methods ``"fused"`` and ``"separate"`` of ``conv_diff_stride`` that are not
    in ``conv_methods``, where there is such an attribute.

    Attributes
    ----------
    name, version : str
        As the tables call it.
    plain_autodiff : callable or None
        Returns a context in which the implementation does without the derivatives it attaches, and
        lets its framework differentiate the forward pass; None if there is no such thing.
    """

    name: str
    version: str
    plain_autodiff: Callable[[], AbstractContextManager[Any]] | None

    def devices(self) -> Sequence[Any]:
        """Return the devices there are to compute on, the default one first."""

    def dtypes(self, device: Any) -> Sequence[str]:
        """Return which of the `DTYPES` an input may have on a device from `devices`."""

    def double_precision(self) -> AbstractContextManager[Any]:
        """Return a context in which float64 arrays can be made."""

    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:
        """Return a copy of a NumPy array in the dtype named, on a device from `devices`."""

    def to_host(self, array: Any) -> HostArray:
        """Return an array's values as a NumPy array of its own dtype; bfloat16 as float32."""

    def dtype_name(self, array: Any) -> str:
        """Return the name of an array's dtype, as NumPy or ml_dtypes spell it."""

    def device_of(self, array: Any) -> Any:
        """Return the device of an array, comparable with ``==``; None if it has none."""


class ImplementationError(ValueError):
    """An implementation cannot be used; the message says which and why."""


def offers(implementation: Implementation, operation: str, method: str = "auto") -> bool:
    """Return whether an implementation has one of the `OPERATIONS`, and that by a method."""
    if getattr(implementation, operation, None) is None:
        return False
    methods = getattr(implementation, "conv_methods", None)
    return operation != "conv_diff_stride" or methods is None or method in ("auto", *methods)


def load(location: str) -> Implementation:
    """Import an implementation.

    Parameters
    ----------
    location : str
        ``"package.module:name"`` of an `Implementation`, or of a class whose instances, made
        without arguments, are.

    Raises
    ------
    ImplementationError
        If there is none at that place, it cannot be made, or it lacks a member.
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
    """Return an array rounded to a dtype, in float64, which holds every value of the others."""
    values = np.asarray(array, dtype=np.float64)
    if dtype != "bfloat16":
        return values.astype(dtype).astype(np.float64)
    # The upper half of a float32, rounded to nearest, ties to even.
    bits = values.astype(np.float32).view(np.uint32)
    bits = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (bits & np.uint32(0xFFFF0000)).view(np.float32).astype(np.float64)
