"""The layer as it is usually ported: transforms of the whole map, everything left to autodiff.

Written for comparison. It computes Algorithm 1 of Riad et al. (2022) with the real transform of
both axes, the masks of Eqs. 3 and 4 by clamps, a crop by slices, and no derivative of its own.
"""

import math

import torch
from torch import Tensor


def diff_stride(x: Tensor, strides: Tensor, smoothness: float = 4.0) -> Tensor:
    """Downsample the last two axes, or for one stride the last axis.

    Parameters
    ----------
    x : Tensor, shape (..., H, W) or (..., W)
    strides : Tensor, shape (2,) or (1,)
    smoothness : float
        R.
    """
    axes = tuple(range(-len(strides), 0))
    sizes = [x.shape[axis] for axis in axes]
    kept = [
        min(size, 2 * math.ceil(size / (2 * stride) + smoothness - 1e-5))
        for size, stride in zip(sizes, strides.tolist(), strict=True)
    ]
    spectrum = torch.fft.rfftn(x, dim=axes, norm="forward")
    for axis, size, output_size, stride in zip(axes, sizes, kept, strides.unbind(), strict=True):
        is_last = axis == -1
        frequencies = (
            torch.arange(output_size // 2 + 1)
            if is_last
            else torch.fft.fftfreq(output_size, 1 / output_size).abs()
        )
        mask = (smoothness + size / (2 * stride) + float(is_last) - frequencies) / smoothness
        mask = mask.clamp(0, 1)
        if is_last:
            spectrum = spectrum[..., : output_size // 2 + 1] * mask
        else:
            half = output_size // 2
            rows = torch.cat([spectrum[..., :half, :], spectrum[..., -half:, :]], dim=-2)
            spectrum = rows * mask[:, None]
    return torch.fft.irfftn(spectrum, s=kept, dim=axes, norm="forward")
