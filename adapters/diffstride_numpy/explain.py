"""NumPy as a microscope: one call of `diff_stride` with all its intermediate results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any

import numpy as np
from diffstride_backends.numpy_backend import BACKEND, WITH_PULLBACK
from diffstride_backends.prepare import prepare
from diffstride_backends.protocol import pull_back
from numpy.typing import NDArray

from diffstride_core import host
from diffstride_core.arguments import Limits, check_plain
from diffstride_core.conventions import DEFAULT_CONVENTION, Convention
from diffstride_core.ops import ArrayOps
from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.resample import RESAMPLE
from diffstride_core.window import Mask, Term, Window, spread_strides

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Floats = NDArray[np.floating]
Doubles = NDArray[np.float64]
Complexes = NDArray[np.complex128]
Frequencies = NDArray[np.int64]


@dataclass(frozen=True, eq=False, repr=False)
class AxisExplanation:
    """One resized axis. Frequencies are in cycles per N samples; masks have no unit.

    Attributes
    ----------
    axis : int
        The axis, counted from the end.
    N, M : int
        Input and output size in samples. N is H or W in Eqs. 3 and 4; M is the size after Crop in
        Algorithm 1.
    S : float
        The stride as used: the parameter within its bounds.
    q : float
        Frequency at which the mask reaches 0: N/(2S) + 1/2 in the nominal convention. In the
        paper's it is N/(2S) + R, as in Eq. 3.
    k : ndarray of int, shape (F,)
        The frequencies of the spectrum, centred: -(N//2), ..., (N-1)//2, so F = N.
    mask : ndarray, shape (F,)
        The mask at `k`. In the paper's convention it is Eq. 3, and on the last axis Eq. 4.
    dmask : ndarray, shape (F,)
        Derivative of the mask with respect to the stride, dmask/dS, at `k`.
    k_cropped : ndarray of int, shape (G,)
        The frequencies of the output's spectrum, centred: -(M//2), ..., (M-1)//2, so G = M.
    mask_cropped : ndarray, shape (G,)
        The mask of the entries that are written to `k_cropped`.
    ramp : ndarray of int, shape (P,)
        The kept frequencies where 0 < mask < 1 or dmask/dS is not 0. Where the mask is exactly 1 or
        0, dmask/dS is one-sided. A frequency k > 0 also stands for -k.
    ramp_mask, ramp_dmask : ndarray, shape (P,)
        mask and dmask/dS at `ramp`.
    contributions : ndarray, shape (P,)
        The share of each bin of `ramp` in `dS`: dmask/dS times the derivative of the loss with
        respect to the mask at this bin.
    """

    axis: int
    N: int
    M: int
    S: float
    q: float
    k: Frequencies
    mask: Doubles
    dmask: Doubles
    k_cropped: Frequencies
    mask_cropped: Doubles
    ramp: Frequencies
    ramp_mask: Doubles
    ramp_dmask: Doubles
    contributions: Doubles
    _make_matrix: Callable[[], NDArray[Any]] = field(repr=False)

    @property
    def dS(self) -> float:  # noqa: N802
        """Derivative of the loss with respect to this axis's stride: the sum of `contributions`."""
        return float(np.sum(self.contributions))

    @cached_property
    def A(self) -> NDArray[Any]:  # noqa: N802
        """The axis's operator as a matrix, shape (M, N): y = A_h x A_w^T in two dimensions.

        The matrix combines the mask, the crop and both transforms of Algorithm 1. The norm's factor
        is in the matrix of one of the axes. The matrix is made on first access, since for a long
        signal it is large.
        """
        return self._make_matrix()


@dataclass(frozen=True, eq=False, repr=False)
class Explanation:
    """The intermediate results of one call of `diff_stride`, forward and backward.

    Shapes are those of `x`, except along the resized axes. For two resized axes, the sizes are
    written (N_h, N_w) below. Spectra are in the unit of `x`, with the normalisation that `norm`
    names in `numpy.fft`, and in double precision.

    Attributes
    ----------
    convention, norm : str
    smoothness : float
        R of Eqs. 3 and 4, a frequency. In the nominal convention, a fraction of the band.
    x : ndarray, shape (..., N_h, N_w)
        The input.
    strides : ndarray, shape (), (1,) or (d,)
        The stride parameters as given, S of Algorithm 1.
    axes : tuple of AxisExplanation
        The resized axes in the order given: height, then width.
    spectrum : ndarray of complex, shape (..., F_h, F_w)
        The DFT of x over the resized axes, with frequency 0 in the middle (Algorithm 1).
    masked_spectrum : ndarray of complex, shape (..., F_h, F_w)
        The spectrum times the masks of all axes, whose outer product is Eq. 5.
    cropped_spectrum : ndarray of complex, shape (..., G_h, G_w)
        The masked spectrum without the frequencies above the output's Nyquist frequency (Crop in
        Algorithm 1). For an even size, the entry at the Nyquist frequency is the mean of +M/2 and
        -M/2, so that the output is real.
    y : ndarray, shape (..., M_h, M_w)
        The output: the inverse DFT of `cropped_spectrum` (Algorithm 1), with the dtype of `x`.
    dy : ndarray, of the shape of `y`
        Derivative of the loss with respect to y. By default it is y itself, for the loss
        sum(y^2)/2.
    dx : ndarray, of the shape of `x`
        Derivative of the loss with respect to x.
    dS : ndarray, of the shape of `strides`
        Derivative of the loss with respect to the strides. If one stride is shared, the sum over
        the axes.

    Notes
    -----
    The **tensorflow** convention works on the half spectrum of a real input. On its last axis the
    frequencies are k = 0, ..., N//2 and 0, ..., M//2, so F = N//2 + 1 and G = M//2 + 1. The mask of
    the height is centred beside frequency 0, and its ramp has bins of both signs. The cropped rows
    are written in order: if the height is odd, one row lands on the frequency of another, and
    `mask_cropped` is the mask of the row that was written there. The inverse transform is complex
    along the height. Along the width it ignores the imaginary part of the first and the last
    column. The matrices are complex, and y is the real part of A_h x A_w^T. S is rounded to single
    precision where it is used. `dmask` is 0 where this convention gives a stride no gradient.
    """

    convention: str
    smoothness: float
    norm: str
    x: Floats
    strides: Floats
    axes: tuple[AxisExplanation, ...]
    spectrum: Complexes
    masked_spectrum: Complexes
    cropped_spectrum: Complexes
    y: Floats
    dy: Floats
    dx: Floats
    dS: Floats  # noqa: N815

    def __str__(self) -> str:
        lines = [
            f"diff_stride, convention {self.convention}, smoothness {self.smoothness:g}, "
            f"norm {self.norm}",
            f"x {self.x.shape} -> y {self.y.shape}, {self.x.dtype}",
        ]
        given = np.broadcast_to(self.strides, len(self.axes))
        for axis, stride in zip(self.axes, given.tolist(), strict=True):
            bounded = "" if np.isclose(axis.S, stride) else f" (given {stride:.6g})"
            lines.append(
                f"axis {axis.axis}: N = {axis.N}, M = {axis.M}, S = {axis.S:.6g}{bounded}, "
                f"{len(axis.ramp)} bins on the ramp, dS = {axis.dS:.6g}"
            )
        total = ", ".join(f"{slope:.6g}" for slope in np.ravel(self.dS))
        lines.append(f"dS = {total} for {self._loss}")
        return "\n".join(lines)

    @property
    def _loss(self) -> str:
        return "the loss sum(y^2)/2" if self.dy is self.y else "the given dy"

    def plot(self) -> Figure:
        """Draw everything in one figure. This needs Matplotlib, which the extra ``plot`` installs.

        Returns
        -------
        matplotlib.figure.Figure
            Figure for one or two resized axes. Along other axes of the array, only the first entry
            is drawn, but dS is that of all entries.

        Raises
        ------
        ValueError
            If there are more than two resized axes, or the array is empty.
        """
        if len(self.axes) > 2:
            raise ValueError(f"plot needs 1 or 2 resized axes, got {len(self.axes)}")
        if self.x.size == 0:
            raise ValueError(f"plot needs an array that is not empty, got shape {self.x.shape}")
        import diffstride_plotting as plotting

        return plotting.plot_explanation(self)


def explain(
    x: Floats,
    strides: Any,
    *,
    dy: Floats | None = None,
    sizes: Sequence[int] | None = None,
    axes: int | Sequence[int] = (-2, -1),
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    cropping: bool = True,
    multiple_of: int = 1,
    norm: str | None = None,
    convention: str = DEFAULT_CONVENTION,
    method: str = "auto",
) -> Explanation:
    """Run `diff_stride` and return its intermediate results, forward and backward.

    Parameters
    ----------
    x : ndarray, shape (..., N_1, ..., N_d, ...)
        An image, a signal (with ``axes=-1``) or a batch of them.
    strides, sizes, axes, smoothness, limits, cropping, multiple_of, norm, convention, method
        As for `diff_stride`.
    dy : ndarray, of the shape and dtype of the output, optional
        Derivative of a loss with respect to the output. By default it is the output y itself, the
        derivative of the loss sum(y^2)/2.

    Returns
    -------
    Explanation

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or `dy` does not have the type, shape and dtype
        of the output.

    Notes
    -----
    The output, the masks, the matrices and the gradients are the library's own. The layer resizes
    with matrices or real transforms, one axis after the other. The spectra are what these stand
    for, computed from the definition with `numpy.fft`. The share of a bin in dS is a backward pass
    in which only the mask of this bin moves, so there are as many passes as there are bins on the
    ramps.

    Examples
    --------
    >>> import numpy as np
    >>> from diffstride_numpy import explain
    >>> t = np.arange(64) / 64
    >>> x = np.sin(2 * np.pi * 3 * t) + 0.5 * np.sin(2 * np.pi * 14 * t)
    >>> e = explain(x, 2.0, axes=-1)
    >>> print(e)
    diff_stride, convention nominal, smoothness 0.25, norm forward
    x (64,) -> y (32,), float64
    axis -1: N = 64, M = 32, S = 2, 4 bins on the ramp, dS = -4.21875
    dS = -4.21875 for the loss sum(y^2)/2
    >>> axis = e.axes[0]
    >>> axis.ramp.tolist(), axis.ramp_mask.tolist()
    ([13, 14, 15, 16], [0.875, 0.625, 0.375, 0.125])
    >>> (axis.contributions.round(5) + 0.0).tolist()  # the wave of frequency 14 alone
    [0.0, -4.21875, 0.0, 0.0]
    >>> bool(np.allclose(axis.A @ x, e.y))
    True
    """
    options = {
        "axes": axes,
        "smoothness": smoothness,
        "limits": limits,
        "cropping": cropping,
        "multiple_of": multiple_of,
        "norm": norm,
        "convention": convention,
        "method": method,
    }
    plan, parameters = prepare(BACKEND, x, strides, sizes, options)
    x = BACKEND.native(x)
    dy = None if dy is None else _checked_cotangent(dy, plan.output_shape(x.shape), x.dtype)
    norm = _convention(plan).default_norm if norm is None else norm
    y, pullback = WITH_PULLBACK.resample(plan, x, parameters)
    dy = y if dy is None else dy
    dx, dstrides = pullback(dy)
    assert dx is not None
    assert dstrides is not None

    explained = tuple(_explain_axis(plan, i, x, parameters, dy) for i in range(len(plan.axes)))
    spectrum = _spectrum(plan, x, norm)
    masked = spectrum
    for shown in explained:
        masked = masked * shown.mask.reshape(-1, *[1] * (-1 - shown.axis))
    cropped = masked
    for i, axis in enumerate(plan.axes):
        cropped = np.moveaxis(_crop(plan, i, np.moveaxis(cropped, axis.axis, 0)), 0, axis.axis)
    return Explanation(
        convention=_convention(plan).name,
        smoothness=plan.smoothness,
        norm=norm,
        x=x,
        strides=parameters,
        axes=explained,
        spectrum=spectrum,
        masked_spectrum=masked,
        cropped_spectrum=cropped,
        y=y,
        dy=dy,
        dx=dx,
        dS=dstrides,
    )


def _checked_cotangent(dy: Any, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Floats:
    if not isinstance(dy, np.ndarray):
        raise TypeError(f"dy must be a numpy.ndarray, got {type(dy).__name__}")
    check_plain("dy", dy)
    native = BACKEND.native(dy)
    if native.shape != shape or native.dtype != dtype:
        raise ValueError(
            f"dy must have the output's shape {shape} and dtype {dtype}, got {dy.shape} and "
            f"{dy.dtype}"
        )
    return native


def _convention(plan: Plan) -> Convention:
    assert isinstance(plan.window, Convention)
    return plan.window


def _explain_axis(
    plan: Plan, index: int, x: Floats, strides: Floats, dy: Floats
) -> AxisExplanation:
    axis = plan.axes[index]
    used = axis.bounds.apply(float(spread_strides(BACKEND, strides, len(plan.axes))[index]))
    uncropped = _convention(plan).uncropped_size(axis.size, axis.is_last)
    every_k, _, everywhere = _bins(_with_size(plan, index, uncropped), index, strides)
    k, j, mask = _bins(plan, index, strides)
    assert everywhere.dmask is not None
    assert mask.dmask is not None
    on_ramp = np.flatnonzero(((mask.value > 0) & (mask.value < 1)) | (mask.dmask != 0))
    # Rows are numbered from 0 to N - 1. The bins of a half spectrum may have negative frequencies.
    signed = _centred(axis.size)[(k + axis.size // 2) % axis.size]
    return AxisExplanation(
        axis=axis.axis,
        N=axis.size,
        M=axis.output_size,
        S=used,
        q=_convention(plan).cutoff(axis.size, plan.smoothness, used),
        k=_frequencies(plan, index, axis.size),
        mask=_at_frequencies(plan, index, axis.size, every_k, everywhere.value),
        dmask=_at_frequencies(plan, index, axis.size, every_k, everywhere.dmask),
        k_cropped=_frequencies(plan, index, axis.output_size),
        mask_cropped=_at_frequencies(plan, index, axis.output_size, j, mask.value),
        ramp=(signed if _has_rows(plan, index) else np.abs(k))[on_ramp],
        ramp_mask=mask.value[on_ramp],
        ramp_dmask=mask.dmask[on_ramp],
        contributions=_contributions(plan, index, on_ramp, x, strides, dy),
        _make_matrix=partial(_matrix, plan, index, strides, x.dtype.name),
    )


def _bins(plan: Plan, index: int, strides: Floats) -> tuple[Frequencies, Frequencies, Mask]:
    """Return the frequencies that an axis reads and writes, and the mask there."""
    basis, axis = plan.window.terms(plan.axes)[0][index], plan.axes[index]
    k, j, _ = basis.bins(basis.size, basis.output_size)
    stride = spread_strides(BACKEND, strides, len(plan.axes))[index]
    mask = plan.window.mask(BACKEND, axis, plan.smoothness, stride, strides)
    return k, j, mask


def _with_size(plan: Plan, index: int, output_size: int) -> Plan:
    axes = list(plan.axes)
    axes[index] = replace(axes[index], output_size=output_size)
    return replace(plan, axes=tuple(axes))


# There are three kinds of axis. In the clean conventions (`has_fft`), a bin k also stands for -k,
# and the spectrum shows both. In the tensorflow convention, the height has a bin for each row of
# the spectrum, and the width has half a spectrum.


def _has_rows(plan: Plan, index: int) -> bool:
    return not plan.window.has_fft and not plan.axes[index].is_last


def _has_half(plan: Plan, index: int) -> bool:
    return not plan.window.has_fft and plan.axes[index].is_last


def _centred(size: int) -> Frequencies:
    return np.arange(size) - size // 2


def _frequencies(plan: Plan, index: int, size: int) -> Frequencies:
    return np.arange(size // 2 + 1) if _has_half(plan, index) else _centred(size)


def _at_frequencies(
    plan: Plan, index: int, size: int, bins: Frequencies, values: Doubles
) -> Doubles:
    """Spread values given at bins over all frequencies of an axis, with 0 where there is no bin."""
    full = np.zeros(size)
    # A bin stands for its mirror image too, unless that has a bin of its own.
    full[-bins % size] = values
    full[bins % size] = values
    return full[_frequencies(plan, index, size) % size]


def _spectrum(plan: Plan, x: Floats, norm: Any) -> Complexes:
    """Return the centred DFT over the resized axes; half of it if the convention has only half."""
    axes = [axis.axis for axis in plan.axes]
    spectrum = np.fft.fftshift(np.fft.fftn(x.astype(np.float64), axes=axes, norm=norm), axes)
    for index, axis in enumerate(plan.axes):
        kept = _frequencies(plan, index, axis.size) + axis.size // 2
        spectrum = np.take(spectrum, kept % axis.size, axis.axis)
    return spectrum


def _crop(plan: Plan, index: int, spectrum: Complexes) -> Complexes:
    """Crop a spectrum along its first axis, which is the resized axis of the given index."""
    N, M = plan.axes[index].size, plan.axes[index].output_size
    if _has_half(plan, index):
        return spectrum[: M // 2 + 1]
    # From here on, entry k holds frequency k, and entry -k holds frequency -k.
    spectrum = np.fft.ifftshift(spectrum, 0)
    cropped = np.zeros((M, *spectrum.shape[1:]), dtype=spectrum.dtype)
    basis = plan.window.terms(plan.axes)[0][index]
    k, j, _ = basis.bins(N, M)
    if not _has_rows(plan, index):
        cropped[-j] = spectrum[-k]
    cropped[j] = spectrum[k]
    half = min(N, M) // 2
    if plan.window.has_fft and 2 * half == min(N, M):
        unpaired = (spectrum[half] + spectrum[-half]) / 2
        # A longer output has both frequencies, a shorter one only their sum.
        cropped[half] = cropped[-half] = unpaired / 2 if M > N else unpaired
    return np.fft.fftshift(cropped, 0)


def _matrix(plan: Plan, index: int, strides: Floats, dtype: str) -> NDArray[Any]:
    real, *imaginary = host.matrices(plan, BACKEND.host_values(strides), dtype)
    if not imaginary:
        return real[index]
    # The second term has the sign of i^2 in the width's matrix.
    sign = -1 if plan.axes[index].is_last else 1
    return real[index] + sign * 1j * imaginary[0][index]


@dataclass(frozen=True)
class _OneBin(Window):
    """A window that moves with the stride in only one bin of one axis."""

    window: Window
    axis: int
    bin: int

    def mask(
        self, ops: ArrayOps, axis: AxisPlan, smoothness: float, stride: Any, like: Any
    ) -> Mask:
        mask, dmask = self.window.mask(ops, axis, smoothness, stride, like)
        assert dmask is not None
        moving = np.zeros_like(dmask)
        if axis.axis == self.axis:
            moving[self.bin] = dmask[self.bin]
        return Mask(mask, moving)

    def terms(self, axes: tuple[AxisPlan, ...]) -> tuple[Term, ...]:
        return self.window.terms(axes)


def _contributions(
    plan: Plan, index: int, bins: Frequencies, x: Floats, strides: Floats, dy: Floats
) -> Doubles:
    """Return, for each bin, the gradient of an axis's stride that this bin alone would give."""
    name, precise = plan.axes[index].axis, strides.astype(np.float64)
    # A single bin is a thin ramp, even if the whole ramp is not.
    thin = replace(plan, axes=tuple(replace(axis, ramp_bins=1) for axis in plan.axes))

    def share(bin_: int) -> float:
        window = _OneBin(plan.window, name, bin_)
        moving = replace(thin, window=window)
        _, dstrides = pull_back(BACKEND, RESAMPLE, moving, dy, (x, precise), (False, True))
        assert dstrides is not None
        return float(np.sum(dstrides))

    return np.array([share(bin_) for bin_ in bins.tolist()], dtype=np.float64)
