"""Implementations that are known by name: the registry's frameworks and array-api-strict."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Sequence
from typing import Any

import numpy as np
from diffstride_backends import registry
from diffstride_backends.registry import Framework

from diffstride_conformance.implementation import DTYPES, HostArray, Implementation, load

STRICT = "array-api-strict"


class FrameworkImplementation:
    """A framework of `diffstride_backends` as an implementation under test.

    Parameters
    ----------
    framework : Framework
    version : str, optional
        Version of the framework. None: the version of the module with its name.
    """

    def __init__(self, framework: Framework, version: str | None = None) -> None:
        self.name = framework.name
        self.version: str = (
            importlib.import_module(framework.name).__version__ if version is None else version
        )
        self._backend = framework.backend
        self.double_precision = framework.double_precision
        self.plain_autodiff = framework.plain_autodiff
        functions = framework.with_pullback
        self.diff_stride = functions.diff_stride
        self.conv_diff_stride = functions.conv_diff_stride
        self.conv_methods = functions.conv_methods
        self.spectral_resize = functions.spectral_resize
        self.spectral_pool = functions.spectral_pool
        self.complexity = functions.complexity
        self.output_sizes = functions.output_sizes
        self.authors_strides = functions.authors_strides

    def devices(self) -> Sequence[Any]:
        """Return the devices to compute on, the default one first."""
        return self._backend.devices()

    def dtypes(self, device: Any) -> Sequence[str]:
        """Return the dtypes that an input may have on a device."""
        with self.double_precision():
            example = self._backend.from_host(np.zeros(1), "float32", device)
            double = self._backend.precise_dtype(example) == self._backend.xp.float64
        return [
            name
            for name in DTYPES
            if hasattr(self._backend.xp, name) and (double or name != "float64")
        ]

    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:
        """Return a copy of a NumPy array in the given dtype, on a device from `devices`."""
        return self._backend.from_host(array, dtype, device)

    def to_host(self, array: Any) -> HostArray:
        """Return an array's values as a NumPy array."""
        return self._backend.to_host(array)

    def dtype_name(self, array: Any) -> str:
        """Return the name of an array's dtype."""
        return self._backend.dtype_name(array)

    def device_of(self, array: Any) -> Any:
        """Return the device of an array."""
        return self._backend.device_of(array)


def as_implementation(subject: Implementation | Framework) -> Implementation:
    """Return an implementation as it is, or the implementation made from a framework."""
    return FrameworkImplementation(subject) if isinstance(subject, Framework) else subject


def names() -> tuple[str, ...]:
    """Return the names of all implementations that `get` knows, usable here or not."""
    return (*registry.names(), STRICT)


def unavailable(name: str) -> str | None:
    """Return why an implementation cannot be used here, or None if it can.

    The only framework that this imports is CuPy, because only CuPy knows whether it has a GPU.

    Raises
    ------
    ValueError
        If the name is unknown.
    """
    if name == STRICT:
        found = importlib.util.find_spec("array_api_strict") is not None
        return None if found else "not installed"
    return registry.unavailable(name)


def get(name: str) -> Implementation:
    """Import the framework of an implementation, given by name, and return the implementation.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError, ImplementationError, RuntimeError
        If it is unavailable.
    """
    if name == STRICT:
        return load("diffstride_conformance.examples.strict:Backend")
    return FrameworkImplementation(registry.get(name))
