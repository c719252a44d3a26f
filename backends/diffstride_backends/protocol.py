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
    """Checked strides given as numbers or a host array: plain values, which compilers can follow.

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
        """Return the strides as a new array."""
        return np.reshape(np.asarray(self.values, dtype=self.dtype), self.shape)


class Backend(ArrayOps, ABC, Generic[ArrayT]):
    """One framework, in the form that the functions common to all adapters need."""

    def made(self, make: MakeFactors, plan: Any, strides: ArrayT | None, like: ArrayT) -> Factors:
        """Return ``make(self, plan, strides, like)``, kept from an earlier call if possible.

        `like` gives only the dtype and the device.
        """
        return make(self, plan, strides, like)

    def is_compiling(self) -> bool:
        """Return whether a compiler follows the Python code, so that nothing is kept for later."""
        return False

    @abstractmethod
    def check_input(self, x: object, name: str = "x", like: ArrayT | None = None) -> None:
        """Raise TypeError unless `x` is a real floating-point array of the framework.

        If `like` is given, also raise TypeError if the dtypes differ, and ValueError if the devices
        differ.
        """

    def as_convolved(self, *arrays: Any) -> tuple[Any, ...]:
        """Return arrays in the dtype in which the framework itself would convolve them now."""
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

        Raise TypeError if they are not float32 or float64, and ValueError if they are not on the
        device of `like`.
        """

    def unshared(self, strides: ArrayT) -> ArrayT:
        """Return strides that do not change if the caller writes to the given array.

        If the framework itself takes care of this, they are the given array.
        """
        return strides

    @abstractmethod
    def host_values(self, strides: ArrayT) -> tuple[float, ...] | None:
        """Return the values of the strides; None if they are traced."""

    @abstractmethod
    def from_host(self, array: HostArray, dtype: str, device: Any = None) -> ArrayT:
        """Return a copy of a host array in the given dtype, on a device from `devices`."""

    @abstractmethod
    def devices(self) -> Sequence[Any]:
        """Return the devices that can be used for computation, the default one first."""

    @abstractmethod
    def device_of(self, array: ArrayT) -> Any:
        """Return the device of an array; None if the framework has no devices."""

    @abstractmethod
    def dtype_name(self, array: ArrayT) -> str:
        """Return the name of an array's dtype, as NumPy or ml_dtypes spell it."""

    @abstractmethod
    def to_host(self, array: ArrayT) -> HostArray:
        """Return an array's values on the host; bfloat16 as float32."""


def evaluate(
    backend: Backend[ArrayT], operation: Operation, plan: Any, arrays: tuple[ArrayT | None, ...]
) -> ArrayT:
    """Return the value of an operation; the backend makes its factors, or has kept them."""
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

    It is called with an operation and the operation's arguments. It returns what the framework's
    user expects: a differentiable array, or a value and its pullback.
    """

    def __call__(self, backend: Any, operation: Operation, plan: Any, *arrays: Any) -> ResultT_co:
        """Evaluate the operation and attach its derivative."""
