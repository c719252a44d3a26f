"""The functions that every adapter offers, written once for all frameworks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from inspect import getdoc
from typing import Any, Generic, ParamSpec, TypeVar

from diffstride_backends.protocol import ArrayT, Attach, Backend, HostStrides
from diffstride_core.arguments import (
    Limits,
    axis_sizes,
    check_stride_count,
    check_strides,
    checked_layers,
    checked_shape,
    checked_sizes,
    host_strides,
    normalized_axes,
    option,
)
from diffstride_core.complexity import COMPLEXITY, LayerBounds
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution import (
    CONV_METHODS,
    ConvPlan,
    EvaluationUnits,
    check_fused,
    checked_convolution,
    is_fused_cheaper,
    spatial_axes,
)
from diffstride_core.fused import CONVOLVE
from diffstride_core.operation import Operation
from diffstride_core.plan import Bounds, Plan
from diffstride_core.planning import authors_strides, plan_diff_stride, plan_pool, plan_resize
from diffstride_core.resample import RESIZE
from diffstride_core.settings import Settings, make_settings

ResultT = TypeVar("ResultT")
Parameters = ParamSpec("Parameters")
ReturnT = TypeVar("ReturnT")


def public(
    method: Callable[Parameters, ReturnT],
    module: str,
    *,
    with_pullback: bool = False,
    first: Callable[[], None] | None = None,
) -> Callable[Parameters, ReturnT]:
    """Return a method of a `Functional` as a function of an adapter.

    A function is pickled and copied as its name. A method would be with all that it is bound to.

    Parameters
    ----------
    method : callable
    module : str
        Name of the module that has the function.
    with_pullback : bool
        Whether the method returns a value and its pullback. The function's name and documentation
        then say so.
    first : callable, optional
        What is called first.
    """

    @wraps(method)
    def function(*args: Parameters.args, **kwargs: Parameters.kwargs) -> ReturnT:
        if first is not None:
            first()
        return method(*args, **kwargs)

    name = method.__name__
    if with_pullback:
        name, function.__doc__ = f"{name}_with_pullback", f"{getdoc(method)}\n{_PULLBACK}"
    function.__name__, function.__qualname__, function.__module__ = name, name, module
    return function


_PULLBACK = """
Notes
-----
Returns ``(value, pullback)``. ``pullback(g)`` is the tuple of the gradients of the arguments that
are arrays, for the cotangent `g` of the value: for `diff_stride` ``(dx, dstrides)``.

The pullback is that of this very evaluation. It has the values of the strides, so that their array
may be changed before it is called. It keeps `x`, `weight` and `bias` themselves, not copies: their
entries must stay as they are until then.
"""


class Functional(Generic[ArrayT, ResultT]):
    """The functional interface over one backend.

    Parameters
    ----------
    backend : Backend
    attach : Attach
        How an evaluation is joined with its derivative; decides what the functions return. Below
        "array" stands for it.
    convolve_then_resize : Operation, optional
        The convolution by the framework's own, which it differentiates itself, and the resize after
        it; None where it has none.
    units : EvaluationUnits, optional
        By which the method "auto" chooses, where there is `convolve_then_resize`.
    """

    def __init__(
        self,
        backend: Backend[ArrayT],
        attach: Attach[ResultT],
        convolve_then_resize: Operation | None = None,
        units: EvaluationUnits | None = None,
    ) -> None:
        self._backend = backend
        self._attach = attach
        self._convolve_then_resize = convolve_then_resize
        self._units = units

    @property
    def conv_methods(self) -> tuple[str, ...]:
        """The methods that `conv_diff_stride` has here."""
        if self._convolve_then_resize is not None:
            return CONV_METHODS
        return tuple(method for method in CONV_METHODS if method != "separate")

    def diff_stride(
        self,
        x: ArrayT,
        strides: Any,
        *,
        sizes: Sequence[int] | None = None,
        axes: int | Sequence[int] = (-2, -1),
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
    ) -> ResultT:
        r"""Downsample an array by strides that have a gradient.

        Along every resized axis the spectrum is multiplied by a window whose width follows the
        stride, cropped, and transformed back (Riad et al., ICLR 2022, Algorithm 1).

        Parameters
        ----------
        x : array, shape (..., N_1, ..., N_d, ...)
            Real floating point of 16, 32 or 64 bits (bfloat16 where the framework has it), any
            number of other dimensions. Dense: no sparse, nested or masked array.
        strides : float, sequence of float, or array of shape (), (1,) or (d,)
            One stride per resized axis, or one shared by all. A value outside the bounds is
            bounded; its gradient passes straight through. Arrays are float32 or float64; numbers
            beyond float32 count as its ends.
        sizes : sequence of int, optional
            Output size per axis, in place of the one that follows from the stride. Needed where
            strides are traced; with it, strides that are arrays are never read.
        axes : int or sequence of int
            The axes to resize. Their order counts in "paper" and "tensorflow" alone: the last one
            is the paper's width, whose mask has the offset of Eq. 4.
        smoothness : float, optional
            Width of the window's ramp: as a fraction of the band that the output holds, at most 1
            ("nominal"; default 0.25), or in frequencies ("paper", "tensorflow"; default 4.0). From
            1e-30 to 1e30.
        limits : (lower, upper) or None
            Limits on the strides besides the built-in bounds, None for none. ``limits=None``
            switches the built-in bounds off too, but for S >= 1.
        cropping : bool
            False masks the spectrum without cropping it: the shape never changes.
        norm : {"forward", "ortho", "backward"}, optional
            Scale of the output: a constant stays that constant ("forward"), or is multiplied by
            the square root of ("ortho"), or by ("backward") the ratio of input and output size.
            The default is "forward", for the tensorflow convention "backward".
        convention : {"nominal", "paper", "tensorflow"}
            Which window a stride stands for.
        method : {"auto", "matmul", "fft"}
            Small matrix products or FFTs; "auto" chooses per axis.

        Returns
        -------
        array, shape (..., M_1, ..., M_d, ...)
            Of the dtype and on the device of `x`.

        Raises
        ------
        TypeError
            For an argument of the wrong kind: `x` not real floating point or not dense, strides in
            half precision, axes in a set, which has no order, ...
        ValueError
            For a value that is not allowed: strides that are not finite or too many, axes repeated
            or out of range, limits the wrong way round, arrays on different devices, ...
        """
        settings = make_settings(
            axes=axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            norm=norm,
            convention=convention,
            method=method,
        )
        self._backend.check_input(x)
        checked = self._checked(strides, len(settings.axes), like=x)
        plan = self._plan(settings, tuple(x.shape), checked, sizes)  # type: ignore[attr-defined]
        return self.resample(plan, x, self._array(checked, like=x))

    def resample(self, plan: Plan, x: ArrayT, strides: ArrayT | None = None) -> ResultT:
        """Apply a plan: what all resizing functions and modules come down to.

        Parameters
        ----------
        plan : Plan
        x : array
        strides : array of shape (), (1,) or (d,), optional
            The stride parameters, for a plan that has strides.
        """
        return self._attach(self._backend, RESIZE, plan, x, strides)

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
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
    ) -> ResultT:
        r"""Convolve an array and downsample the result by strides that have a gradient.

        Equal to `diff_stride` of a convolution of stride 1 that keeps the size of its input, but
        without computing at full resolution where that is cheaper: both are linear, so that the
        sum over the kernel can be taken behind the resize. This is the resize after the
        convolution, and there is no placement to choose: for the resize before it, convolve what
        `diff_stride` returns.

        .. math:: A (w * x) = \sum_i w_i\, A Z_i x,

        where Z_i shifts by tap i of the kernel.

        Parameters
        ----------
        x : array, shape (..., C, N_1, ..., N_d)
            Real floating point; d is 1, 2 or 3, and any number of axes come before the channels.
        weight : array, shape (O, C / groups, k_1, ..., k_d)
            Of the dtype of `x`; odd kernel sizes. As deep learning has it, w * x is a correlation.
        strides : float, sequence of float, or array of shape (), (1,) or (d,)
            As for `diff_stride`, for the spatial axes, of which the last is the paper's width.
        bias : array, shape (O,), optional
        sizes : sequence of int, optional
            Output size per spatial axis, as for `diff_stride`.
        dilation : int or sequence of int
            Distance of the kernel's taps, per spatial axis or for all.
        groups : int
            Into how many groups, each convolved on its own, the channels are divided.
        padding_mode : {"zeros", "circular"}
            What is beyond the border: zeros, or the other end of the map.
        channels_last : bool
            Whether x and the output are (..., N_1, ..., N_d, C) instead; the weight stays.
        smoothness, limits, cropping, norm, convention
            As for `diff_stride`.
        method : {"auto", "fused", "separate"}
            "fused" adds up shifted resizes of the input at the output's resolution, "separate"
            convolves with the framework's own function and resizes after it; "auto" takes what is
            expected to cost less (by units of the framework, found on CPUs), "fused" where the
            framework has no convolution (NumPy, CuPy).
            Equal up to rounding: "fused" computes half precision in float32, "separate" as the
            framework does.

        Returns
        -------
        array, shape (..., O, M_1, ..., M_d)
            Of the dtype and on the device of `x`.

        Raises
        ------
        TypeError, ValueError
            As for `diff_stride`; for a weight or bias that does not fit `x`; for circular padding
            by a kernel that reaches further than the map; for "separate" where the framework has no
            convolution; and for axes too long for "fused", where nothing else is there.
        """
        x, weight, bias = self._backend.as_convolved(x, weight, bias)
        option("method", method, CONV_METHODS)
        self._backend.check_input(x)
        self._backend.check_input(weight, "weight", x)
        if bias is not None:
            self._backend.check_input(bias, "bias", x)
        conv = checked_convolution(
            x.shape,  # type: ignore[attr-defined]
            weight.shape,  # type: ignore[attr-defined]
            dilation=dilation,
            groups=groups,
            padding_mode=padding_mode,
            channels_last=channels_last,
            bias_shape=None if bias is None else bias.shape,  # type: ignore[union-attr]
        )
        shape: tuple[int, ...] = tuple(x.shape)  # type: ignore[attr-defined]
        settings = make_settings(
            axes=spatial_axes(conv.rank, channels_last=channels_last),
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            norm=norm,
            convention=convention,
        )
        checked = self._checked(strides, len(settings.axes), like=x)
        plan = ConvPlan(conv, self._plan(settings, shape, checked, sizes), channels_last)
        return self.convolve(plan, x, weight, self._array(checked, like=x), bias, method=method)

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
            Of one dtype, and of shapes that fit the plan.
        strides : array of shape (), (1,) or (d,), optional
            The stride parameters, for a plan that has strides.
        method : {"auto", "fused", "separate"}
            As for `conv_diff_stride`.

        Returns
        -------
        array, shape (..., O, M_1, ..., M_d)

        Raises
        ------
        ValueError
            For a method that is not possible here.
        """
        if self._convolve_then_resize is None or self._units is None:
            if method == "separate":
                raise ValueError(
                    "method must be 'fused' or 'auto' for a framework without a convolution, got "
                    "'separate'"
                )
            method = "fused"
        elif method == "auto":
            method = "fused" if is_fused_cheaper(plan, self._units) else "separate"
        operation = self._convolve_then_resize
        if method == "fused" or operation is None:
            check_fused(plan)
            operation = CONVOLVE
        return self._attach(self._backend, operation, plan, x, weight, strides, bias)

    def output_sizes(
        self,
        shape: Sequence[int],
        strides: Any,
        *,
        axes: int | Sequence[int] = (-2, -1),
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        convention: str = DEFAULT_CONVENTION,
    ) -> tuple[int, ...]:
        """Return the sizes that `diff_stride` gives along the resized axes.

        Parameters
        ----------
        shape : sequence of int
            Of the input.
        strides, axes, smoothness, limits, cropping, convention
            As for `diff_stride`; the strides must have concrete values.

        Returns
        -------
        tuple of int
            One size per resized axis, in the order of `axes`.
        """
        settings = make_settings(
            axes=axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            convention=convention,
        )
        checked = self._checked(strides, len(settings.axes))
        return self._plan(settings, checked_shape(shape), checked, None).output_sizes

    def spectral_resize(
        self,
        x: ArrayT,
        sizes: int | Sequence[int],
        *,
        axes: int | Sequence[int] = (-2, -1),
        norm: str = "forward",
    ) -> ResultT:
        """Resize an array by cropping or zero-padding its spectrum.

        Equal to `scipy.signal.resample` along each axis for the default norm.

        Parameters
        ----------
        x : array, shape (..., N_1, ..., N_d, ...)
            Real floating point.
        sizes : int or sequence of int
            Target size per axis, larger or smaller.
        axes : int or sequence of int
            The axes to resize.
        norm : {"forward", "ortho", "backward"}
            As for `diff_stride`.

        Returns
        -------
        array, shape (..., M_1, ..., M_d, ...)

        Raises
        ------
        TypeError, ValueError
            As for `diff_stride`.
        """
        settings = make_settings(axes=axes, norm=norm)
        self._backend.check_input(x)
        shape: tuple[int, ...] = tuple(x.shape)  # type: ignore[attr-defined]
        negative = normalized_axes(settings.axes, shape)
        target = checked_sizes(sizes, len(negative))
        return self.resample(
            plan_resize(negative, axis_sizes(negative, shape), target, settings.norm), x
        )

    def spectral_pool(
        self,
        x: ArrayT,
        strides: Any,
        *,
        axes: int | Sequence[int] = (-2, -1),
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
    ) -> ResultT:
        """Downsample an array by cropping its spectrum to floor(N/S) samples per axis.

        Spectral pooling with fixed strides (Rippel, Snoek, Adams, 2015); the strides have no
        gradient.

        Parameters
        ----------
        x : array, shape (..., N_1, ..., N_d, ...)
            Real floating point.
        strides : float or sequence of float
            At least 1; one per axis or one for all.
        axes : int or sequence of int
            The axes to resize.
        norm : {"forward", "ortho", "backward"}, optional
            As for `diff_stride`.
        convention : {"nominal", "paper", "tensorflow"}
            "tensorflow" is the authors' FixedSpectralPooling; the other two are the same.

        Returns
        -------
        array, shape (..., M_1, ..., M_d, ...)
            M = min(N, max(2, floor(N/S))).

        Raises
        ------
        TypeError, ValueError
            As for `diff_stride`, and for a stride below 1.
        """
        settings = make_settings(axes=axes, norm=norm, convention=convention)
        self._backend.check_input(x)
        values = self._concrete(strides, len(settings.axes))
        return self.resample(
            plan_pool(settings, x.shape, values),  # type: ignore[attr-defined]
            x,
        )

    def complexity(self, strides_per_layer: Sequence[Any]) -> ResultT:
        r"""Return the complexity penalty of a stack of layers.

        .. math:: J = \sum_{l=1}^{L} \prod_{i=1}^{l} \prod_a \frac{1}{S_a^i}

        Parameters
        ----------
        strides_per_layer : sequence
            Per layer, in the order of the network, its strides with one entry per resized axis;
            repeat a shared stride once per axis. Values below 1 count as 1, straight through.

        Returns
        -------
        array, shape ()
            J, differentiable in every layer's strides.

        Raises
        ------
        TypeError, ValueError
            If there is no layer, or strides are not finite numbers in one dimension.
        """
        layers = [self._checked(strides, None) for strides in checked_layers(strides_per_layer)]
        for layer in layers:
            values = self._values(layer)
            if values is not None:
                check_strides(values, len(values))
        arrays = [self._array(layer) for layer in layers]
        bounds = tuple((Bounds(),) * _entries(array) for array in arrays)
        return self.bounded_complexity(bounds, arrays)

    def bounded_complexity(self, bounds: LayerBounds, arrays: Sequence[ArrayT]) -> ResultT:
        """Return the complexity penalty of layers whose bounds are known.

        Parameters
        ----------
        bounds : tuple of tuple of Bounds
            Per layer and resized axis.
        arrays : sequence of array of shape (), (1,) or (d,)
            The stride parameters per layer.
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
        """Return what the authors' TensorFlow layer writes back into its strides when called.

        Their forward pass raises the parameter itself to size/(size - R); ours never changes it.

        Parameters
        ----------
        shape : sequence of int
            Of the input.
        strides : float, sequence of float or array
            Before the call.
        axes : int or sequence of int
            Height and width.
        smoothness : float
            R.

        Returns
        -------
        tuple of float
            After the call, as many as there are strides; float32 values.
        """
        settings = make_settings(axes=axes, smoothness=smoothness, convention="tensorflow")
        values = self._concrete(strides, len(settings.axes))
        shape = checked_shape(shape)
        axes = normalized_axes(settings.axes, shape)
        return authors_strides(settings, axis_sizes(axes, shape), values)

    def _checked(
        self, strides: Any, axes: int | None, *, like: ArrayT | None = None
    ) -> ArrayT | HostStrides:
        """Return checked strides as an array, of the framework or else on the host."""
        if self._backend.is_array(strides):
            self._backend.check_strides(strides, like)
            checked: ArrayT | HostStrides = strides
        else:
            checked = _on_host(strides)
            check_strides(checked.values, len(checked.values))
        rank = len(checked.shape)  # type: ignore[union-attr]
        if rank > 1:
            raise ValueError(f"strides must have at most 1 dimension, got {rank}")
        if axes is not None:
            check_stride_count(_entries(checked), axes)
        return checked

    def _array(self, checked: ArrayT | HostStrides, *, like: ArrayT | None = None) -> ArrayT:
        if self._backend.is_array(checked):
            return self._backend.unshared(checked)  # type: ignore[arg-type]
        return self._backend.strides_from_host(checked, like)  # type: ignore[arg-type]

    def _values(self, checked: ArrayT | HostStrides) -> tuple[float, ...] | None:
        """Return the values of strides, None where they are traced; numbers cost no transfer."""
        if isinstance(checked, HostStrides):
            return checked.values
        return self._backend.host_values(checked)

    def _concrete(self, strides: Any, axes: int) -> tuple[float, ...]:
        values = self._values(self._checked(strides, axes))
        if values is None:
            raise ValueError("strides must have concrete values here, got traced ones")
        check_strides(values, axes)
        return values

    def _plan(
        self,
        settings: Settings,
        shape: tuple[int, ...],
        strides: ArrayT | HostStrides,
        sizes: Sequence[int] | None,
    ) -> Plan:
        axes = normalized_axes(settings.axes, shape)
        given = None if sizes is None else checked_sizes(sizes, len(axes))
        # Reading strides can cost a device transfer; here it would decide nothing.
        values = self._values(strides) if given is None else None
        return plan_diff_stride(
            settings,
            axes,
            axis_sizes(axes, shape),
            values,
            shared=_entries(strides) == 1,
            output_sizes=given,
        )


_ORDINARY = 2.0**100
"""Below it a number is one that every framework can hold."""


def _on_host(strides: Any) -> HostStrides:
    """Return strides that are no array of the framework."""
    several = isinstance(strides, (list, tuple))
    numbers = tuple(strides) if several else (strides,)
    # Without NumPy, which compilers would follow into its arrays; they may be symbols to them.
    if all(map(_is_ordinary, numbers)):
        shape = (len(numbers),) if several else ()
        return HostStrides(tuple(map(float, numbers)), shape, "float64")
    return HostStrides.of(host_strides(strides))


def _is_ordinary(number: Any) -> bool:
    is_number = isinstance(number, (int, float)) and not isinstance(number, bool)
    return is_number and -_ORDINARY < number < _ORDINARY


def _entries(strides: Any) -> int:
    return int(strides.shape[0]) if strides.shape else 1
