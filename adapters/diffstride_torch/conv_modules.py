"""Convolutions with learnt strides as PyTorch modules."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffstride_backends.torch_private import sizes_untraced, without_padding
from torch import nn
from torch.nn import functional

from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import checked_placement, kept_padding, odd_kernel, per_axis
from diffstride_torch.joining import (
    AnyConv,
    PooledConvolution,
    refuse_fused,
    why_not_fused,
)
from diffstride_torch.modules import DiffStride, DiffStride1d, DiffStride2d, DiffStride3d
from diffstride_torch.shared_call import SharedCall
from diffstride_torch.sliding import CONVOLUTIONS, SlidingKernel, sliding_kernel_of


class DiffStrideConv(PooledConvolution):
    """A convolution with learnt strides, in place of a strided one with an odd kernel.

    This is the base class of `DiffStrideConv1d`, `DiffStrideConv2d` and `DiffStrideConv3d`. They
    take all arguments of PyTorch's own convolutions, in the same order. Two arguments differ:

    - `stride` holds the initial strides. They are real numbers from 1 on; the default is 2.0.
    - `padding` must keep the size of the input. The default is "same".

    Each module is PyTorch's convolution at stride 1, whose parameters keep their names, and a
    DiffStride layer, `pool`. The state dict of a plain convolution lacks only the entries of
    `pool`, and weights can be loaded from one placement into the other.

    Parameters
    ----------
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        Odd sizes.
    stride : float or sequence of float
        Initial strides, at least 1: one per spatial axis, or one for all axes.
    padding : int, sequence of int, or "same"
        Half of ``dilation * (kernel_size - 1)``, or "same". For a kernel of one tap also "valid".
    dilation, groups, bias
        See `torch.nn.Conv2d`.
    padding_mode : {"zeros", "circular", "reflect", "replicate"}
        How to pad the map that is convolved. As for `torch.nn.Conv2d`, that map must be larger than
        the padding for "reflect", and at least as large for "circular". "reflect" and "replicate"
        cannot be combined with the method "fused".
    method : {"auto", "fused", "separate"}
        How to evaluate a layer after the convolution; see `conv_diff_stride`.
    placement : {"before", "after"}, optional
        Whether the layer comes before or after the convolution. The default is "before", unless
        `method` is "fused" or "separate".

        - "before": resize the input, then convolve the smaller map. This costs about as much as the
          strided convolution. In the nominal convention the output has the size that the strided
          convolution gives, at integer strides up to 4 that are at most half the axis.
        - "after": convolve the input at full resolution, then resize the result, as in the paper.
          Choose it to reproduce the paper, or to compute exactly a convolution at full resolution
          followed by a low-pass filter. ``method="auto"`` may compute this without a map at full
          resolution.
    smoothness, shared, limits, cropping, multiple_of, trainable, norm, convention
        See `DiffStride`.
    device, dtype : optional
        Device and dtype of all parameters. Strides are never in half precision.

    Attributes
    ----------
    pool : DiffStride
        The layer that has the strides.

    Raises
    ------
    TypeError, ValueError
        If `DiffStride` or `torch.nn.Conv2d` would refuse an argument; if the kernel is even; if the
        padding would change the size; if `padding_mode` does not go with `method`; or if the
        placement is "before" and the method is "fused" or "separate".

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStrideConv2d
    >>> conv = DiffStrideConv2d(3, 16, 3, stride=(2, 3), padding=1)
    >>> conv(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 16, 16, 11])
    """

    placement: str
    _layer: ClassVar[type[DiffStride]]
    _end_padding: list[int] | None = None
    _call: SharedCall | None = None
    _reader = 0

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
        placement: str | None = None,
        smoothness: float | None = None,
        shared: bool = False,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        trainable: bool = True,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        rank = self._layer.rank
        placement = checked_placement(placement, method)
        kernel = odd_kernel(kernel_size, rank)
        dilations = per_axis("dilation", dilation, rank)
        kept = kept_padding(padding, kernel, dilations, same=("same",), valid="valid")
        pool = self._layer(
            stride,
            smoothness=smoothness,
            shared=shared,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
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
        self._set_up(pool, method, placement)

    @classmethod
    def of(
        cls, conv: AnyConv, pool: nn.Module, placement: str = "after", method: str = "auto"
    ) -> AnyConv:
        """Return a convolution with a layer that shares the parameters of a strided convolution.

        The new convolution has stride 1 and keeps the size of its input for every kernel: its
        output n is what the strided convolution computes at n. `method` is for a layer after the
        convolution; "fused" becomes "auto" if the two cannot be fused. A convolution of a subclass
        stays an instance of that subclass.
        """
        made: Any
        if type(conv) in CONVOLUTIONS:
            made = cls.__new__(cls)
            super(PooledConvolution, made).__init__(  # type: ignore[call-arg]
                **_sizes_of(conv), padding=conv.padding
            )
            _share_parameters(conv, made)
        else:
            made = _at_stride_one(conv, cls)
        sliding = sliding_kernel_of(conv)
        assert sliding is not None
        if any(sliding.end_padding):
            made._end_padding = pad_argument(sliding)
            without_padding(made)
        if placement == "before" or (
            method == "fused" and (made._end_padding or why_not_fused(made))
        ):
            method = "auto"
        made._set_up(pool, method, placement)
        done: AnyConv = made
        return done

    def _set_up(self, pool: nn.Module, method: str, placement: str) -> None:
        self.pool, self.method, self.placement = pool, method, placement

    def strided(self, stride: Sequence[int]) -> AnyConv:
        """Return a strided convolution without a layer, sharing the parameters.

        This is the inverse of `of`.
        """
        conv: Any = self
        padding = conv.padding
        if self._end_padding is not None:
            padding = tuple(reversed(self._end_padding[::2]))
        return plain_convolution(conv, stride, padding)

    def share(self, call: SharedCall, reader: int) -> None:
        """Share one call of the layer with other convolutions of the same input."""
        self._call, self._reader = call, reader

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # If the layer refuses the state, keep the weights too. The layer reports the reason itself.
        pool: nn.Module = self.pool  # Another module if this one is frozen.
        if not isinstance(pool, DiffStride) or not pool.why_not_loaded(
            state_dict, f"{prefix}pool."
        ):
            super()._load_from_state_dict(state_dict, prefix, *args)  # type: ignore[misc]

    def extra_repr(self) -> str:  # noqa: D102
        shown: str = super().extra_repr()  # type: ignore[misc]
        # The stride is that of `pool`, which is printed below.
        shown = shown.replace(f", stride={self.stride}", "")  # type: ignore[attr-defined]
        if self.placement != "before":
            shown += f", placement={self.placement!r}"
        return shown if self.method == "auto" else f"{shown}, method={self.method!r}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the layer and the convolution, in the order given by `placement`.

        Parameters
        ----------
        x : torch.Tensor, shape (N, C, ...) or (C, ...)
            Input of the weight's dtype.

        Returns
        -------
        torch.Tensor, shape (N, O, ...) or (O, ...)

        Raises
        ------
        TypeError, ValueError
            If `DiffStride.forward` or `torch.nn.Conv2d` would refuse the input, or if `method` or
            `placement` was set to something that the constructor refuses.
        """
        if checked_placement(self.placement, self.method) == "before":
            self._check_shape(x)
            if self._call is not None:
                return self.convolve(self._call(self._reader, self.pool, x))
            return self.convolve(self.pool(x))
        if self._end_padding is not None:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode  # type: ignore[attr-defined]
            y: torch.Tensor = self.pool(
                self.convolve(functional.pad(x, self._end_padding, mode=mode))
            )
            return y
        return super().forward(x)

    def _check_shape(self, x: Any) -> None:
        """Raise ValueError for an input that the convolution would refuse.

        The layer must not see it: its size would bound the strides.
        """
        if not isinstance(x, torch.Tensor):  # the layer refuses it; fx proxies have no shape
            return
        with sizes_untraced():
            shape = tuple(x.shape)
        rank, channels = self._layer.rank, self.in_channels  # type: ignore[attr-defined]
        if len(shape) not in (rank + 1, rank + 2) or shape[-rank - 1] != channels:
            raise ValueError(
                f"x must have {channels} channels and {rank} spatial axes, with or without a "
                f"batch, got shape {shape}"
            )


class DiffStrideConv1d(DiffStrideConv, nn.Conv1d):
    """A `torch.nn.Conv1d` with learnt strides, in place of a strided one with an odd kernel.

    It takes the arguments of `torch.nn.Conv1d`, in the same order, with two differences: `stride`
    holds real numbers, the initial strides, and `padding` must keep the size of the input. Both
    have defaults: 2.0 and "same". With ``placement="before"``, the default, the input is resized
    and the smaller map convolved, at about the cost of the strided convolution. With
    ``placement="after"`` the input is convolved and the result resized, as in the paper.
    `DiffStrideConv` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStrideConv1d
    >>> conv = DiffStrideConv1d(3, 16, 9, stride=2.5, padding=4)
    >>> conv(torch.zeros(8, 3, 100)).shape
    torch.Size([8, 16, 40])
    """

    _layer = DiffStride1d


class DiffStrideConv2d(DiffStrideConv, nn.Conv2d):
    """A `torch.nn.Conv2d` with learnt strides, in place of a strided one with an odd kernel.

    It takes the arguments of `torch.nn.Conv2d`, in the same order, with two differences: `stride`
    holds real numbers, the initial strides, and `padding` must keep the size of the input. Both
    have defaults: 2.0 and "same". With ``placement="before"``, the default, the input is resized
    and the smaller map convolved, at about the cost of the strided convolution. With
    ``placement="after"`` the input is convolved and the result resized, as in the paper.
    `DiffStrideConv` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStrideConv2d
    >>> conv = DiffStrideConv2d(3, 16, 3, stride=2.5, padding=1)
    >>> conv(torch.zeros(8, 3, 40, 40)).shape
    torch.Size([8, 16, 16, 16])
    """

    _layer = DiffStride2d


class DiffStrideConv3d(DiffStrideConv, nn.Conv3d):
    """A `torch.nn.Conv3d` with learnt strides, in place of a strided one with an odd kernel.

    It takes the arguments of `torch.nn.Conv3d`, in the same order, with two differences: `stride`
    holds real numbers, the initial strides, and `padding` must keep the size of the input. Both
    have defaults: 2.0 and "same". With ``placement="before"``, the default, the input is resized
    and the smaller map convolved, at about the cost of the strided convolution. With
    ``placement="after"`` the input is convolved and the result resized, as in the paper.
    `DiffStrideConv` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStrideConv3d
    >>> conv = DiffStrideConv3d(3, 16, 3, stride=(1, 2, 2), padding=1)
    >>> conv(torch.zeros(1, 3, 8, 32, 32)).shape
    torch.Size([1, 16, 8, 16, 16])
    """

    _layer = DiffStride3d


class _OfSubclass(DiffStrideConv):
    """A subclass of PyTorch's convolutions, such as one that standardises its weight, with a layer.

    This class comes before the subclass in the bases of a class that is made for the subclass.
    """

    _classes: ClassVar[tuple[type[DiffStrideConv], type[nn.Module]]]

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        # Overridden, so that nothing takes it for PyTorch's own convolution with this weight.
        return super().convolve(x)

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickle cannot find the class by its name.
        return _blank_of_subclass, self._classes, vars(self)


_of_subclasses: dict[tuple[type[DiffStrideConv], type[nn.Module]], type[_OfSubclass]] = {}


def _blank_of_subclass(own: type[DiffStrideConv], subclass: type[nn.Module]) -> Any:
    """Return an instance, without attributes, of the class that gives a subclass a layer."""
    key = own, subclass
    if key not in _of_subclasses:
        members = {"_layer": own._layer, "_classes": key, "__module__": __name__}
        name = f"DiffStride{subclass.__name__}"
        _of_subclasses[key] = type(name, (_OfSubclass, subclass), members)
    made = _of_subclasses[key]
    return made.__new__(made)


def _at_stride_one(conv: AnyConv, own: type[DiffStrideConv]) -> Any:
    """Return a subclass's convolution at stride 1, ready for a layer, sharing its parameters."""
    made = _blank_of_subclass(own, type(conv))
    for name, value in vars(conv).items():
        vars(made)[name] = copy.copy(value) if isinstance(value, dict | set) else value
    made.stride = (1,) * len(conv.kernel_size)
    return made


def _sizes_of(conv: AnyConv) -> dict[str, Any]:
    """Return the arguments for a convolution like another one, without stride, padding and bias."""
    return {
        "in_channels": conv.in_channels,
        "out_channels": conv.out_channels,
        "kernel_size": conv.kernel_size,
        "dilation": conv.dilation,
        "groups": conv.groups,
        "padding_mode": conv.padding_mode,
        "bias": False,
        "device": "meta",
    }


def plain_convolution(
    conv: AnyConv, stride: Sequence[int], padding: str | Sequence[int]
) -> AnyConv:
    """Return a convolution of PyTorch's own class that shares the parameters of another one."""
    base: Any = next(base for base in CONVOLUTIONS if isinstance(conv, base))
    made: AnyConv = base(**_sizes_of(conv), stride=tuple(stride), padding=padding)
    _share_parameters(conv, made)
    return made


def _share_parameters(conv: AnyConv, made: AnyConv) -> None:
    made.weight, made.bias = conv.weight, conv.bias
    made.training = conv.training


def pad_argument(sliding: SlidingKernel, *, first: bool = True) -> list[int]:
    """Return the amounts for `functional.pad` that keep the size, from the last axis to the first.

    Parameters
    ----------
    sliding : SlidingKernel
    first : bool
        Whether to include the operation's own padding.
    """
    amounts: list[int] = []
    for padding, missing in reversed(list(zip(sliding.padding, sliding.end_padding, strict=True))):
        amounts += [padding, padding + missing] if first else [0, missing]
    return amounts
