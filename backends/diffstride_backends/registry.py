"""The backends by name. They are imported when they are asked for."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from diffstride_backends.functional import Functional
from diffstride_backends.protocol import Backend

_MODULES = {
    "numpy": "diffstride_backends.numpy_backend",
    "torch": "diffstride_backends.torch_backend",
    "jax": "diffstride_backends.jax_backend",
    "cupy": "diffstride_backends.cupy_backend",
}

# Backends that are of no use without a device of their own. Their modules can be imported anyway,
# and have a function `unavailable` that says what is missing.
_NEED_A_DEVICE = {"cupy"}


@dataclass(frozen=True)
class Framework:
    """What the registry knows about a framework.

    Attributes
    ----------
    name : str
    backend : Backend
    functional : Functional
        Its functions return the framework's arrays.
    with_pullback : Functional
        Its functions return pairs of a value and its pullback. The framework's own way of
        differentiating gives the pullback.
    double_precision : callable
        Returns a context in which float64 arrays can be made.
    plain_autodiff : callable or None
        Returns a context in which the framework differentiates the forward pass itself; None if the
        framework cannot do so.
    """

    name: str
    backend: Backend[Any]
    functional: Functional[Any, Any]
    with_pullback: Functional[Any, Any]
    double_precision: Callable[[], AbstractContextManager[Any]] = nullcontext
    plain_autodiff: Callable[[], AbstractContextManager[Any]] | None = None


def names() -> tuple[str, ...]:
    """Return the names of all backends, installed or not."""
    return tuple(_MODULES)


def is_installed(name: str) -> bool:
    """Return whether a backend's framework can be imported, without importing it."""
    return importlib.util.find_spec(_checked(name)) is not None


def unavailable(name: str) -> str | None:
    """Return why a backend cannot be used here; None if it can.

    The function imports no framework except CuPy, since only CuPy knows whether it has a GPU.
    """
    return _missing_device(name) if is_installed(name) else "not installed"


def get(name: str) -> Framework:
    """Return a framework by name, importing it.

    Raises
    ------
    ValueError
        If the name is unknown.
    ImportError
        If the framework is not installed.
    RuntimeError
        If the framework has no device here, or is CuPy and not installed.
    """
    module = importlib.import_module(_MODULES[_checked(name)])
    if (reason := _missing_device(name)) is not None:
        raise RuntimeError(reason)
    framework = module.FRAMEWORK
    assert isinstance(framework, Framework)
    return framework


def framework_of(array: object) -> Framework:
    """Return the framework that an array belongs to.

    Its package has been imported already: otherwise there would be no array.

    Raises
    ------
    TypeError
        If no backend knows the array's type.
    """
    root = type(array).__module__.partition(".")[0]
    if root not in _MODULES:
        raise TypeError(
            f"array must belong to one of {', '.join(_MODULES)}, got {type(array).__name__}"
        )
    return get(root)


def _checked(name: str) -> str:
    if name not in _MODULES:
        raise ValueError(f"name must be one of {', '.join(_MODULES)}, got {name!r}")
    return name


def _missing_device(name: str) -> str | None:
    if name not in _NEED_A_DEVICE:
        return None
    reason: str | None = importlib.import_module(_MODULES[name]).unavailable()
    return reason
