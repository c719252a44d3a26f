"""The layer as it is usually ported: transforms of the whole feature map, all left to autodiff.

This module is for comparison. It computes Algorithm 1 of Riad et al. (2022) with a real transform
of all axes, a mask by clamping and a crop by slicing, and without its own derivatives. The window
is the one of the nominal or the paper's convention.
"""

import math

import torch
from torch import Tensor


def diff_stride(x: Tensor, strides: Tensor, convention: str) -> Tensor:
    """Downsample the last axes, as many as there are strides.

    Parameters
    ----------
    x : Tensor, shape (..., N_1, ..., N_d)
    strides : Tensor, shape (d,)
    convention : {"nominal", "paper"}
        Convention, with its default smoothness.
    """
    window = {"nominal": _nominal_window, "paper": _paper_window}[convention]
    axes = tuple(range(-len(strides), 0))
    spectrum = torch.fft.rfftn(x, dim=axes, norm="forward")
    kept = []
    for axis, stride in zip(axes, strides.unbind(), strict=True):
        size = x.shape[axis]
        output_size, cutoff, width = window(size, stride, is_last=axis == -1)
        kept.append(output_size)
        half = output_size // 2
        mask = ((cutoff - torch.arange(half + 1, device=x.device)) / width).clamp(0, 1)
        if axis == -1:
            spectrum = spectrum[..., : half + 1] * mask
            continue
        head, tail = spectrum.narrow(axis, 0, half + 1), spectrum.narrow(axis, size - half, half)
        mirrored = mask[1:].flip(0)
        if output_size % 2 == 0:
            # The two halves of the bin at the new Nyquist frequency become one.
            both = (head.narrow(axis, half, 1) + tail.narrow(axis, 0, 1)) / 2
            head, tail, mirrored = (
                torch.cat([head.narrow(axis, 0, half), both], axis),
                tail.narrow(axis, 1, half - 1),
                mirrored[1:],
            )
        weights = torch.cat([mask, mirrored]).reshape(-1, *(1,) * (-axis - 1))
        spectrum = torch.cat([head, tail], dim=axis) * weights
    return torch.fft.irfftn(spectrum, s=kept, dim=axes, norm="forward")


def _nominal_window(size: int, stride: Tensor, *, is_last: bool) -> tuple[int, Tensor, Tensor]:
    """Return the output size, the frequency at which the ramp ends, and the ramp's width."""
    band = size / (2 * stride)
    output_size = min(size, math.floor(size / stride.item() + 0.75 + 1e-5))
    return output_size, band + 0.5, (0.25 * band).clamp(min=1.0)


def _paper_window(size: int, stride: Tensor, *, is_last: bool) -> tuple[int, Tensor, Tensor]:
    """Return the output size, the frequency at which the ramp ends, and the ramp's width."""
    cutoff = size / (2 * stride) + 4.0
    output_size = min(size, 2 * math.ceil(cutoff.item() - 1e-5))
    return output_size, cutoff + float(is_last), torch.full_like(cutoff, 4.0)
