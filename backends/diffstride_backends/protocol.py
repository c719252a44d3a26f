"""What a framework contributes beyond the array API: inputs, host values and gradients."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from diffstride_core.operation import MakeFactors, Operation
from diffstride_core.ops import ArrayOps, Factors

ArrayT = TypeVar("ArrayT")
ResultT_co = TypeVar("ResultT_co", covariant=True)

HostArray: TypeAlias = NDArray[Any]
Pullback: TypeAlias = Callable[[ArrayT], tuple[ArrayT | None, ...]]
"""Maps the cotangent of an output to the gradients of the arrays it was computed from."""


class HostStrides(NamedTuple):
    """Strides given as numbers or as a host array, checked: plain values, which compilers follow.

    Attributes
    ----------
    values : tuple of float
    shape : tuple of int
        () or (d,).
    dtype : str
        "float32" or "float64".
    """

    values: tuple[float, ...]
    shape: tuple[int, ...]
    dtype: str

    @classmethod
    def of(cls, array: HostArray) -> HostStrides:
        """Return the strides that a host array holds."""
        return cls(tuple(np.ravel(array).tolist()), array.shape, array.dtype.name)

    def array(self) -> HostArray:
        """Return the strides as an array of their own."""
        return np.reshape(np.asarray(self.values, dtype=self.dtype), self.shape)


class Backend(ArrayOps, ABC, Generic[ArrayT]):
    """One framework, as the functions common to all adapters need it."""

    def made(self, make: MakeFactors, plan: Any, strides: ArrayT | None, like: ArrayT) -> Factors:
        """Return ``make(self, plan, strides, like)``, kept from an earlier call where possible.

        `like` gives dtype and device alone.
        """
        return make(self, plan, strides, like)

    def is_compiling(self) -> bool:
        """Return whether a compiler follows the Python code, and would keep nothing for later."""
        return False

    @abstractmethod
    def check_input(self, x: object, name: str = "x", like: ArrayT | None = None) -> None:
        """Raise TypeError unless `x` is a real floating-point array of the framework.

        Likewise if its dtype is not that of `like`, and ValueError if its device is not.
        """

    def as_convolved(self, *arrays: Any) -> tuple[Any, ...]:
        """Return arrays in the dtype that the framework itself would now convolve them in."""
        return arrays

    @abstractmethod
    def is_array(self, x: object) -> bool:
        """Return whether `x` is an array of the framework."""

    @abstractmethod
    def strides_from_host(self, strides: HostStrides, like: ArrayT | None) -> ArrayT:
        """Return host strides as an array of the same dtype on the device of `like`."""

    @abstractmethod
    def check_strides(self, strides: ArrayT, like: ArrayT | None) -> None:
        """Check strides that are an array of the framework.

        Raises TypeError unless they are float32 or float64, ValueError if they are not on the
        device of `like`.
        """

    def unshared(self, strides: ArrayT) -> ArrayT:
        """Return strides that stay what they are when the caller writes to the array given.

        That array itself, where the framework sees to it.
        """
        return strides

    @abstractmethod
    def host_values(self, strides: ArrayT) -> tuple[float, ...] | None:
        """Return the values of the strides, None where they are traced."""

    @abstractmethod
    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> ArrayT:
        """Return a copy of a host array in the dtype named, on a device from `devices`."""

    @abstractmethod
    def devices(self) -> Sequence[Any]:
        """Return the devices there are to compute on, the default one first."""

    @abstractmethod
    def device_of(self, array: ArrayT) -> Any:
        """Return the device of an array; None where the framework has no such notion."""

    @abstractmethod
    def dtype_name(self, array: ArrayT) -> str:
        """Return the name of an array's dtype, as NumPy or ml_dtypes spell it."""

    @abstractmethod
    def to_host(self, array: ArrayT) -> HostArray:
        """Return an array's values on the host; bfloat16 as float32."""


def evaluate(
    backend: Backend[ArrayT], operation: Operation, plan: Any, arrays: tuple[ArrayT | None, ...]
) -> ArrayT:
    """Return the value of an operation, its factors made or kept by the backend."""
    factors: Factors = ()
    if operation.make_factors is not None:
        strides = arrays[operation.strides]
        factors = backend.made(operation.make_factors, plan, strides, arrays[0])  # type: ignore[arg-type]
    value: ArrayT = operation.evaluate(backend, plan, factors, *arrays)
    return value


def pull_back(
    backend: Backend[ArrayT],
    operation: Operation,
    plan: Any,
    g: ArrayT,
    arrays: tuple[ArrayT | None, ...],
    needs: tuple[bool, ...],
) -> tuple[ArrayT | None, ...]:
    """Return the gradients of the arrays that need one, for the cotangent `g` of the value."""
    assert operation.pull_back is not None
    factors: Factors = ()
    stride_factors = None
    if operation.make_factors is not None:
        x, strides = arrays[0], arrays[operation.strides]
        factors = backend.made(operation.make_factors, plan, strides, x)  # type: ignore[arg-type]
        if needs[operation.strides]:
            assert operation.make_stride_factors is not None
            stride_factors = backend.made(operation.make_stride_factors, plan, strides, x)  # type: ignore[arg-type]
    return operation.pull_back(backend, plan, factors, stride_factors, g, *arrays, needs=needs)


class Attach(Protocol[ResultT_co]):
    """A way to join an operation with its derivative.

    Called with an operation, what it is to be given, and returns what the framework's user expects:
    a differentiable array, or a value and its pullback.
    """

    def __call__(self, backend: Any, operation: Operation, plan: Any, *arrays: Any) -> ResultT_co:
        """Evaluate the operation and attach its derivative."""
