"""The layer of the frameworks without automatic differentiation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Generic

import numpy as np

from diffstride_backends.functional import Functional
from diffstride_backends.protocol import ArrayT, Backend, HostStrides, Pullback
from diffstride_core.arguments import Limits, check_plain, checked_shape, initial_strides
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.plan_cache import PlanCache
from diffstride_core.settings import make_settings


class EagerLayer(Generic[ArrayT]):
    """Downsampling layer with learnt strides and an explicit backward pass.

    This is the base class of the adapters' layers. Each of them names its framework and documents
    the arguments. Below, "array" stands for the framework's arrays.

    Attributes
    ----------
    strides : ndarray, shape (d,) or (1,)
        The stride parameters, in a float64 NumPy array for every framework. The output size follows
        from them without a transfer from a device.
    """

    _backend: ClassVar[Backend[Any]]
    _with_pullback: ClassVar[Functional[Any, Any]]

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        shared: bool = False,
        axes: int | Sequence[int] = (-2, -1),
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
        size_offset: int | Sequence[int] = 0,
    ) -> None:
        self.settings = make_settings(
            axes=axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
            norm=norm,
            convention=convention,
            method=method,
            size_offset=size_offset,
        )
        # Without a device, this raises here, not at the first batch.
        self._backend.devices()
        self.strides = np.array(initial_strides(stride, len(self.settings.axes), shared))
        self._plans = PlanCache(self.settings, len(self.strides))
        self._pullback: Pullback[ArrayT] | None = None

    def forward(self, x: ArrayT) -> ArrayT:
        """Downsample an array, and keep it for `backward`.

        Do not change the entries of the input before calling `backward`: no copy is made. The
        strides may change.
        """
        self._backend.check_input(x)
        self._refresh()
        plan = self._plans.plan(x.shape)  # type: ignore[attr-defined]
        # A copy, since the parameter may change before `backward`.
        strides = self._backend.strides_from_host(HostStrides.of(self.strides), x)
        y: ArrayT
        y, self._pullback = self._with_pullback.resample(plan, x, strides)
        return y

    def __call__(self, x: ArrayT) -> ArrayT:
        """Return `forward` of an array."""
        return self.forward(x)

    def backward(self, g: ArrayT) -> tuple[ArrayT, ArrayT]:
        """Return the gradients of the last forward pass.

        Parameters
        ----------
        g : array
            Gradient of the loss with respect to the output, with its shape and dtype.

        Returns
        -------
        dx : array
            Gradient with respect to the input.
        dstrides : array
            Gradient with respect to `strides`, with their shape, in float64 on the input's device.

        Raises
        ------
        RuntimeError
            Before the first forward pass.
        TypeError, ValueError
            If `g` does not match the output.
        """
        if self._pullback is None:
            raise RuntimeError("backward was called before forward")
        dx, dstrides = self._pullback(g)
        assert dx is not None
        assert dstrides is not None
        return dx, dstrides

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        self._refresh()
        return self._plans.plan(checked_shape(shape)).output_sizes

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments, with its present strides, as plain values.

        The values can be written as JSON, and make the same layer in every framework but Keras:
        ``DiffStride(**layer.to_dict())``. Strides below 1 count as 1, and are returned as 1.
        """
        return self.settings.layer_arguments(self._values())

    def project(self) -> None:
        """Move the strides back within their bounds; call it after each step.

        The bounds are the limits, and the built-in bounds of the input sizes seen since the last
        projection. If there were none, they are the bounds of the last projection.
        """
        self._refresh()
        self.strides[:] = self._plans.project(tuple(self.strides.tolist()))

    def __repr__(self) -> str:
        values = ", ".join(f"{value:.4g}" for value in self.strides.tolist())
        shared = ["shared=True"] if self.strides.size < len(self.settings.axes) else []
        return (
            f"{type(self).__name__}({', '.join([f'[{values}]', *self.settings.shown(), *shared])})"
        )

    def __getstate__(self) -> dict[str, Any]:
        # A pullback cannot be pickled. The last forward pass stays with the original.
        return {**self.__dict__, "_pullback": None}

    def _refresh(self) -> None:
        values = self._values()
        self._plans.refresh(values, lambda: values)

    def _values(self) -> tuple[float, ...]:
        """Return the values of the strides, checked, since the array may have been replaced."""
        strides = self.strides
        if (
            not isinstance(strides, np.ndarray)
            or strides.dtype.newbyteorder("=") != np.float64
            or strides.ndim != 1
        ):
            raise TypeError(
                f"strides must be a float64 NumPy array of one dimension, got {strides!r}"
            )
        check_plain("strides", strides)
        return tuple(strides.tolist())
