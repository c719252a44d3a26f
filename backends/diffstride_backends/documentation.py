"""What the adapters' functions say of themselves: written once, with each framework's arrays.

An adapter's function takes its text by its name. A type checker reads the function's own signature;
`help` and the documentation's site read this.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import cleandoc
from typing import TypeVar

FunctionT = TypeVar("FunctionT", bound=Callable[..., object])


def documented(array: str) -> Callable[[FunctionT], FunctionT]:
    """Return a decorator that gives a function of an adapter its docstring.

    Parameters
    ----------
    array : str
        What the framework's arrays are called. A function whose name ends in ``_with_pullback``
        is documented as one that returns a value and its pullback.
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
    "conv_diff_stride": "(dx, dweight, dstrides), and dbias as the fourth where there is a bias",
    "spectral_resize": "(dx,)",
    "spectral_pool": "(dx,)",
    "complexity": "the gradient of each layer's strides, in their order",
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
    ``pullback(g)``, for the gradient `g` of the loss in the value, returns the tuple
    {_GRADIENTS[name]}.

Raises
{rest.rstrip()}

{_NOTES}"""


_NOTES = """Notes
-----
The pullback is that of this very evaluation. It has the values of the strides, so that their array
may be changed before it is called. It keeps the other arrays themselves, not copies: their entries
must stay as they are until then.
"""

_TEXTS = {
    "diff_stride": r"""
Downsample an array by strides that have a gradient.

Along every resized axis the spectrum is multiplied by a window whose width follows the
stride, cropped, and transformed back (Riad et al., ICLR 2022, Algorithm 1).

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
    Real floating point of 16, 32 or 64 bits (bfloat16 where the framework has it), any
    number of other dimensions. Dense: no sparse, nested or masked array.
strides : float, sequence of float, or ARRAY of shape (), (1,) or (d,)
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
    switches the built-in bounds off too, except for S >= 1.
cropping : bool
    False masks the spectrum without cropping it: the shape never changes.
multiple_of : int
    Output sizes are raised to the next multiple of it, as far as the input's size allows. The
    window stays as it is. Not in the tensorflow convention.
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
ARRAY, shape (..., M_1, ..., M_d, ...)
    Of the dtype and on the device of `x`.

Raises
------
TypeError
    For an argument of the wrong kind: `x` not real floating point or not dense, strides in
    half precision, axes in a set, which has no order, ...
ValueError
    For a value that is not allowed: strides that are not finite or too many, axes repeated
    or out of range, limits the wrong way round, arrays on different devices, ...
""",
    "conv_diff_stride": r"""
Convolve an array and downsample the result by strides that have a gradient.

Equal to `diff_stride` of a convolution of stride 1 that keeps the size of its input, but
without computing at full resolution where that is cheaper: both are linear, so that the
sum over the kernel can be taken behind the resize. This is the resize after the
convolution, and there is no placement to choose: for the resize before it, convolve what
`diff_stride` returns.

.. math:: A (w * x) = \sum_i w_i\, A Z_i x,

where Z_i shifts by tap i of the kernel.

Parameters
----------
x : ARRAY, shape (..., C, N_1, ..., N_d)
    Real floating point; d is 1, 2 or 3, and any number of axes come before the channels.
weight : ARRAY, shape (O, C / groups, k_1, ..., k_d)
    Of the dtype of `x`; odd kernel sizes. As deep learning has it, w * x is a correlation.
strides : float, sequence of float, or ARRAY of shape (), (1,) or (d,)
    As for `diff_stride`, for the spatial axes, of which the last is the paper's width.
bias : ARRAY, shape (O,), optional
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
smoothness, limits, cropping, multiple_of, norm, convention
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
ARRAY, shape (..., O, M_1, ..., M_d)
    Of the dtype and on the device of `x`.

Raises
------
TypeError, ValueError
    As for `diff_stride`; for a weight or bias that does not fit `x`; for circular padding
    by a kernel that reaches further than the map; for "separate" where the framework has no
    convolution; and for axes too long for "fused", where nothing else is there.
""",
    "output_sizes": """
Return the sizes that `diff_stride` gives along the resized axes.

Parameters
----------
shape : sequence of int
    Of the input.
strides, axes, smoothness, limits, cropping, multiple_of, convention
    As for `diff_stride`; the strides must have concrete values.

Returns
-------
tuple of int
    One size per resized axis, in the order of `axes`.
""",
    "spectral_resize": """
Resize an array by cropping or zero-padding its spectrum.

Equal to `scipy.signal.resample` along each axis for the default norm.

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
    Real floating point.
sizes : int or sequence of int
    Target size per axis, larger or smaller.
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

Spectral pooling with fixed strides (Rippel, Snoek, Adams, 2015); the strides have no
gradient.

Parameters
----------
x : ARRAY, shape (..., N_1, ..., N_d, ...)
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
ARRAY, shape (..., M_1, ..., M_d, ...)
    M = min(N, max(2, floor(N/S))).

Raises
------
TypeError, ValueError
    As for `diff_stride`, and for a stride below 1.
""",
    "complexity": r"""
Return the complexity penalty of a stack of layers.

.. math:: J = \sum_{l=1}^{L} \prod_{i=1}^{l} \prod_a \frac{1}{S_a^i}

Parameters
----------
strides_per_layer : sequence
    Per layer, in the order of the network, its strides with one entry per resized axis;
    repeat a shared stride once per axis. Values below 1 count as 1, straight through.

Returns
-------
ARRAY, shape ()
    J, differentiable in every layer's strides.

Raises
------
TypeError, ValueError
    If there is no layer, or strides are not finite numbers in one dimension.
""",
    "authors_strides": """
Return what the authors' TensorFlow layer writes back into its strides when called.

Their forward pass raises the parameter itself to size/(size - R); ours never changes it.

Parameters
----------
shape : sequence of int
    Of the input.
strides : float, sequence of float or ARRAY
    Before the call.
axes : int or sequence of int
    Height and width.
smoothness : float
    R.

Returns
-------
tuple of float
    After the call, as many as there are strides; float32 values.
""",
}
