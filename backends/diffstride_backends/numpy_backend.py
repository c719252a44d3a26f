"""NumPy backend, with SciPy's FFTs."""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from diffstride_backends import eager
from diffstride_backends.functional import Functional
from diffstride_backends.protocol import HostArray, Pullback
from diffstride_backends.registry import Framework
from diffstride_core import host
from diffstride_core.kernels import Kernels
from diffstride_core.operation import MakeFactors
from diffstride_core.ops import Factors


class NumpyKernels(Kernels):
    """NumPy's matrix products, on a part of a batch at a time."""

    def can_write(self, array: HostArray) -> bool:  # noqa: D102
        return True

    def matmul(  # noqa: D102
        self, a: HostArray, b: HostArray, out: HostArray | None = None
    ) -> HostArray:
        return np.asarray(np.matmul(a, b, out=out))


class NumpyBackend(eager.EagerBackend):
    """NumPy arrays."""

    def __init__(self) -> None:
        super().__init__(np.empty(0), NumpyKernels)

    def made(  # noqa: D102
        self, make: MakeFactors, plan: Hashable, strides: HostArray | None, like: HostArray
    ) -> Factors:
        values = None if strides is None else self.host_values(strides)
        return host.factors(make, plan, values, like.dtype.name)

    def native(self, array: HostArray) -> HostArray:
        """Return an array in the machine's byte order, without a subclass."""
        return np.asarray(array, array.dtype.newbyteorder("="))

    def dtype_name(self, array: HostArray) -> str:  # noqa: D102
        return str(array.dtype.newbyteorder("="))

    def unshared(self, strides: HostArray) -> HostArray:  # noqa: D102
        return np.array(self.native(strides))

    # scipy.fft transforms several lines at a time, numpy.fft one after another. It is imported on
    # first use, since it takes longer to import than everything else here.
    def rfft(self, array: HostArray, axis: int) -> HostArray:  # noqa: D102
        import scipy.fft

        return np.asarray(scipy.fft.rfft(array, axis=axis))

    def irfft(self, array: HostArray, size: int, axis: int) -> HostArray:  # noqa: D102
        import scipy.fft

        return np.asarray(scipy.fft.irfft(array, n=size, axis=axis))

    def fft(self, array: HostArray, axis: int) -> HostArray:  # noqa: D102
        import scipy.fft

        return np.asarray(scipy.fft.fft(array, axis=axis))

    def ifft(self, array: HostArray, axis: int) -> HostArray:  # noqa: D102
        import scipy.fft

        return np.asarray(scipy.fft.ifft(array, axis=axis))

    def check_strides(self, strides: HostArray, like: HostArray | None) -> None:  # noqa: D102
        super().check_strides(strides, like)
        # Reading the strides costs nothing here, even if the sizes are given.
        if not np.isfinite(strides).all():
            raise ValueError(f"strides must be finite, got {self.host_values(strides)}")


BACKEND = NumpyBackend()
FUNCTIONAL: Functional[HostArray, HostArray] = Functional(BACKEND, eager.value)
WITH_PULLBACK: Functional[HostArray, tuple[HostArray, Pullback[HostArray]]] = Functional(
    BACKEND, eager.value_and_pullback
)
FRAMEWORK = Framework("numpy", BACKEND, FUNCTIONAL, WITH_PULLBACK)
