"""The functions that every adapter offers, over any backend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar, Unpack

from diffstride_backends.prepare import (
    as_array,
    checked_strides,
    concrete_values,
    planned,
    prepare,
    prepare_convolution,
    values_of,
)
from diffstride_backends.protocol import ArrayT, Attach, Backend
from diffstride_core.arguments import (
    axis_sizes,
    check_names,
    check_strides,
    checked_layers,
    checked_shape,
    checked_sizes,
    normalized_axes,
)
from diffstride_core.complexity import COMPLEXITY, LayerBounds
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import CONV_METHODS
from diffstride_core.convolution.evaluation import EvaluationUnits, chosen_method
from diffstride_core.convolution.fused import CONVOLVE
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.operation import Operation
from diffstride_core.plan import Bounds, Plan
from diffstride_core.planning import authors_strides, plan_pool, plan_resize
from diffstride_core.resample import RESAMPLE
from diffstride_core.settings import ResizeOptions, SizeOptions, WindowOptions, make_settings

ResultT = TypeVar("ResultT")


class SeparateEvaluation(NamedTuple):
    """The framework's own way to convolve.

    Attributes
    ----------
    operation : Operation
        The framework's convolution, which it differentiates itself, and the resize after it.
    units : EvaluationUnits
        Units by which the method "auto" chooses.
    """

    operation: Operation
    units: EvaluationUnits


class Functional(Generic[ArrayT, ResultT]):
    """The functions over one backend; the adapters' functions document them.

    Parameters
    ----------
    backend : Backend
    attach : Attach
        Joins an operation with its derivative, and so decides what the functions return.
    separate : SeparateEvaluation, optional
        None for a framework without a convolution.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        attach: Attach[ResultT],
        separate: SeparateEvaluation | None = None,
    ) -> None:
        self._backend = backend
        self._attach = attach
        self._separate = separate

    @property
    def conv_methods(self) -> tuple[str, ...]:
        """The methods that `conv_diff_stride` has for this framework."""
        if self._separate is not None:
            return CONV_METHODS
        return tuple(method for method in CONV_METHODS if method != "separate")

    def diff_stride(
        self,
        x: ArrayT,
        strides: Any,
        *,
        sizes: Sequence[int] | None = None,
        **options: Unpack[ResizeOptions],
    ) -> ResultT:
        """Downsample an array by strides that have a gradient."""
        if not options.keys() <= _RESIZE_OPTIONS:
            check_names("diff_stride", options, _RESIZE_OPTIONS)
        plan, strides = prepare(self._backend, x, strides, sizes, options)
        return self._attach(self._backend, RESAMPLE, plan, x, strides)

    def resample(self, plan: Plan, x: ArrayT, strides: ArrayT | None = None) -> ResultT:
        """Apply a plan; all functions and modules that resize use this method.

        Parameters
        ----------
        plan : Plan
        x : array
        strides : array of shape (), (1,) or (d,), optional
            The stride parameters, for a plan that has strides.
        """
        return self._attach(self._backend, RESAMPLE, plan, x, strides)

    def conv_diff_stride(
        self,
        x: ArrayT,
        weight: ArrayT,
        strides: Any,
        *,
        bias: ArrayT | None = None,
        sizes: Sequence[int] | None = None,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        channels_last: bool = False,
        method: str = "auto",
        **options: Unpack[WindowOptions],
    ) -> ResultT:
        """Convolve an array and downsample the result by strides that have a gradient."""
        if not options.keys() <= _WINDOW_OPTIONS:
            check_names("conv_diff_stride", options, _WINDOW_OPTIONS)
        plan, x, weight, strides, bias = prepare_convolution(
            self._backend,
            x,
            weight,
            strides,
            bias,
            sizes,
            options,
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            channels_last=channels_last,
        )
        return self.convolve(plan, x, weight, strides, bias, method=method)

    def convolve(
        self,
        plan: ConvPlan,
        x: ArrayT,
        weight: ArrayT,
        strides: ArrayT | None = None,
        bias: ArrayT | None = None,
        *,
        method: str = "auto",
    ) -> ResultT:
        """Apply the plan of a convolution and a resize.

        Parameters
        ----------
        plan : ConvPlan
        x, weight, bias : array
            Arrays of one dtype, with shapes that fit the plan.
        strides : array of shape (), (1,) or (d,), optional
            The stride parameters, for a plan that has strides.
        method : {"auto", "fused", "separate"}
            See `conv_diff_stride`.

        Returns
        -------
        array, shape (..., O, M_1, ..., M_d)

        Raises
        ------
        TypeError, ValueError
            If the method is unknown, or not possible here.
        """
        units = None if self._separate is None else self._separate.units
        operation = CONVOLVE
        if chosen_method(plan, method, units) == "separate":
            assert self._separate is not None
            operation = self._separate.operation
        return self._attach(self._backend, operation, plan, x, weight, strides, bias)

    def output_sizes(
        self, shape: Sequence[int], strides: Any, **options: Unpack[SizeOptions]
    ) -> tuple[int, ...]:
        """Return the sizes that `diff_stride` gives along the resized axes."""
        check_names("output_sizes", options, _SIZE_OPTIONS)
        checked = checked_strides(self._backend, strides)
        return planned(self._backend, checked_shape(shape), checked, None, options).output_sizes

    def spectral_resize(
        self,
        x: ArrayT,
        sizes: int | Sequence[int],
        *,
        axes: int | Sequence[int] = (-2, -1),
        norm: str = "forward",
    ) -> ResultT:
        """Resize an array by cropping or zero-padding its spectrum."""
        settings = make_settings(axes=axes, norm=norm)
        self._backend.check_input(x)
        shape: tuple[int, ...] = tuple(x.shape)  # type: ignore[attr-defined]
        negative = normalized_axes(settings.axes, shape)
        target = checked_sizes(sizes, len(negative))
        plan = plan_resize(negative, axis_sizes(negative, shape), target, settings.norm)
        return self.resample(plan, x)

    def spectral_pool(
        self,
        x: ArrayT,
        strides: Any,
        *,
        axes: int | Sequence[int] = (-2, -1),
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
    ) -> ResultT:
        """Downsample an array by cropping its spectrum to floor(N/S) samples per axis."""
        settings = make_settings(axes=axes, norm=norm, convention=convention)
        self._backend.check_input(x)
        values = concrete_values(self._backend, strides)
        plan = plan_pool(settings, x.shape, values)  # type: ignore[attr-defined]
        return self.resample(plan, x)

    def complexity(self, strides_per_layer: Sequence[Any]) -> ResultT:
        """Return the complexity penalty of a stack of layers."""
        layers = [checked_strides(self._backend, own) for own in checked_layers(strides_per_layer)]
        for layer in layers:
            values = values_of(self._backend, layer)
            if values is not None:
                check_strides(values, len(values))
        bounds = tuple((Bounds(),) * (layer.shape or (1,))[0] for layer in layers)
        return self.bounded_complexity(bounds, [as_array(self._backend, own) for own in layers])

    def bounded_complexity(self, bounds: LayerBounds, arrays: Sequence[ArrayT]) -> ResultT:
        """Return the complexity penalty of layers whose bounds are known.

        Parameters
        ----------
        bounds : tuple of tuple of Bounds
            Per layer and resized axis.
        arrays : sequence of array of shape (), (1,) or (d,)
            The stride parameters of each layer.
        """
        if not arrays:
            raise ValueError("strides_per_layer must have at least one layer, got none")
        return self._attach(self._backend, COMPLEXITY, bounds, *arrays)

    def authors_strides(
        self,
        shape: Sequence[int],
        strides: Any,
        *,
        axes: int | Sequence[int] = (-2, -1),
        smoothness: float = 4.0,
    ) -> tuple[float, ...]:
        """Return the strides that the authors' TensorFlow layer writes back when it is called."""
        settings = make_settings(axes=axes, smoothness=smoothness, convention="tensorflow")
        values = concrete_values(self._backend, strides)
        check_strides(values, len(settings.axes))
        shape = checked_shape(shape)
        negative = normalized_axes(settings.axes, shape)
        return authors_strides(settings, axis_sizes(negative, shape), values)


_WINDOW_OPTIONS = frozenset(WindowOptions.__annotations__)
_SIZE_OPTIONS = frozenset(SizeOptions.__annotations__)
_RESIZE_OPTIONS = frozenset(ResizeOptions.__annotations__)
