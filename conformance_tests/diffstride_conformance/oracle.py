"""The naive explicit version: every convention as sums of cosines, in NumPy and float64.

This file is the reference that the backends are measured against, and the place to read what
DiffStride computes. It follows the equations one by one and never uses an FFT:

1. bound the stride                                            (:func:`used_strides`),
2. weight each frequency by a ramp that depends on the stride  (:func:`mask`),
3. choose the output size from the stride                      (:func:`output_sizes`),
4. build one matrix per axis out of cosines                    (:func:`axis_matrix`),
5. multiply the input by the matrices, and the cotangent by their transposes
   (:func:`diff_stride`).

A convolution before the resize is a sum over its taps, at full resolution
(:func:`conv_diff_stride`).

The names follow the paper: ``N`` is the input size of an axis, ``M`` its output size, ``S`` the
stride, ``R`` the smoothness, ``k`` a frequency and ``mu(k)`` its weight in the mask. ``rho`` is the
smoothness of the nominal convention, a fraction.

There are three conventions. In ``"nominal"``, the default, the stride sets the outer edge of the
window, so that about ``N/S`` samples are left, as after a strided convolution. ``"paper"`` is the
convention of the paper [1]_: the stride sets the inner edge, and the output is larger.
``"tensorflow"`` is what the paper's code computes.

References
----------
.. [1] R. Riad, O. Teboul, D. Grangier, N. Zeghidour, "Learning strides in convolutional neural
   networks", ICLR 2022.
.. [2] O. Rippel, J. Snoek, R. P. Adams, "Spectral representations for convolutional neural
   networks", NeurIPS 2015.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Convention = Literal["nominal", "paper", "tensorflow"]
Norm = Literal["forward", "ortho", "backward"]
Padding = Literal["zeros", "circular"]
Limits = tuple[float | None, float | None]
FloatArray = npt.NDArray[np.float64]
ComplexArray = npt.NDArray[np.complex128]

DEFAULT_SMOOTHNESS: dict[Convention, float] = {"nominal": 0.25, "paper": 4.0, "tensorflow": 4.0}
DEFAULT_NORM: dict[Convention, Norm] = {
    "nominal": "forward",
    "paper": "forward",
    "tensorflow": "backward",
}

TIE = 1e-4
"""Distance from a corner of the mask within which a bin counts as on it (tau), see :func:`mask`."""

FLOAT32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Reference:
    """Results of an operator and of its backward pass, in float64.

    Attributes
    ----------
    output : ndarray
        Resized array.
    dx : ndarray or None
        Gradient of ``<cotangent, output>`` with respect to the input. None without a cotangent.
    dstrides : ndarray or None
        Gradient with respect to the strides, in their shape. None without a cotangent, and for
        operators that have no stride to learn.
    bound : ndarray or None
        Upper bound ``B`` of ``|dstrides|``, in the same shape. Errors of `dstrides` are measured in
        units of ``B``, because the derivative is a sum that may cancel to almost nothing.
    dweight, dbias : ndarray or None
        Gradients with respect to the weight and the bias of a convolution. None without them.
    """

    output: FloatArray
    dx: FloatArray | None = None
    dstrides: FloatArray | None = None
    bound: FloatArray | None = None
    dweight: FloatArray | None = None
    dbias: FloatArray | None = None


@dataclass(frozen=True)
class _Axis:
    """One resized axis: its operator, the derivative of the operator in S, and max_k |d mu/dS|."""

    matrix: npt.NDArray[Any]
    derivative: npt.NDArray[Any]
    steepest: float = 0.0


# --- Step 1: the stride that is used ----------------------------------------------------------


def stride_floor(size: int, *, smoothness: float, convention: Convention = "nominal") -> float:
    """Return the smallest stride that is used, so that the stride keeps a gradient.

    In the paper's convention, this is ``N/(N - R)``. At this stride, the edge bin ``k = N/2`` of an
    axis with offset ``o = 0`` is in the middle of the ramp; towards stride 1, it would leave the
    ramp. If the ramp is wider than the axis, there is no floor. The nominal window has its last bin
    on the ramp already at ``S = 1``, so its floor is 1.
    """
    if convention == "nominal":
        return 1.0
    return size / (size - smoothness) if size > smoothness else 1.0


def used_strides(
    sizes_in: Sequence[int],
    strides: npt.ArrayLike,
    *,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    convention: Convention = "nominal",
) -> tuple[float, ...]:
    """Return the bounded stride of each axis, ``S = min(max(parameter, lower), upper)``.

    The built-in bounds are :func:`stride_floor` and ``N/2``, both at least 1. In the nominal
    convention, the stride of an axis of size 2 or more has a gradient at both bounds.

    Parameters
    ----------
    sizes_in : sequence of int
        Input size ``N`` of each resized axis.
    strides : array_like
        One stride per axis, or a single stride that all axes share. With a shared stride, every
        axis uses the same value, bounded by the largest lower bound and the smallest upper bound of
        the axes.
    smoothness : float, optional
        ``R``, or for ``"nominal"`` ``rho``, a fraction of the band. Default: the convention's.
    limits : (lower, upper) or None
        The user's own limits. None means no limit. ``limits=None`` also switches off the built-in
        floor and upper bound, so that only ``S >= 1`` remains.
    convention : {"nominal", "paper", "tensorflow"}
        Convention whose formulas are used.

    Returns
    -------
    tuple of float
        One stride per axis, even if the parameter is shared.

    Raises
    ------
    ValueError
        If the lower limit is greater than the upper limit.
    """
    smoothness = _smoothness(smoothness, convention)
    strides = _strides(strides, len(sizes_in))
    if convention == "tensorflow":
        used, _ = _tensorflow_strides(sizes_in, strides, smoothness=smoothness, limits=limits)
        return tuple(used)

    lower, upper = _checked_limits(limits)
    if limits is None:
        lowest = [1.0 for N in sizes_in]
        highest = [math.inf for N in sizes_in]
    else:
        lowest = [
            max(1.0, lower or 1.0, stride_floor(N, smoothness=smoothness, convention=convention))
            for N in sizes_in
        ]
        highest = [max(1.0, N / 2 if upper is None else min(upper, N / 2)) for N in sizes_in]
    if strides.size == 1:
        lowest = [max(lowest) for N in sizes_in]
        highest = [min(highest) for N in sizes_in]
    parameters = np.broadcast_to(strides, len(sizes_in))
    # The upper bound is applied last, so it wins if the two cross on a small axis.
    return tuple(
        min(max(float(S), low), high)
        for S, low, high in zip(parameters, lowest, highest, strict=True)
    )


# --- Step 2: the mask over the frequencies ----------------------------------------------------


def ramp(
    size: int,
    stride: float,
    *,
    smoothness: float | None = None,
    last: bool = False,
    convention: Convention = "nominal",
) -> tuple[FloatArray, FloatArray]:
    """Evaluate ``v(k)``, the ramp before it is clipped, and ``dv/dS``.

    Nominal convention, the same on every axis. The output has frequencies up to ``q = N/(2S)``, and
    the ramp ends half a bin beyond::

        v(k) = (q + 1/2 - k) / R,   R = max(rho q, 1)

    The ramp is a fixed fraction of that band, but always wide enough for one bin. It is evaluated
    in one of two forms, and no gradient passes through the choice between them. The wide form, if
    ``rho q >= 1 - 1e-6``, has the second derivative 0::

        v(k) = 1/rho - (2k - 1) S/(rho N),   dv/dS = -(2k - 1)/(rho N)

    The narrow form, otherwise, has the second derivative ``N/S^3``::

        v(k) = q + 1/2 - k,   dv/dS = -N/(2 S^2)

    At ``rho q = 1``, both forms give the same `v` but different derivatives: the wide form counts.

    Paper's convention (Eq. 3, and Eq. 4 on the last axis; ``o`` is 1 there and 0 elsewhere)::

        v(k) = (R + N/(2S) + o - k) / R,   dv/dS = -N/(2 R S^2)

    Parameters
    ----------
    size, stride : int, float
        ``N`` and ``S``. The stride is already bounded.
    smoothness : float, optional
        ``R`` (``"paper"``) or ``rho`` (``"nominal"``).
    last : bool
        Whether this is the last of the resized axes. ``"nominal"`` treats all axes alike.
    convention : {"nominal", "paper"}
        Convention whose formula is used.

    Returns
    -------
    v, dv : ndarray
        Values for ``k = 0 .. N//2``. Negative frequencies share the values of positive ones.
    """
    N, S = size, stride
    k = np.arange(N // 2 + 1, dtype=np.float64)
    if convention == "paper":
        R = _smoothness(smoothness, convention)
        offset = 1.0 if last else 0.0
        v = (R + N / (2 * S) + offset - k) / R
        return v, np.full_like(v, -N / (2 * R * S**2))

    rho = _smoothness(smoothness, convention)
    q = N / (2 * S)
    # The margin makes float32 and float64 strides choose the same branch.
    if rho * q >= 1 - 1e-6:
        return 1 / rho - (2 * k - 1) * S / (rho * N), -(2 * k - 1) / (rho * N)
    v = q + 1 / 2 - k
    return v, np.full_like(v, -N / (2 * S**2))


def mask(
    size: int,
    stride: float,
    *,
    smoothness: float | None = None,
    last: bool = False,
    convention: Convention = "nominal",
) -> tuple[FloatArray, FloatArray]:
    """Evaluate the mask ``mu(k) = clip(v(k), 0, 1)`` and its derivative in the stride.

    In the paper's usual first setting (N = 32, S = 2, R = 4), a bin is exactly on the corner
    ``v = 1``, where the derivative jumps. So is bin 5 of the nominal convention at N = 24, S = 2.
    On a corner, the right-hand derivative counts, and corners are given a width so that rounding
    decides nothing: ``d mu/dS = dv/dS`` if ``tau < v <= 1 + tau``, else 0.

    The nominal convention never changes frequency 0: ``mu(0) = 1`` and ``d mu/dS(0) = 0`` at every
    stride. Without bounds, ``q`` may be less than 1/2. Then no other frequency is left, and there
    is no derivative.

    Parameters and the range of ``k`` are the same as in :func:`ramp`.

    Returns
    -------
    mu, dmu : ndarray
    """
    v, dv = ramp(size, stride, smoothness=smoothness, last=last, convention=convention)
    on_ramp = (v > TIE) & (v <= 1 + TIE)
    mu, dmu = np.clip(v, 0.0, 1.0), np.where(on_ramp, dv, 0.0)
    if convention == "nominal":
        mu[0], dmu[0] = 1.0, 0.0
    return mu, dmu


# --- Step 3: the output size ------------------------------------------------------------------


def output_sizes(
    shape: Sequence[int],
    strides: npt.ArrayLike,
    *,
    axes: Sequence[int] = (-2, -1),
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    multiple_of: int = 1,
    convention: Convention = "nominal",
) -> tuple[int, ...]:
    """Return the output size of each resized axis.

    Nominal convention, with ``t = N/S``::

        M = max(1, min(N, floor(t + 3/4 + 1e-5 + 1e-7 t)))

    This size may be even or odd. For integer strides up to 4, it is ``ceil(N/S)``, the output size
    of a strided convolution with an odd kernel and padding. If `M` is even, the unpaired bin
    ``M/2`` is kept, with ``v <= 5/(8R)``, and symmetrised (:func:`axis_matrix`). If `M` is odd,
    there is no such bin, and the bin ``(M + 1)/2`` is cut off, although its ``v`` may be up to
    ``1/(8R)``. On a narrow ramp this may be the only bin: the stride then has no gradient.

    Paper's convention, with ``q = N/(2S) + R``, the first frequency that Eq. 3 sets to zero::

        M = min(N, 2 ceil(q - 1e-5 - 1e-7 q))

    This is the smallest even size whose Nyquist frequency ``M/2`` is at or above `q`.

    The small constants absorb the rounding of a float32 stride. ``cropping=False`` keeps ``M = N``.
    If sizes must be multiples of `m`, the `M` above becomes ``min(N, m ceil(M/m))``.

    Parameters
    ----------
    shape : sequence of int
        Shape of the whole input.
    strides, smoothness, limits, convention
        See :func:`used_strides`.
    axes : sequence of int
        Resized axes. For ``"tensorflow"``: height, then width.
    cropping : bool
        False keeps the full size (``"tensorflow"``: the full size with the width made even).
    multiple_of : int
        ``m``. It is 1 for ``"tensorflow"``.

    Returns
    -------
    tuple of int
        Output sizes in the order of `axes`.
    """
    smoothness = _smoothness(smoothness, convention)
    sizes_in = [shape[axis] for axis in _axes(axes, len(shape))]
    used = used_strides(
        sizes_in, strides, smoothness=smoothness, limits=limits, convention=convention
    )
    if convention == "tensorflow":
        height, width = _height_and_width(sizes_in)
        rows = _kept(height, used[0], smoothness=smoothness, last=False, cropping=cropping)
        columns = _kept(width, used[1], smoothness=smoothness, last=True, cropping=cropping)
        return len(rows), 2 * (len(columns) - 1)
    if not cropping:
        return tuple(sizes_in)
    sizes = []
    for N, S in zip(sizes_in, used, strict=True):
        if convention == "nominal":
            t = N / S
            sizes.append(max(1, min(N, math.floor(t + 3 / 4 + 1e-5 + 1e-7 * t))))
        else:
            q = N / (2 * S) + smoothness
            sizes.append(min(N, 2 * math.ceil(q - 1e-5 - 1e-7 * q)))
    return tuple(
        min(N, multiple_of * math.ceil(M / multiple_of))
        for N, M in zip(sizes_in, sizes, strict=True)
    )


# --- Step 4: one matrix per axis --------------------------------------------------------------


def axis_matrix(
    size: int, out_size: int, weights: FloatArray, *, unpaired: float = 1.0
) -> FloatArray:
    """Build the real matrix that resizes one axis, as a sum over the frequencies.

    With ``lo = min(M, N)``::

        A[m, n] = 1/N sum_{k=0..lo//2} c_k mu(k) cos(2 pi k (m/M - n/N))

    ``c_0 = 1``, and ``c_k = 2`` for a frequency and its negative together. If `lo` is even, the
    negative of the bin ``k = lo/2`` does not exist, or is the bin itself. Keeping only one of the
    two would give a complex result, so their mean is kept: the product
    ``cos(2 pi k m/M) cos(2 pi k n/N)``.

    Parameters
    ----------
    size, out_size : int
        ``N`` and ``M``.
    weights : ndarray
        ``mu(k)`` for ``k = 0 .. N//2``, or its derivative.
    unpaired : float
        ``c_k`` of the bin ``k = lo/2`` if `lo` is even.

    Returns
    -------
    ndarray, shape (M, N)
    """
    N, M = size, out_size
    lo = min(M, N)
    m = np.arange(M)[:, None]
    n = np.arange(N)[None, :]
    A = np.zeros((M, N))
    for k in range(lo // 2 + 1):
        if weights[k] == 0:
            continue  # Compute no cosines for a frequency that adds nothing.
        # Whole turns are removed while the phases are still integers, so that the argument of the
        # cosine is small and exact to the last bit.
        out_phase = 2 * np.pi * (((k * m) % M) / M)
        in_phase = 2 * np.pi * (((k * n) % N) / N)
        if 2 * k == lo:
            A += unpaired * weights[k] * np.cos(out_phase) * np.cos(in_phase)
        else:
            c = 1.0 if k == 0 else 2.0
            A += c * weights[k] * np.cos(out_phase - in_phase)
    return A / N


def _masked_axis(
    size: int,
    out_size: int,
    stride: float,
    *,
    smoothness: float,
    last: bool,
    convention: Convention,
) -> _Axis:
    """Build one axis of the nominal or paper convention; dA/dS takes the size as a constant."""
    mu, dmu = mask(size, stride, smoothness=smoothness, last=last, convention=convention)
    reached = min(out_size, size) // 2 + 1
    return _Axis(
        matrix=axis_matrix(size, out_size, mu),
        derivative=axis_matrix(size, out_size, dmu),
        steepest=float(np.max(np.abs(dmu[:reached]))),
    )


# --- Step 5: the operators --------------------------------------------------------------------


def diff_stride(
    x: npt.ArrayLike,
    strides: npt.ArrayLike,
    cotangent: npt.ArrayLike | None = None,
    *,
    sizes: Sequence[int] | None = None,
    axes: Sequence[int] = (-2, -1),
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    multiple_of: int = 1,
    norm: Norm | None = None,
    convention: Convention = "nominal",
) -> Reference:
    """Downsample by learnt strides, ``y = (A_1 x A_2 x ...) x``, with its derivatives.

    For a cotangent ``g``::

        dx   = (A_1^T x A_2^T x ...) g
        dS_j = <g, (A_1 x .. dA_j/dS .. x A_d) x>

    Parameters
    ----------
    x : array_like
        Real array of any rank. Axes that are not in `axes` are batch axes.
    strides : array_like
        One stride per axis of `axes`, or a single stride (a scalar, or one entry) for all of them.
    cotangent : array_like, optional
        ``g``, with the shape of the output.
    sizes : sequence of int, optional
        Output sizes to use instead of the sizes that follow from the strides. ``"tensorflow"``
        accepts only the sizes that it would choose itself.
    axes : sequence of int
        Resized axes. The paper's mask treats the last one differently. For ``"tensorflow"``, they
        are height and width.
    smoothness, limits, convention
        See :func:`used_strides`. The gradient passes straight through the bounds, except in
        ``"tensorflow"``.
    cropping : bool
        False applies only the mask and keeps the full size.
    multiple_of : int
        See :func:`output_sizes`.
    norm : {"forward", "ortho", "backward"}, optional
        ``"forward"`` preserves constants. ``"ortho"`` multiplies this by ``prod sqrt(N/M)``,
        ``"backward"`` by ``prod N/M``. Default: the convention's.

    Returns
    -------
    Reference
        `dstrides` and `bound` have the shape of `strides`.

    Raises
    ------
    ValueError
        If the strides do not fit the axes, if the limits cross, or if ``"tensorflow"`` is used for
        anything other than two axes with at least two columns.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = _axes(axes, x.ndim)
    strides = _strides(strides, len(axes))
    smoothness = _smoothness(smoothness, convention)
    sizes_in = [x.shape[axis] for axis in axes]
    sizes_out = output_sizes(
        x.shape,
        strides,
        axes=axes,
        smoothness=smoothness,
        limits=limits,
        cropping=cropping,
        multiple_of=multiple_of,
        convention=convention,
    )
    if convention == "tensorflow":
        if sizes is not None and tuple(sizes) != sizes_out:
            raise ValueError(f"the tensorflow convention gives {sizes_out} here, not {sizes}")
        operators = _tensorflow_axes(
            sizes_in, strides, smoothness=smoothness, limits=limits, cropping=cropping
        )
    else:
        if sizes is not None:
            sizes_out = tuple(sizes)
        used = used_strides(
            sizes_in, strides, smoothness=smoothness, limits=limits, convention=convention
        )
        operators = [
            _masked_axis(
                N, M, S, smoothness=smoothness, last=j == len(axes) - 1, convention=convention
            )
            for j, (N, M, S) in enumerate(zip(sizes_in, sizes_out, used, strict=True))
        ]
    scale = _scale(norm or DEFAULT_NORM[convention], sizes_in, sizes_out)
    matrices = [operator.matrix for operator in operators]
    output, dx = _apply_both(matrices, x, cotangent, axes, scale)
    if cotangent is None:
        return Reference(output)

    g = np.asarray(cotangent, dtype=np.float64)
    # |<g, L x>| <= |g| |L| |x|, and resizing one axis has norm sqrt(M/N).
    resizing = math.prod(math.sqrt(M / N) for N, M in zip(sizes_in, sizes_out, strict=True))
    size_of_terms = float(np.sqrt(np.sum(g**2)) * np.sqrt(np.sum(x**2))) * resizing * scale
    dstrides = []
    bound = []
    for j, operator in enumerate(operators):
        varied = [*matrices[:j], operator.derivative, *matrices[j + 1 :]]
        dstrides.append(float(np.sum(g * (scale * _apply(varied, x, axes)))))
        bound.append(size_of_terms * operator.steepest)
    if strides.size == 1:
        dstrides = [sum(dstrides)]
        bound = [sum(bound)]
    return Reference(
        output,
        dx,
        dstrides=np.reshape(np.asarray(dstrides), strides.shape),
        bound=np.reshape(np.asarray(bound), strides.shape),
    )


def conv_diff_stride(
    x: npt.ArrayLike,
    weight: npt.ArrayLike,
    strides: npt.ArrayLike,
    cotangent: npt.ArrayLike | None = None,
    *,
    bias: npt.ArrayLike | None = None,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    padding_mode: Padding = "zeros",
    channels_last: bool = False,
    **options: Any,
) -> Reference:
    """Convolve at full resolution, then downsample by learnt strides.

    The convolution is a correlation, as usual in deep learning, and keeps the size of its input.
    ``i`` counts the taps from the middle of the kernel, and ``Z_i`` is the shift whose value at
    ``n`` is the value of its input at ``n + dilation i`` (``_shifted``)::

        y = sum_i w_i Z_i x + b
        dw_i = <dy, Z_i x>,   dx = sum_i w_i^T Z_{-i} dy,   db = sum_n dy

    where ``dy`` is the gradient of :func:`diff_stride` with respect to ``y``. The gradient with
    respect to the strides, and its `bound`, are those of :func:`diff_stride` for ``y``.

    Parameters
    ----------
    x : array_like, shape (..., C, N_1, ..., N_d)
    weight : array_like, shape (O, C / groups, k_1, ..., k_d)
        Weight with odd kernel sizes.
    strides, cotangent
        See :func:`diff_stride`. The resized axes are ``N_1 ... N_d``.
    bias : array_like, shape (O,), optional
    dilation : int or sequence of int
        Distance between taps, per axis or for all axes.
    groups : int
        Number of groups. Each group of channels is convolved to its own group of output channels.
    padding_mode : {"zeros", "circular"}
        Values beyond the border: zeros, or those at the other end.
    channels_last : bool
        Whether input and output have shape (..., N_1, ..., N_d, C) instead.
    **options
        See :func:`diff_stride`, except for `axes`.

    Returns
    -------
    Reference
        `dbias` is None without a bias.
    """
    x = np.asarray(x, dtype=np.float64)
    weight = np.asarray(weight, dtype=np.float64)
    out_channels, _, *kernel = weight.shape
    d = len(kernel)
    channel_axis = -1 if channels_last else -d - 1
    axes = tuple(range(-d - 1, -1)) if channels_last else tuple(range(-d, 0))
    circular = padding_mode == "circular"

    def by_group(array: FloatArray) -> FloatArray:
        """Return an input or output as (groups, channels per group, ..., N_1, ..., N_d)."""
        array = np.moveaxis(array, channel_axis, 0)
        return np.reshape(array, (groups, array.shape[0] // groups, *array.shape[1:]))

    def as_given(array: FloatArray) -> FloatArray:
        """Undo `by_group`."""
        array = np.reshape(array, (groups * array.shape[1], *array.shape[2:]))
        return np.moveaxis(array, 0, channel_axis)

    x = by_group(x)
    w = np.reshape(weight, (groups, out_channels // groups, *weight.shape[1:]))
    taps = {
        tap: [
            step * (i - k // 2)
            for i, k, step in zip(tap, kernel, np.broadcast_to(dilation, d), strict=True)
        ]
        for tap in np.ndindex(*kernel)
    }
    y = np.zeros((*w.shape[:2], *x.shape[2:]))
    for tap, offsets in taps.items():
        y += np.einsum("goc,gc...->go...", w[..., *tap], _shifted(x, offsets, circular=circular))
    if bias is not None:
        y += np.reshape(np.asarray(bias, dtype=np.float64), w.shape[:2] + (1,) * (y.ndim - 2))
    resized = diff_stride(as_given(y), strides, cotangent, axes=axes, **options)
    if resized.dx is None:
        return resized

    dy = by_group(resized.dx)
    dx = np.zeros_like(x)
    dw = np.zeros_like(w)
    places = tuple(range(2, dy.ndim))
    for tap, offsets in taps.items():
        back = [-offset for offset in offsets]
        dx += np.einsum("goc,go...->gc...", w[..., *tap], _shifted(dy, back, circular=circular))
        seen = _shifted(x, offsets, circular=circular)
        for c in range(w.shape[2]):
            dw[:, :, c, *tap] = np.sum(dy * seen[:, c, None], axis=places)
    return replace(
        resized,
        dx=as_given(dx),
        dweight=np.reshape(dw, weight.shape),
        dbias=None if bias is None else np.ravel(np.sum(dy, axis=places)),
    )


def _shifted(x: FloatArray, offsets: Sequence[int], *, circular: bool) -> FloatArray:
    """Return the values at ``n + offset`` of the last axes; outside, zeros or the other end."""
    for axis, offset in zip(range(-len(offsets), 0), offsets, strict=True):
        n = np.arange(x.shape[axis]) + offset
        x = np.take(x, n % len(n), axis)
        if not circular:
            beyond = (n < 0) | (n >= len(n))
            x = x * np.reshape(~beyond, (-1,) + (1,) * (-axis - 1))
    return x


def spectral_resize(
    x: npt.ArrayLike,
    sizes: Sequence[int],
    cotangent: npt.ArrayLike | None = None,
    *,
    axes: Sequence[int] = (-2, -1),
    norm: Norm = "forward",
) -> Reference:
    """Resize by cutting or padding the spectrum: ``mu = 1``, any size, up or down.

    This follows ``scipy.signal.resample``, axis by axis: when an axis shrinks to an even size, the
    two bins that fall on the new Nyquist frequency are added, while :func:`diff_stride` takes their
    mean. Therefore ``c = 2`` there.

    Parameters
    ----------
    x, cotangent, axes, norm
        See :func:`diff_stride`.
    sizes : sequence of int
        Output size of each axis of `axes`.

    Returns
    -------
    Reference
        Results without `dstrides` and `bound`.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = _axes(axes, x.ndim)
    sizes_in = [x.shape[axis] for axis in axes]
    matrices = [
        axis_matrix(N, M, np.ones(N // 2 + 1), unpaired=2.0 if M % 2 == 0 and M < N else 1.0)
        for N, M in zip(sizes_in, sizes, strict=True)
    ]
    output, dx = _apply_both(matrices, x, cotangent, axes, _scale(norm, sizes_in, sizes))
    return Reference(output, dx)


def spectral_pool(
    x: npt.ArrayLike,
    strides: npt.ArrayLike,
    cotangent: npt.ArrayLike | None = None,
    *,
    axes: Sequence[int] = (-2, -1),
    norm: Norm | None = None,
    convention: Convention = "nominal",
) -> Reference:
    """Pool spectrally with a fixed stride (Rippel et al. 2015): ``mu = 1``, no gradient in S.

    The output size is ``M = min(N, max(2, floor(N/S + 1e-5)))``. The ``"tensorflow"`` form is the
    authors' ``FixedSpectralPooling``, see ``_tensorflow_fixed_matrices``.

    Parameters
    ----------
    x, cotangent, axes, norm, convention
        See :func:`diff_stride`.
    strides : array_like
        One fixed stride per axis of `axes`, or one for all of them.

    Returns
    -------
    Reference
        Results without `dstrides` and `bound`.
    """
    x = np.asarray(x, dtype=np.float64)
    axes = _axes(axes, x.ndim)
    sizes_in = [x.shape[axis] for axis in axes]
    per_axis = [float(S) for S in np.broadcast_to(_strides(strides, len(axes)), len(axes))]
    matrices: list[npt.NDArray[Any]]
    if convention == "tensorflow":
        matrices = _tensorflow_fixed_matrices(sizes_in, per_axis)
        sizes_out = [matrix.shape[0] for matrix in matrices]
    else:
        sizes_out = [
            min(N, max(2, math.floor(N / S + 1e-5)))
            for N, S in zip(sizes_in, per_axis, strict=True)
        ]
        matrices = [
            axis_matrix(N, M, np.ones(N // 2 + 1)) for N, M in zip(sizes_in, sizes_out, strict=True)
        ]
    scale = _scale(norm or DEFAULT_NORM[convention], sizes_in, sizes_out)
    output, dx = _apply_both(matrices, x, cotangent, axes, scale)
    return Reference(output, dx)


def complexity(strides_per_layer: Sequence[npt.ArrayLike]) -> tuple[float, list[FloatArray]]:
    """Evaluate the paper's penalty on computation and its gradient.

    Feature maps after layer `l` have ``prod_{l'<=l} 1/prod_a S_a(l')`` times the input's points::

        J          = sum_{l=1..D} prod_{l'=1..l} 1/prod_a S_a(l')
        dJ/dS_b(r) = -1/S_b(r) sum_{l>=r} prod_{l'<=l} 1/prod_a S_a(l')

    Parameters
    ----------
    strides_per_layer : sequence of array_like
        Used strides of each layer, in order, with one entry per resized axis.

    Returns
    -------
    value : float
    gradients : list of ndarray
        ``dJ/dS`` for each layer, with one entry per axis.
    """
    layers = [np.asarray(strides, dtype=np.float64) for strides in strides_per_layer]
    points = [
        math.prod(float(1 / np.prod(strides)) for strides in layers[: last + 1])
        for last in range(len(layers))
    ]
    gradients = [-sum(points[j:]) / strides for j, strides in enumerate(layers)]
    return float(sum(points)), gradients


def _apply(matrices: Sequence[npt.NDArray[Any]], x: FloatArray, axes: Sequence[int]) -> FloatArray:
    """Multiply each axis of `x` by its matrix and take the real part."""
    y: npt.NDArray[Any] = x
    for matrix, axis in zip(matrices, axes, strict=True):
        y = np.moveaxis(np.tensordot(matrix, y, axes=(1, axis)), 0, axis)
    return np.asarray(y.real)


def _apply_both(
    matrices: Sequence[npt.NDArray[Any]],
    x: FloatArray,
    cotangent: npt.ArrayLike | None,
    axes: Sequence[int],
    scale: float,
) -> tuple[FloatArray, FloatArray | None]:
    """Return the output and, if there is a cotangent, the gradient with respect to `x`.

    Transposes are also right for complex matrices: ``y = Re(A x G^T)`` has ``dx = Re(A^T g G)``.
    """
    output = scale * _apply(matrices, x, axes)
    if cotangent is None:
        return output, None
    g = np.asarray(cotangent, dtype=np.float64)
    if g.shape != output.shape:
        raise ValueError(f"the cotangent has shape {g.shape}, the output {output.shape}")
    return output, scale * _apply([matrix.T for matrix in matrices], g, axes)


def _scale(norm: Norm, sizes_in: Sequence[int], sizes_out: Sequence[int]) -> float:
    """Return the factor by which `norm` differs from ``"forward"``."""
    exponent = {"forward": 0.0, "ortho": 0.5, "backward": 1.0}[norm]
    ratio = math.prod(N / M for N, M in zip(sizes_in, sizes_out, strict=True))
    return float(ratio**exponent)


# --- The tensorflow convention: what the authors' code computes -------------------------------
#
# Their code works on X = rfft2(x): all H rows of frequencies, but only the columns 0 .. W//2. It
# masks rows and columns, keeps those whose mask is not zero, and calls irfft2 on the rest. The mask
# of the rows is not symmetric in the frequency, so their matrix is complex: y = Re(A x G^T).
# Strides, thresholds and masks are in float32, because its rounding decides ties and thus sizes.


def tensorflow_written_back(
    shape: Sequence[int],
    strides: npt.ArrayLike,
    *,
    axes: Sequence[int] = (-2, -1),
    smoothness: float = 4.0,
) -> npt.NDArray[np.float32]:
    """Return the strides that the authors' layer holds after it has been called once.

    A call raises each stride permanently to at least ``N/(N - R)``, and a shared stride to the
    larger of the two floors. If ``N <= R``, the authors' floor is infinite or negative; here there
    is no floor then.

    Returns
    -------
    ndarray of float32, of the shape of `strides`
    """
    sizes_in = [shape[axis] for axis in _axes(axes, len(shape))]
    held = _strides(strides, len(sizes_in)).astype(np.float32)
    R = np.float32(smoothness)
    floors = [
        np.float32(N) / (np.float32(N) - R) if N > R else np.float32(-np.inf) for N in sizes_in
    ]
    return np.maximum(held, max(floors) if held.size == 1 else np.asarray(floors))


def _tensorflow_strides(
    sizes_in: Sequence[int], strides: FloatArray, *, smoothness: float, limits: Limits | None
) -> tuple[list[float], list[bool]]:
    """Return s' of each axis, and whether its gradient passes the clip (at equality it does)."""
    raised = strides.astype(np.float32)
    if limits is not None:
        raised = tensorflow_written_back(
            sizes_in, strides, axes=range(len(sizes_in)), smoothness=smoothness
        )
    lower, upper = _checked_limits(limits)
    low = np.float32(lower or 1.0)
    high = np.float32(upper or FLOAT32_MAX)
    per_axis = np.broadcast_to(raised, len(sizes_in))
    used = [float(max(min(s, high), low)) for s in per_axis]
    passes = [bool(low <= s <= high) for s in per_axis]
    return used, passes


def tensorflow_mask(
    size: int, stride: float, *, smoothness: float = 4.0, last: bool
) -> tuple[npt.NDArray[np.float32], FloatArray]:
    """Evaluate the authors' mask in float32, and its derivative in s'.

    ``mask = clip((R + thr - pos)/R, 0, 1)`` with ``thr = max(N/s', 2)/2``, plus one for columns.
    For columns, ``pos`` is the frequency. For rows, it is the distance to the edge between rows 0
    and -1 (even `size`) or to row -1 (odd `size`), so the positive and the negative frequency of a
    pair get different weights.

    Parameters
    ----------
    size, stride : int, float
        ``N`` and ``s'``.
    smoothness : float
        ``R``.
    last : bool
        True for columns (``0 .. N//2``), False for rows (``0 .. N-1``, in FFT order).

    Returns
    -------
    mask : ndarray of float32
    dmask : ndarray of float64
        ``1/R`` times ``d thr/ds'`` if the unclipped value is in [0, 1], both ends included, else 0.
    """
    N, s, R = np.float32(size), np.float32(stride), np.float32(smoothness)
    threshold = max(N / s, np.float32(2)) / np.float32(2)
    if last:
        threshold = threshold + np.float32(1)
        pos = np.arange(size // 2 + 1)
    else:
        k = np.arange(size)
        rising = k if size % 2 == 0 else k + 1
        pos = np.where(k < size // 2, rising, size - 1 - k)
    raw = (R + threshold - pos.astype(np.float32)) / R
    dthreshold = -size / (2 * float(s) ** 2) if N / s >= 2 else 0.0
    dmask = np.where((raw >= 0) & (raw <= 1), dthreshold / smoothness, 0.0)
    return np.clip(raw, np.float32(0), np.float32(1)), dmask


def _kept(size: int, stride: float, *, smoothness: float, last: bool, cropping: bool) -> list[int]:
    """List the rows or columns of the spectrum that are kept, in their order."""
    weights, _ = tensorflow_mask(size, stride, smoothness=smoothness, last=last)
    return [k for k, weight in enumerate(weights) if weight > 0 or not cropping]


def _row_matrix(size: int, rows: Sequence[int], weights: npt.NDArray[Any]) -> ComplexArray:
    """Build the complex matrix of the height: FFT, keep `rows`, inverse FFT of these.

    The kept row ``k`` ends up in slot ``p``, and the inverse transform reads it as frequency
    ``p``: ``A[m, n] = 1/H sum_p mask(k_p) exp(2 pi i (p m/h - k_p n/H))``.
    """
    H, h = size, len(rows)
    m = np.arange(h)[:, None]
    n = np.arange(H)[None, :]
    A = np.zeros((h, H), dtype=np.complex128)
    for p, k in enumerate(rows):
        turns = ((p * m) % h) / h - ((k * n) % H) / H
        A += weights[k] * np.exp(2j * np.pi * turns)
    return A / H


def _column_matrix(
    size: int, out_size: int, columns: Sequence[int], weights: npt.NDArray[Any]
) -> ComplexArray:
    """Build the complex matrix of the width: real FFT, keep `columns`, inverse real FFT.

    ``G[m, n] = 1/W sum_q c_q mask(q) exp(2 pi i q (m/w - n/W))``. A column also
    stands for its conjugate (``c = 2``), except the first and, for an even width, the last. The
    inverse transform keeps the real part of these, which is taken here of ``A x G^T`` as a whole.
    """
    W, w = size, out_size
    m = np.arange(w)[:, None]
    n = np.arange(W)[None, :]
    G = np.zeros((w, W), dtype=np.complex128)
    for q in columns:
        turns = ((q * m) % w) / w - ((q * n) % W) / W
        c = 1.0 if q == 0 or 2 * q == w else 2.0
        G += c * weights[q] * np.exp(2j * np.pi * turns)
    return G / W


def _tensorflow_axes(
    sizes_in: Sequence[int],
    strides: FloatArray,
    *,
    smoothness: float,
    limits: Limits | None,
    cropping: bool,
) -> list[_Axis]:
    """Build the operators of height and width of the authors' ``DiffStride`` layer."""
    height, width = _height_and_width(sizes_in)
    used, passes = _tensorflow_strides(sizes_in, strides, smoothness=smoothness, limits=limits)

    row_mask, drow = tensorflow_mask(height, used[0], smoothness=smoothness, last=False)
    rows = _kept(height, used[0], smoothness=smoothness, last=False, cropping=cropping)
    drow = drow * passes[0]

    column_mask, dcolumn = tensorflow_mask(width, used[1], smoothness=smoothness, last=True)
    columns = _kept(width, used[1], smoothness=smoothness, last=True, cropping=cropping)
    dcolumn = dcolumn * passes[1]

    w = 2 * (len(columns) - 1)
    return [
        _Axis(
            matrix=_row_matrix(height, rows, row_mask),
            derivative=_row_matrix(height, rows, drow),
            steepest=float(np.max(np.abs(drow[rows]))),
        ),
        _Axis(
            matrix=_column_matrix(width, w, columns, column_mask),
            derivative=_column_matrix(width, w, columns, dcolumn),
            steepest=float(np.max(np.abs(dcolumn[columns]))),
        ),
    ]


def _tensorflow_fixed_matrices(
    sizes_in: Sequence[int], strides: Sequence[float]
) -> list[npt.NDArray[Any]]:
    """Build the matrices of the authors' ``FixedSpectralPooling``, which crops and has no mask.

    With ``f = N // S`` (floor division of floats), the height becomes ``max(2, f - f % 2)`` and
    the width ``max(2, f)``, which may be odd and then has no Nyquist column.
    """
    height, width = _height_and_width(sizes_in)
    f = height // strides[0]
    h = int(max(2, f - f % 2))
    rows = [*range(h // 2), *range(height - h // 2, height)]
    w = int(max(2, width // strides[1]))
    columns = range(w // 2 + 1)
    return [
        _row_matrix(height, rows, np.ones(height)),
        _column_matrix(width, w, columns, np.ones(width // 2 + 1)),
    ]


# --- Arguments ---------------------------------------------------------------------------------


def _axes(axes: Sequence[int], ndim: int) -> tuple[int, ...]:
    """Return the axes counted from the front."""
    from_front = tuple(range(ndim)[axis] for axis in axes)
    if len(set(from_front)) != len(from_front):
        raise ValueError(f"axes {tuple(axes)} name an axis twice")
    return from_front


def _strides(strides: npt.ArrayLike, number_of_axes: int) -> FloatArray:
    """Return the strides as float64, with their shape unchanged."""
    values = np.asarray(strides, dtype=np.float64)
    if values.shape not in ((), (1,), (number_of_axes,)):
        raise ValueError(f"{number_of_axes} axes, but strides of shape {values.shape}")
    return values


def _checked_limits(limits: Limits | None) -> Limits:
    """Return the user's limits, or (None, None) if the bounds are off."""
    lower, upper = (None, None) if limits is None else limits
    if lower is not None and upper is not None and lower > upper:
        raise ValueError(f"lower limit {lower} is greater than upper limit {upper}")
    return lower, upper


def _smoothness(smoothness: float | None, convention: Convention) -> float:
    """Return the smoothness, or the convention's default if it is None."""
    return DEFAULT_SMOOTHNESS[convention] if smoothness is None else float(smoothness)


def _height_and_width(sizes_in: Sequence[int]) -> tuple[int, int]:
    """Return the two sizes that the authors' layers resize."""
    if len(sizes_in) != 2 or sizes_in[1] < 2:
        raise ValueError(f"the tensorflow convention is for images, not for sizes {sizes_in}")
    height, width = sizes_in
    return height, width
