"""Docstrings of the adapters' functions, written once and filled in with each framework's arrays.

A function takes the text of its own name. Type checkers read the function's signature; `help` and
the documentation read this text.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def documented(array: str) -> Callable[[FunctionT], FunctionT]:
    """Return a decorator that gives a function of an adapter its docstring.

    A function whose name ends in ``_with_pullback`` gets the text of the function without it, with
    a value and a pullback as what it returns.

    Parameters
    ----------
    array : str
        Name of the framework's array type.
    """

    def document(function: FunctionT) -> FunctionT:
        name = function.__name__.removesuffix(_WITH_PULLBACK)
        text = cleandoc(_TEXTS[name]).replace("ARRAY", array)
        if function.__name__.endswith(_WITH_PULLBACK):
            text = _with_pullback(name, text, array)
        function.__doc__ = text
        return function

    return document


_WITH_PULLBACK = "_with_pullback"

_GRADIENTS = {
    "diff_stride": "(dx, dstrides)",
    "conv_diff_stride": "(dx, dweight, dstrides), or (dx, dweight, dstrides, dbias) with a bias",
    "spectral_resize": "(dx,)",
    "spectral_pool": "(dx,)",
    "complexity": "of the gradients of the layers' strides, in the order of the layers",
}


def _with_pullback(name: str, text: str, array: str) -> str:
    """Return the text of a function that returns what another one does, with its pullback."""
    before, _, after = text.partition("Returns\n-------\n")
    value, _, rest = after.partition("\n\nRaises\n")
    entry, _, explanation = value.partition("\n")
    _, _, shape = entry.partition(", ")
    returned = f"value : {array}, {shape}\n{explanation}".rstrip()
    return f"""{before}Returns
-------
{returned}
pullback : callable
    Function of `g`, the gradient of the loss with respect to the value. Returns the tuple
    {_GRADIENTS[name]}.

Raises
{rest.rstrip()}

{_NOTES}"""


_NOTES = """Notes
-----
The pullback belongs to this one evaluation. It has a copy of the strides, so their array may
change before the pullback is called. It has no copies of the other arrays, so their entries must
not change before then.
"""

_TEXTS = {
    "diff_stride": r"""
Downsample an array by strides that have a gradient.

Along every resized axis, the function multiplies the spectrum by a window whose width depends
on the stride, crops it, and transforms it back (Riad et al., ICLR 2022, Algorithm 1).

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
    Input: real floating point of 16, 32 or 64 bits, including bfloat16 if the framework has it.
    It may have any number of other dimensions. It must be dense: not sparse, nested or masked.
strides : float, sequence of float, or ARRAY of shape (), (1,) or (d,)
    One stride per resized axis, or one for all axes. A stride outside the bounds is clipped, and
    its gradient is passed on unchanged. Arrays must be float32 or float64; numbers outside the
    range of float32 are clipped to it.
sizes : sequence of int, optional
    Output size per axis. By default it follows from the stride. Required if the strides are
    traced. If given, stride arrays are never read.
axes : int or sequence of int
    The axes to resize. The order matters in the conventions "paper" and "tensorflow" only: the
    last axis is the paper's width, whose mask has the offset of Eq. 4.
smoothness : float, optional
    Width of the window's ramp, from 1e-30 to 1e30. In the convention "nominal" it is a fraction
    of the band that the output holds, at most 1; the default is 0.25. In "paper" and "tensorflow"
    it is a number of frequencies; the default is 4.0.
limits : (lower, upper) or None
    Limits on the strides, in addition to the built-in bounds. Either may be None. ``limits=None``
    switches off the built-in bounds too, except S >= 1.
cropping : bool
    Whether to crop the spectrum. If False, the window is applied, but the output is as large as
    the input.
multiple_of : int
    Raise output sizes to a multiple of this number, but not above the input's size. The window
    does not change. Must be 1 in the convention "tensorflow".
norm : {"forward", "ortho", "backward"}, optional
    Scale of the output. "forward" keeps the value of a constant input. "backward" multiplies it
    by the ratio of input size to output size, "ortho" by the square root of that ratio. The
    default is "backward" in the convention "tensorflow", and "forward" in the others.
convention : {"nominal", "paper", "tensorflow"}
    Which window belongs to a stride.
method : {"auto", "matmul", "fft"}
    Whether to use matrix products or FFTs. "auto" chooses for each axis.

Returns
-------
ARRAY, shape (..., M_1, ..., M_d, ...)
    Output with the dtype and the device of `x`.

Raises
------
TypeError
    If an argument is of the wrong kind. For example: `x` is not real floating point or not
    dense, strides are in half precision, or axes are in a set, which has no order.
ValueError
    If a value is not allowed. For example: a stride is not finite, there are too many strides,
    an axis is repeated or out of range, the lower limit is above the upper, or arrays are on
    different devices.
""",
    "conv_diff_stride": r"""
Convolve an array and downsample the result by strides that have a gradient.

The convolution has stride 1 and keeps the size of its input; `diff_stride` then resizes the
result. Both are linear, so the sum over the kernel can also be taken after the resize, at the
resolution of the output:

.. math:: A (w * x) = \sum_i w_i\, A Z_i x,

where A is the resize and Z_i shifts by tap i of the kernel. To resize before the convolution,
convolve what `diff_stride` returns instead.

Parameters
----------
x : ARRAY, shape (..., C, N_1, ..., N_d)
    Input: real floating point, with d = 1, 2 or 3 spatial axes. Any number of axes may come
    before the channels.
weight : ARRAY, shape (O, C / groups, k_1, ..., k_d)
    Kernel with the dtype of `x` and odd sizes. As usual in deep learning, w * x is a correlation.
strides : float, sequence of float, or ARRAY of shape (), (1,) or (d,)
    Strides of the spatial axes, as for `diff_stride`. The last axis is the paper's width.
bias : ARRAY, shape (O,), optional
sizes : sequence of int, optional
    Output size per spatial axis, as for `diff_stride`.
dilation : int or sequence of int
    Distance between the kernel's taps: one per spatial axis, or one for all.
groups : int
    Number of groups of channels. Each group is convolved on its own.
padding_mode : {"zeros", "circular"}
    How to pad the input: with zeros, or with the other end of the map.
channels_last : bool
    Whether x and the output have shape (..., N_1, ..., N_d, C). The weight's shape is the same.
smoothness, limits, cropping, multiple_of, norm, convention
    As for `diff_stride`.
method : {"auto", "fused", "separate"}
    "separate" convolves with the framework's own function, then resizes. "fused" adds up shifted
    resizes of the input, at the resolution of the output. "auto" estimates the cost of both with
    figures measured on CPUs, and takes the cheaper one; if the framework has no convolution
    (NumPy, CuPy), it takes "fused". The results are equal up to rounding. In half precision,
    "fused" computes in float32 and "separate" as the framework does.

Returns
-------
ARRAY, shape (..., O, M_1, ..., M_d)
    Output with the dtype and the device of `x`.

Raises
------
TypeError, ValueError
    If `diff_stride` would refuse an argument; if the weight or the bias does not fit `x`; if
    padding is circular and the kernel reaches further than the map; if the method is "separate"
    and the framework has no convolution; or if axes are too long for "fused" and there is no
    alternative.
""",
    "output_sizes": """
Return the output sizes of `diff_stride` along the resized axes.

Parameters
----------
shape : sequence of int
    Shape of the input.
strides, axes, smoothness, limits, cropping, multiple_of, convention
    As for `diff_stride`. The strides must have concrete values.

Returns
-------
tuple of int
    One size per resized axis, in the order of `axes`.
""",
    "spectral_resize": """
Resize an array by cropping or zero-padding its spectrum.

With the default norm, this equals `scipy.signal.resample` along each axis.

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
    Input: real floating point.
sizes : int or sequence of int
    Target size per axis, larger or smaller than the input's.
axes : int or sequence of int
    The axes to resize.
norm : {"forward", "ortho", "backward"}
    As for `diff_stride`.

Returns
-------
ARRAY, shape (..., M_1, ..., M_d, ...)

Raises
------
TypeError, ValueError
    As for `diff_stride`.
""",
    "spectral_pool": """
Downsample an array by cropping its spectrum to floor(N/S) samples per axis.

This is spectral pooling with fixed strides (Rippel, Snoek, Adams, 2015). The strides have no
gradient.

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
    Input: real floating point.
strides : float or sequence of float
    Strides, at least 1: one per axis, or one for all.
axes : int or sequence of int
    The axes to resize.
norm : {"forward", "ortho", "backward"}, optional
    As for `diff_stride`.
convention : {"nominal", "paper", "tensorflow"}
    "tensorflow" computes what the authors' FixedSpectralPooling does. The other two are equal.

Returns
-------
ARRAY, shape (..., M_1, ..., M_d, ...)
    M = min(N, max(2, floor(N/S))).

Raises
------
TypeError, ValueError
    If `diff_stride` would refuse an argument, or a stride is below 1.
""",
    "complexity": r"""
Return the complexity penalty of a stack of layers.

.. math:: J = \sum_{l=1}^{D} \prod_{l'=1}^{l} \prod_a \frac{1}{S_a^{(l')}}

Parameters
----------
strides_per_layer : sequence
    For each layer, in the order of the network, its strides with one entry per resized axis.
    Repeat a shared stride once per axis. Values below 1 count as 1, and their gradient is passed
    on unchanged.

Returns
-------
ARRAY, shape ()
    J, differentiable in the strides of every layer.

Raises
------
TypeError, ValueError
    If there is no layer, or a layer's strides are not one-dimensional and finite.
""",
    "authors_strides": """
Return the strides that the authors' TensorFlow layer has after a call.

Their forward pass raises its parameter to size/(size - R). The layers here never change theirs in a
forward pass.

Parameters
----------
shape : sequence of int
    Shape of the input.
strides : float, sequence of float or ARRAY
    The strides before the call.
axes : int or sequence of int
    The axes of height and width.
smoothness : float
    Smoothness R of the window.

Returns
-------
tuple of float
    The strides after the call, as float32 values: as many as there are in `strides`.
""",
}
