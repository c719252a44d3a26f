"""NumPy, with SciPy's transforms."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.fft
from numpy.typing import NDArray

from diffstride_backends import eager
from diffstride_backends.functional import Functional
from diffstride_backends.protocol import HostArray, Pullback
from diffstride_backends.registry import Framework
from diffstride_core import bases
from diffstride_core._namespace import namespace_of


class NumpyBackend:
    """NumPy arrays: values and pullbacks, no automatic differentiation."""

    def __init__(self) -> None:
        self.xp: Any = namespace_of(np.empty(0))

    def precise_dtype(self, array: HostArray) -> Any:  # noqa: D102
        return np.float64

    def frequencies(self, count: int, like: HostArray) -> HostArray:  # noqa: D102
        return np.arange(count, dtype=np.float64)

    def compute_dtype(self, array: HostArray) -> Any:  # noqa: D102
        return np.float32 if array.dtype == np.float16 else array.dtype

    def tables(  # noqa: D102
        self, basis: bases.AxisBasis, like: HostArray
    ) -> tuple[HostArray, HostArray]:
        return bases.tables(basis)

    def stop_gradient(self, array: HostArray) -> HostArray:  # noqa: D102
        return array

    # scipy.fft keeps float32; numpy.fft computes it in double precision.
    def rfft(self, array: HostArray, axis: int) -> HostArray:  # noqa: D102
        return np.asarray(scipy.fft.rfft(array, axis=axis))

    def irfft(self, array: HostArray, size: int, axis: int) -> HostArray:  # noqa: D102
        return np.asarray(scipy.fft.irfft(array, n=size, axis=axis))

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, np.ndarray)

    def check_input(self, x: object) -> None:  # noqa: D102
        if not isinstance(x, np.ndarray):
            raise TypeError(f"x must be a numpy.ndarray, got {type(x).__name__}")
        if x.dtype not in (np.float16, np.float32, np.float64):
            raise TypeError(f"x must be real floating point, got dtype {x.dtype}")

    def check_strides(self, strides: HostArray, like: HostArray | None) -> None:  # noqa: D102
        if strides.dtype not in (np.float32, np.float64):
            raise TypeError(f"strides must be float32 or float64, got dtype {strides.dtype}")
        if not np.isfinite(strides).all():
            raise ValueError(f"strides must be finite, got {self.host_values(strides)}")

    def strides_from_host(  # noqa: D102
        self, strides: NDArray[np.floating], like: HostArray | None
    ) -> HostArray:
        return strides

    def host_values(self, strides: HostArray) -> tuple[float, ...]:  # noqa: D102
        return tuple(np.ravel(strides).tolist())

    def from_host(self, array: HostArray, dtype: str) -> HostArray:  # noqa: D102
        return array.astype(dtype)

    def dtype_name(self, array: HostArray) -> str:  # noqa: D102
        return array.dtype.name

    def to_host(self, array: HostArray) -> HostArray:  # noqa: D102
        return np.asarray(array)


BACKEND = NumpyBackend()
FUNCTIONAL: Functional[HostArray, HostArray] = Functional(BACKEND, eager.value)
WITH_PULLBACK: Functional[HostArray, tuple[HostArray, Pullback[HostArray]]] = Functional(
    BACKEND, eager.value_and_pullback
)
FRAMEWORK = Framework("numpy", BACKEND, FUNCTIONAL, WITH_PULLBACK)
