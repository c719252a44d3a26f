"""CuPy: NumPy's interface on the GPU, found there on first use."""

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

# Everything can be imported and read about without a GPU; CuPy says only when asked.
cupy: Any = import_module("cupy") if find_spec("cupy") else None


def unavailable() -> str | None:
    """Return what CuPy lacks to compute, None if nothing."""
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
        Without CuPy or without a GPU.
    """

    def __init__(self) -> None:
        if (reason := unavailable()) is not None:
            raise RuntimeError(reason)
        super().__init__(cupy.empty(0))

    def precise_dtype(self, array: Any) -> Any:  # noqa: D102
        return cupy.float64  # on every GPU

    def tables(self, basis: bases.AxisBasis, like: Any) -> tuple[Any, Any]:  # noqa: D102
        stream = cupy.cuda.get_current_stream()
        # One object stands for the default streams of all threads.
        thread = threading.current_thread() if stream == cupy.cuda.Stream.ptds else None
        return _tables(basis, like.dtype, like.device.id, stream, thread)

    def to_host(self, array: Any) -> HostArray:  # noqa: D102
        with array.device:  # whose current stream the copy waits for
            host: HostArray = cupy.asnumpy(array)
        return host

    def devices(self) -> Sequence[Any]:  # noqa: D102
        return [cupy.cuda.Device(i) for i in range(cupy.cuda.runtime.getDeviceCount())]


# Per stream too: CuPy orders neither a copy to the device nor the reuse of freed memory between
# streams, so a table made in one could be read in another before it is there.
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
    """The backend, made when something is asked of it."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # as help() asks of anything
            raise AttributeError(name)
        return getattr(_backend(), name)


# CuPy makes arrays on the current device, whatever the device of those they are made from; so it is
# switched to theirs.
def value(backend: Any, operation: Operation, plan: Any, *arrays: Any) -> Any:
    """Evaluate the forward pass alone, on the device of the arrays."""
    with arrays[0].device:
        return eager.value(backend, operation, plan, *arrays)


def value_and_pullback(
    backend: Any, operation: Operation, plan: Any, *arrays: Any
) -> tuple[Any, Pullback[Any]]:
    """Evaluate the forward pass and return it with its pullback, on the device of the arrays."""
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
