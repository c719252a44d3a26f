"""Convolutions with learnt strides as PyTorch modules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import nn
from torch.nn import functional

from diffstride_core.arguments import Limits, option
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution import CONV_METHODS, kept_padding, odd_kernel, per_axis
from diffstride_torch.joining import (
    AnyConv,
    PooledConvolution,
    refuse_fused,
    why_not_fused,
)
from diffstride_torch.modules import DiffStride, DiffStride1d, DiffStride2d, DiffStride3d
from diffstride_torch.tracing import Window, window_of


class DiffStrideConv(PooledConvolution):
    """A `torch.nn.Conv2d` with learnt strides; `stride` is 2.0, `padding` "same" by default.

    All arguments of that one are taken, in their order. What differs is these two: `padding` must
    keep the size of the input, as half of the dilated kernel does.

    Base of the modules of fixed rank, which are PyTorch's own convolutions at stride 1, parameters
    and their names included, with a DiffStride layer behind them. Equal to a `torch.nn.Conv2d` of
    stride 1 and a `DiffStride2d` in a row, but where it is cheaper nothing is computed at the
    resolution of the input, see `conv_diff_stride`. The state of a plain convolution lacks
    ``pool.strides`` alone.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        Odd.
    stride : float or sequence of float
        Initial strides, at least 1: one per spatial axis or one for all.
    padding : int, sequence of int, or "same"
        Half of ``dilation * (kernel_size - 1)``, which for a kernel of one tap is 0, or "valid".
    dilation, groups, bias
        See `torch.nn.Conv2d`.
    padding_mode : {"zeros", "circular", "reflect", "replicate"}
        The last two are evaluated separately.
    method : {"auto", "fused", "separate"}
        See `conv_diff_stride`.
    smoothness, shared, limits, cropping, trainable, norm, convention
        See `DiffStride`.
    device, dtype : optional
        Of all parameters; strides are never in half precision.

    Attributes
    ----------
    pool : DiffStride
        The layer, with the strides.

    Raises
    ------
    TypeError, ValueError
        As for `DiffStride` and `torch.nn.Conv2d`, for an even kernel, for another padding, and for
        a `padding_mode` that `method` excludes.

    Examples
    --------
    >>> import torch
    >>> conv = DiffStrideConv2d(3, 16, 3, stride=(2, 3), padding=1)
    >>> conv(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 16, 20, 14])
    """

    _layer: ClassVar[type[DiffStride]]
    _end_padding: list[int] | None = None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: float | Sequence[float] = 2.0,
        padding: int | Sequence[int] | str = "same",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        method: str = "auto",
        smoothness: float | None = None,
        shared: bool = False,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        trainable: bool = True,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rank = self._layer.rank
        option("method", method, CONV_METHODS)
        kernel = odd_kernel(kernel_size, rank)
        dilations = per_axis("dilation", dilation, rank)
        kept = kept_padding(padding, kernel, dilations, same=("same",), valid="valid")
        pool = self._layer(
            stride,
            smoothness=smoothness,
            shared=shared,
            limits=limits,
            cropping=cropping,
            trainable=trainable,
            norm=norm,
            convention=convention,
            device=device,
            dtype=torch.float64 if dtype == torch.float64 else None,
        )
        super().__init__(  # type: ignore[call-arg]
            in_channels,
            out_channels,
            kernel,
            padding=kept,
            dilation=dilations,
            groups=groups,
            bias=bias,
            padding_mode=padding_mode,
            device=device,
            dtype=dtype,
        )
        if method == "fused" and (reason := why_not_fused(self)) is not None:  # type: ignore[arg-type]
            refuse_fused(reason)
        self._set_up(pool, method)

    @classmethod
    def of(cls, conv: AnyConv, pool: DiffStride, method: str = "auto") -> AnyConv:
        """Return a strided convolution at stride 1 with a layer behind it, sharing its parameters.

        At stride 1 it keeps the size of its input, whatever its kernel: output n is the one that
        the strided convolution computes at n. Where that cannot be fused, `method` "fused" is
        "auto".
        """
        made: Any = cls.__new__(cls)
        super(PooledConvolution, made).__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            padding=conv.padding,
            dilation=conv.dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            bias=False,
            device="meta",
        )
        made.weight, made.bias = conv.weight, conv.bias
        made.training = conv.training
        window = window_of(conv)
        assert window is not None
        if any(window.end_padding):
            made._end_padding = pad_argument(window)
            made.padding = (0,) * len(window.kernel)
            made._reversed_padding_repeated_twice = [0, 0] * len(window.kernel)
        if method == "fused" and (made._end_padding or why_not_fused(made)):
            method = "auto"
        made._set_up(pool, method)
        return made

    def _set_up(self, pool: DiffStride, method: str) -> None:
        self.pool, self.method = pool, method

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # Nor are the weights overwritten where the layer refuses the state, which says why itself.
        pool: nn.Module = self.pool  # Another one where the module is frozen.
        if not isinstance(pool, DiffStride) or not pool.why_not_loaded(
            state_dict, f"{prefix}pool."
        ):
            super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def extra_repr(self) -> str:  # noqa: D102
        shown: str = super().extra_repr()  # type: ignore[misc]
        return shown if self.method == "auto" else f"{shown}, method={self.method!r}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply convolution and layer.

        Parameters
        ----------
        x : torch.Tensor, shape (N, C, ...) or (C, ...)
            Of the dtype of the weight.

        Returns
        -------
        torch.Tensor, shape (N, O, ...) or (O, ...)

        Raises
        ------
        TypeError, ValueError
            As for `DiffStride.forward` and `torch.nn.Conv2d`.
        """
        if self._end_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode  # type: ignore[attr-defined]
            return self.pool(self.convolve(functional.pad(x, self._end_padding, mode=mode)))
        return super().forward(x)


class DiffStrideConv1d(DiffStrideConv, nn.Conv1d):
    """A `torch.nn.Conv1d` with learnt strides; `stride` is 2.0, `padding` "same" by default.

    All arguments of that one are taken, in their order. What differs is these two: `padding` must
    keep the size of the input, as half of the dilated kernel does. See `DiffStrideConv`.
    """

    _layer = DiffStride1d


class DiffStrideConv2d(DiffStrideConv, nn.Conv2d):
    """A `torch.nn.Conv2d` with learnt strides; `stride` is 2.0, `padding` "same" by default.

    All arguments of that one are taken, in their order. What differs is these two: `padding` must
    keep the size of the input, as half of the dilated kernel does. See `DiffStrideConv`.
    """

    _layer = DiffStride2d


class DiffStrideConv3d(DiffStrideConv, nn.Conv3d):
    """A `torch.nn.Conv3d` with learnt strides; `stride` is 2.0, `padding` "same" by default.

    All arguments of that one are taken, in their order. What differs is these two: `padding` must
    keep the size of the input, as half of the dilated kernel does. See `DiffStrideConv`.
    """

    _layer = DiffStride3d


def pad_argument(window: Window, *, first: bool = True) -> list[int]:
    """Return the argument of `functional.pad` that keeps the size, the last axis first.

    Parameters
    ----------
    window : Window
    first : bool
        Whether to pad what the window pads itself, too.
    """
    amounts: list[int] = []
    for padding, missing in reversed(list(zip(window.padding, window.end_padding, strict=True))):
        amounts += [padding, padding + missing] if first else [0, missing]
    return amounts
