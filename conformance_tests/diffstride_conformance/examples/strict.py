"""array-api-strict, which offers nothing beyond the array API standard.

``diffstride-verify --backend diffstride_conformance.examples.strict:Backend``
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import array_api_strict as xp
import numpy as np
from diffstride_backends import eager
from diffstride_backends.functional import Functional
from diffstride_backends.registry import Framework

from diffstride_conformance.frameworks import STRICT, FrameworkImplementation
from diffstride_conformance.implementation import HostArray, Pullback


class StrictBackend(eager.EagerBackend):
    """Arrays on several devices. NumPy reads only those on the default device."""

    def __init__(self) -> None:
        super().__init__(xp.empty(0))

    def devices(self) -> Sequence[Any]:
        """Return the devices to compute on, the default one first."""
        devices: Sequence[Any] = xp.__array_namespace_info__().devices()
        # On the device left out here, argmax makes an int64 and then refuses it.
        return [device for device in devices if "no_x64" not in str(device)]

    def to_host(self, array: Any) -> HostArray:
        """Return an array's values as a NumPy array."""
        return np.asarray(array.to_device(self.devices()[0]))


# The flags apply to the whole process, so they are set only while the core computes.
def _strictest() -> Any:
    return xp.ArrayAPIStrictFlags(
        api_version="2025.12",
        boolean_indexing=False,
        data_dependent_shapes=False,
        enabled_extensions=("fft",),
    )


def _value(*arguments: Any) -> Any:
    with _strictest():
        return eager.value(*arguments)


def _value_and_pullback(*arguments: Any) -> tuple[Any, Pullback]:
    with _strictest():
        y, pullback = eager.value_and_pullback(*arguments)
    return y, _strictly(pullback)


def _strictly(pullback: Callable[[Any], Any]) -> Pullback:
    def strict_pullback(g: Any) -> Any:
        with _strictest():
            return pullback(g)

    return strict_pullback


class Backend(FrameworkImplementation):
    """The implementation under test."""

    def __init__(self) -> None:
        backend = StrictBackend()
        framework = Framework(
            STRICT,
            backend,
            Functional(backend, _value),
            Functional(backend, _value_and_pullback),
        )
        super().__init__(framework, xp.__version__)
