"""CuPy backend: NumPy's interface on the GPU, which is looked for on first use."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, cast

from diffstride_backends import eager
from diffstride_backends.functional import Functional
from diffstride_backends.protocol import HostArray, Pullback
from diffstride_backends.registry import Framework
from diffstride_core import bases
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.operation import Operation

# Without a GPU, everything can still be imported and documented: CuPy reports it only when asked.
cupy: Any = import_module("cupy") if find_spec("cupy") else None


def unavailable() -> str | None:
    """Return what is missing to compute with CuPy, or None if nothing is."""
    if cupy is None:
        return (
            "CuPy is not installed: pip install 'diffstride[cupy-cuda12x]' for CUDA 12, "
            "'diffstride[cupy-cuda13x]' for CUDA 13"
        )
    if not cupy.cuda.is_available():
        return "diffstride_cupy needs a CUDA GPU: CuPy is installed but finds none"
    return None


class CupyBackend(eager.EagerBackend):
    """CuPy arrays on any GPU.

    Raises
    ------
    RuntimeError
        If CuPy or a GPU is missing.
    """

    def __init__(self) -> None:
        if (reason := unavailable()) is not None:
            raise RuntimeError(reason)
        super().__init__(cupy.empty(0))

    def precise_dtype(self, array: Any) -> Any:  # noqa: D102
        return cupy.float64  # every GPU has it

    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:  # noqa: D102
        stream = cupy.cuda.get_current_stream()
        # One object represents the default streams of all threads.
        thread = threading.current_thread() if stream == cupy.cuda.Stream.ptds else None
        return _tables(basis, like.dtype, like.device.id, stream, thread)

    def to_host(self, array: Any) -> HostArray:  # noqa: D102
        with array.device:  # the copy waits for its current stream
            host: HostArray = cupy.asnumpy(array)
        return host

    def devices(self) -> Sequence[Any]:  # noqa: D102
        return [cupy.cuda.Device(i) for i in range(cupy.cuda.runtime.getDeviceCount())]


# One table per stream, too: between streams, CuPy orders neither copies to the device nor the reuse
# of freed memory. A table made in one stream could be read in another before it is there.
@ByteBoundCache
def _tables(
    basis: bases.AxisBasis,
    dtype: Any,
    device: int,
    stream: Any,
    thread: threading.Thread | None,
) -> tuple[Any, Any]:
    synthesis, analysis = bases.tables(basis)
    return cupy.asarray(synthesis, dtype=dtype), cupy.asarray(analysis, dtype=dtype)


@cache
def _backend() -> CupyBackend:
    return CupyBackend()


class _OnFirstUse:
    """The backend, made on the first access to one of its attributes."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # help() asks every object for these
            raise AttributeError(name)
        return getattr(_backend(), name)


# CuPy makes arrays on the current device, not on the device of its inputs, so these functions
# switch to the inputs' device.
def value(backend: Any, operation: Operation, plan: Any, *arrays: Any) -> Any:
    """Return the value of the forward pass, computed on the device of the arrays."""
    with arrays[0].device:
        return eager.value(backend, operation, plan, *arrays)


def value_and_pullback(
    backend: Any, operation: Operation, plan: Any, *arrays: Any
) -> tuple[Any, Pullback[Any]]:
    """Return the value of the forward pass and its pullback, on the device of the arrays."""
    device = arrays[0].device
    with device:
        y, on_current_device = eager.value_and_pullback(backend, operation, plan, *arrays)

    def pullback(g: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        with device:
            return on_current_device(g)

    return y, pullback


BACKEND = cast(CupyBackend, _OnFirstUse())
FUNCTIONAL: Functional[Any, Any] = Functional(BACKEND, value)
WITH_PULLBACK: Functional[Any, tuple[Any, Pullback[Any]]] = Functional(BACKEND, value_and_pullback)
FRAMEWORK = Framework("cupy", BACKEND, FUNCTIONAL, WITH_PULLBACK)
