"""dask.array: every operation goes into a graph, and is computed when the host needs values.

``diffstride-verify --backend diffstride_conformance.examples.dask_arrays:Backend``
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import dask
import dask.array as da
from diffstride_backends import eager
from diffstride_backends.functional import Functional
from diffstride_backends.registry import Framework

from diffstride_conformance.frameworks import FrameworkImplementation
from diffstride_conformance.implementation import HostArray


class DaskBackend(eager.EagerBackend):
    """Arrays in chunks."""

    def __init__(self) -> None:
        super().__init__(da.empty(1))
        self.xp = SimpleNamespace(**{**vars(self.xp), "reshape": _reshape})

    # Two chunks along the first axis: by default, arrays as small as these would have one.
    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> Any:
        """Return a copy of a NumPy array in the given dtype."""
        chunks = tuple(-(-size // (2 if axis == 0 else 1)) for axis, size in enumerate(array.shape))
        return da.from_array(array.astype(dtype), chunks=chunks)

    # A transform needs its whole axis in one chunk.
    def rfft(self, array: Any, axis: int) -> Any:
        """Transform a real array along one axis."""
        return super().rfft(array.rechunk({axis: -1}), axis)

    def irfft(self, array: Any, size: int, axis: int) -> Any:
        """Invert `rfft`."""
        return super().irfft(array.rechunk({axis: -1}), size, axis)

    def fft(self, array: Any, axis: int) -> Any:
        """Transform a complex array along one axis."""
        return super().fft(array.rechunk({axis: -1}), axis)

    def ifft(self, array: Any, axis: int) -> Any:
        """Invert `fft`."""
        return super().ifft(array.rechunk({axis: -1}), axis)


# dask refuses to reshape some arrays without entries, and some whose chunks would be split up.
def _reshape(array: Any, shape: tuple[int, ...]) -> Any:
    if not array.size:
        return da.zeros(shape, dtype=array.dtype, chunks=-1)
    try:
        return da.reshape(array, shape)
    except NotImplementedError:
        return da.reshape(array.rechunk(-1), shape)


class Backend(FrameworkImplementation):
    """The implementation under test."""

    def __init__(self) -> None:
        backend = DaskBackend()
        framework = Framework(
            "dask",
            backend,
            Functional(backend, eager.value),
            Functional(backend, eager.value_and_pullback),
        )
        super().__init__(framework, dask.__version__)
