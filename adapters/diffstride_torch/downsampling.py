"""A strided operation made anew: at stride 1, followed by a DiffStride layer.

At stride 1 the operation keeps the size of its input, whatever its kernel: output n is the one that
the strided operation computes at n, so that output m of the layer stands where output m of the
strided operation stood, at a stride that may be any real number.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

from diffstride_torch.conv_modules import (
    DiffStrideConv,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    pad_argument,
)
from diffstride_torch.joining import HOOKS
from diffstride_torch.modules import DiffStride, SpectralPool2d
from diffstride_torch.tracing import window_of

_CONVOLUTIONS: dict[type[nn.Module], type[DiffStrideConv]] = {
    nn.Conv1d: DiffStrideConv1d,
    nn.Conv2d: DiffStrideConv2d,
    nn.Conv3d: DiffStrideConv3d,
}
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_REPLACEABLE = (*_CONVOLUTIONS, *_MAXIMA, *_AVERAGES)


class AntiAliasing(SpectralPool2d):
    """Spectral pooling made with the arguments of timm's ``aa_layer``.

    A model that is made with it, as in ``timm.create_model("resnet18", aa_layer=AntiAliasing)``,
    pools with fixed strides; `replace_downsampling` turns it into DiffStride.

    Parameters
    ----------
    channels : int, optional
        Not used: every channel is resized alike.
    stride : float
        At least 1.
    device, dtype : optional
        Not used: there is no parameter.
    """

    def __init__(
        self,
        channels: int | None = None,
        stride: float = 2.0,
        *,
        device: object = None,
        dtype: object = None,
    ) -> None:
        super().__init__(float(stride))


class PoolDiffStride(nn.Module):
    """A pooling at stride 1 followed by a DiffStride layer.

    Parameters
    ----------
    operation : torch.nn.Module
        The strided pooling.
    pool : DiffStride
        The layer.
    """

    def __init__(self, operation: nn.Module, pool: DiffStride) -> None:
        super().__init__()
        window = window_of(operation)
        assert window is not None
        options: dict[str, object] = {"kernel_size": window.kernel, "stride": 1}
        options["padding"] = window.padding
        if isinstance(operation, _MAXIMA):
            options["dilation"] = window.dilation
        else:
            options["count_include_pad"] = operation.count_include_pad
        self.operation = type(operation)(**options)
        self.pool: nn.Module = pool
        self._end_padding = pad_argument(window, first=False) if any(window.end_padding) else None
        self.train(operation.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply pooling and layer to a tensor of shape (N, C, ...)."""
        if self._end_padding is not None:
            # The last value, which changes no maximum and dims no average, as zeros would.
            x = functional.pad(x, self._end_padding, mode="replicate")
        return self.pool(self.operation(x))


_HOOKS = (*HOOKS, "_state_dict_hooks", "_load_state_dict_pre_hooks")


def why_not_replaceable(module: nn.Module) -> str | None:
    """Return why a strided convolution or pooling cannot be made anew; None if it can."""
    if isinstance(module, AntiAliasing):
        return None
    if type(module) not in _REPLACEABLE:
        bases = [base.__name__ for base in _REPLACEABLE if isinstance(module, base)]
        return f"its class derives from {bases[0]}, and may compute something else"
    if getattr(module, "return_indices", False):
        return "it returns indices, which the layer has none of"
    if getattr(module, "divisor_override", None) is not None:
        return "its divisor_override is no average"
    if any(getattr(module, hooks) for hooks in _HOOKS):
        return "it has hooks, which would be lost"
    window = window_of(module)
    assert window is not None
    if any(missing < 0 for missing in window.end_padding):
        return "its padding is larger than its kernel needs, so that it enlarges at stride 1"
    return None


def made_anew(module: nn.Module, pool: DiffStride, method: str) -> nn.Module:
    """Return a strided operation at stride 1 with a DiffStride layer, sharing its parameters."""
    if isinstance(module, AntiAliasing):
        return pool
    if type(module) not in _CONVOLUTIONS:
        return PoolDiffStride(module, pool)
    return _CONVOLUTIONS[type(module)].of(module, pool, method)
