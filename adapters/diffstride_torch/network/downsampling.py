"""Replacing a strided operation by one of stride 1 with a DiffStride layer before or after it.

If the layer comes before it, a convolution runs on the layer's output, at the resolution of its own
output.

If the layer comes after it, the operation at stride 1 keeps the size of its input, for every
kernel. Its output n is the one that the strided operation computes at n. Output m of the layer is
thus where output m of the strided operation was, at a stride that may be any real number.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from diffstride_backends.torch_private import has_hooks
from torch import nn
from torch.nn import functional

from diffstride_torch.conv_modules import (
    DiffStrideConv,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    pad_argument,
    plain_convolution,
)
from diffstride_torch.modules import SpectralPool2d
from diffstride_torch.sliding import CONVOLUTIONS, Size, sliding_kernel_of

_CONVOLUTIONS: dict[type[nn.Module], type[DiffStrideConv]] = {
    nn.Conv1d: DiffStrideConv1d,
    nn.Conv2d: DiffStrideConv2d,
    nn.Conv3d: DiffStrideConv3d,
}
_MAXIMA = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
_AVERAGES = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_REPLACEABLE = (*_CONVOLUTIONS, *_MAXIMA, *_AVERAGES)


class AntiAliasingSpectralPool(SpectralPool2d):
    """Spectral pooling with the arguments of timm's ``aa_layer``.

    A model that is made with it pools with fixed strides, for example
    ``timm.create_model("resnet18", aa_layer=AntiAliasingSpectralPool)``. `replace_downsampling`
    turns these poolings into DiffStride layers.

    Parameters
    ----------
    channels : int, optional
        Not used: all channels are resized in the same way.
    stride : float
        Stride of both axes, at least 1.
    device, dtype : optional
        Not used: the layer has no parameters.
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
    pool : torch.nn.Module
        The layer.
    """

    def __init__(self, operation: nn.Module, pool: nn.Module) -> None:
        super().__init__()
        sliding = sliding_kernel_of(operation)
        assert sliding is not None
        options: dict[str, object] = {"kernel_size": sliding.kernel, "stride": 1}
        options["padding"] = sliding.padding
        if isinstance(operation, _MAXIMA):
            options["dilation"] = sliding.dilation
        else:
            options["count_include_pad"] = operation.count_include_pad
        self.operation = type(operation)(**options)
        self.pool = pool
        self._end_padding = pad_argument(sliding, first=False) if any(sliding.end_padding) else None
        self.train(operation.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the pooling and the layer to a tensor of shape (N, C, ...)."""
        if self._end_padding is not None:
            # Repeat the last value: it changes no maximum, and does not dim averages as zeros
            # would.
            x = functional.pad(x, self._end_padding, mode="replicate")
        y: torch.Tensor = self.pool(self.operation(x))
        return y


def counterpart_of(module: nn.Module, input_size: Size) -> nn.Module | None:
    """Return the module to replace in place of a strided operation.

    Parameters
    ----------
    module : torch.nn.Module
    input_size : tuple of int
        Size of the map that it reads.

    Returns
    -------
    torch.nn.Module or None
        The operation itself or, for a subclass that computes what PyTorch's own class does with
        another padding, an operation of that class. None for a subclass that, at stride 1, does not
        also compute what it computes at its own stride; this is tried out.
    """
    if isinstance(module, AntiAliasingSpectralPool) or type(module) in _REPLACEABLE:
        return module
    if any(module.children()) or has_hooks(module, of_state=True):
        return None
    candidates = _candidates(module, input_size)
    return next((found for found in candidates if _agree(found, module, input_size)), None)


def _candidates(module: nn.Module, input_size: Size) -> Iterator[nn.Module]:
    """Yield operations that may compute the same as one of a subclass, including itself."""
    sliding = sliding_kernel_of(module)
    base: Any = next(base for base in _REPLACEABLE if isinstance(module, base))
    assert sliding is not None
    same = tuple(map(_same_padding, input_size, sliding.kernel, sliding.stride, sliding.dilation))
    for padding in dict.fromkeys((sliding.padding, same)):
        if not isinstance(module, CONVOLUTIONS):
            # The constants are the names of its arguments.
            options = {name: getattr(module, name) for name in base.__constants__}
            yield base(**{**options, "padding": padding})
        elif set(module._parameters) == {"weight", "bias"}:
            yield plain_convolution(module, sliding.stride, padding)
    if isinstance(module, CONVOLUTIONS):
        yield module


def _same_padding(size: int, kernel: int, stride: int, dilation: int) -> int:
    """Return by how much TensorFlow pads the beginning of an axis."""
    return max(0, (-(-size // stride) - 1) * stride + dilation * (kernel - 1) + 1 - size) // 2


def _agree(candidate: nn.Module, module: nn.Module, input_size: Size) -> bool:
    """Return whether a candidate at stride 1 computes what an operation does, at its positions."""
    sliding = sliding_kernel_of(candidate)
    assert sliding is not None
    if min(sliding.end_padding) < 0:
        return False
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, getattr(module, "in_channels", 1), *input_size, generator=generator)
    x = x.to(getattr(module, "weight", x)).double()
    every = tuple(slice(None, None, step) for step in sliding.stride)
    for training in (False, True):
        try:
            # A copy, since the module may change its state.
            strided = copy.deepcopy(module).double().train(training)
            dense = with_layer(
                copy.deepcopy(candidate).double(), nn.Identity(), "after", "separate"
            )
            with torch.no_grad(), torch.random.fork_rng([]):
                y, z = strided(x), dense.train(training)(x)
        except Exception:
            return False  # It cannot be called or copied on its own.
        found = z[(..., *every)][(..., *map(slice, y.shape[2:]))]
        if z.shape[2:] != x.shape[2:] or found.shape != y.shape or not torch.allclose(found, y):
            return False
    return True


def why_not_replaceable(module: nn.Module, counterpart: nn.Module | None) -> str | None:
    """Return why a strided convolution or pooling cannot be replaced; None if it can.

    Parameters
    ----------
    module : torch.nn.Module
    counterpart : torch.nn.Module or None
        See `counterpart_of`.
    """
    if isinstance(module, AntiAliasingSpectralPool):
        return None
    sliding = sliding_kernel_of(counterpart or module)
    assert sliding is not None
    if any(missing < 0 for missing in sliding.end_padding):
        return "its padding is larger than its kernel needs, so that it enlarges at stride 1"
    if counterpart is None and (any(module.children()) or not has_hooks(module, of_state=True)):
        bases = [base.__name__ for base in _REPLACEABLE if isinstance(module, base)]
        return f"its class derives from {bases[0]}, and computes something else"
    if getattr(module, "return_indices", False):
        return "it returns indices, which the layer has none of"
    if getattr(module, "divisor_override", None) is not None:
        return "its divisor_override is no average"
    if has_hooks(module, of_state=True):
        return "it has hooks, which would be lost"
    return None


def is_pointwise(module: nn.Module | None) -> bool:
    """Return whether a module is a convolution of one tap, which commutes with a layer."""
    return isinstance(module, CONVOLUTIONS) and set(module.kernel_size) == {1}


def why_not_before(module: nn.Module, output_size: Size) -> str | None:
    """Return why a layer cannot stand before a replaceable operation; None if it can.

    Parameters
    ----------
    module : torch.nn.Module
    output_size : tuple of int
        Output size of the operation, which is the size that the convolution would read.
    """
    if not isinstance(module, CONVOLUTIONS):
        return "it is a pooling"
    if is_pointwise(module):
        return None
    sliding = sliding_kernel_of(module)
    assert sliding is not None
    if any(1 < k <= s for k, s in zip(sliding.kernel, sliding.stride, strict=True)):
        return "its windows do not overlap, as those of a patch embedding"
    if any(k % 2 == 0 for k in sliding.kernel):
        return "its kernel is even"
    if any(sliding.end_padding):
        return "its padding is not half of its kernel"
    # Reflection leaves out the value at the border. A map is wrapped around only once.
    least = {"reflect": 1, "circular": 0}.get(str(module.padding_mode))
    if least is not None and any(
        m < p + least for m, p in zip(output_size, sliding.padding, strict=True)
    ):
        return f"its {module.padding_mode} padding is larger than the map that the layer gives"
    return None


def with_layer(module: nn.Module, pool: nn.Module, placement: str, method: str) -> nn.Module:
    """Return a strided operation at stride 1 with a layer, sharing its parameters.

    Parameters
    ----------
    module : torch.nn.Module
        The operation, or its counterpart.
    pool : torch.nn.Module
        The layer.
    placement : {"before", "after"}
        Where the layer is.
    method : {"auto", "fused", "separate"}
        How to evaluate a convolution and a layer after it.
    """
    if isinstance(module, AntiAliasingSpectralPool):
        return pool
    if not isinstance(module, CONVOLUTIONS):
        return PoolDiffStride(module, pool)
    made = next(made for base, made in _CONVOLUTIONS.items() if isinstance(module, base))
    return made.of(module, pool, placement, method)
