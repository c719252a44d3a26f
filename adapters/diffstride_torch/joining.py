"""Layers that resize, and their joint evaluation with a convolution before them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, NoReturn, TypeAlias

import torch
from diffstride_backends.prepare import convolved_arrays
from diffstride_backends.torch_backend import BACKEND, EVALUATION_UNITS
from diffstride_backends.torch_private import convolves_as, has_hooks, sizes_untraced
from torch import nn

from diffstride_core.arguments import normalized_axes, option
from diffstride_core.convolution.checks import CONV_METHODS, PADDING_MODES, checked_convolution
from diffstride_core.convolution.evaluation import chosen_method
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.plan import Plan
from diffstride_torch.sliding import CONVOLUTIONS

AnyConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
_Shape: TypeAlias = tuple[int, ...]


class Resize(nn.Module):
    """Base class of the layers that resize."""

    _met: list[Plan] | None = None

    @contextmanager
    def plans_met(self) -> Iterator[list[Plan]]:
        """Record the plans of the forward passes within a context.

        Sizes that the layer sees in the context do not bound its strides afterwards.

        Yields
        ------
        list of Plan
            The plans. Each call appends one.
        """
        before, self._met = self._met, []
        try:
            yield self._met
        finally:
            self._met = before

    def _plan(self, x: torch.Tensor) -> Plan:
        plan = self._plan_for(x)
        if self._met is not None:
            self._met.append(plan)
        return plan

    def forward(
        self, x: torch.Tensor, conv: AnyConv | None = None, *, method: str = "auto"
    ) -> torch.Tensor:
        """Downsample a tensor, or the output of a convolution.

        ``layer(x, conv)`` returns ``layer(conv(x))``, with the layer after the convolution. If that
        is cheaper, it computes nothing at the resolution of `x`; see `conv_diff_stride`. There is
        no placement to choose: to have the layer before the convolution, write ``conv(layer(x))``.

        Parameters
        ----------
        x : torch.Tensor, shape (..., N_1, ..., N_d, ...)
        conv : torch.nn.Conv1d, Conv2d or Conv3d, optional
            Convolution of stride 1 with padding that keeps the size. It is called, and its output
            resized, if it has hooks, an even kernel, a padding mode other than zeros or circular,
            or a forward pass of its own.
        method : {"auto", "fused", "separate"}
            How to evaluate the convolution and the layer; see `conv_diff_stride`.

        Returns
        -------
        torch.Tensor, shape (..., M_1, ..., M_d, ...)

        Raises
        ------
        TypeError
            If `x` is not real floating point, or `conv` is not a convolution or has its own layer.
        ValueError
            If `conv` does not keep the size, or `method` is unknown or impossible here.
        """
        BACKEND.check_input(x)
        if conv is None:
            return self._resize(x)
        if isinstance(conv, PooledConvolution) and conv.pool is not self:
            raise TypeError(
                "conv must be a plain convolution, got one with its own layer, a "
                f"{type(conv).__name__}"
            )
        with sizes_untraced():
            plan = fused_plan(conv, x.shape, self._axes, lambda: self._plan(x), method)
        if plan is None:
            return self._resize(_convolved(conv, x))
        return self._convolve(
            plan, *convolved_arrays(BACKEND, x, conv.weight, conv.bias, prefix="conv.")
        )

    def __prepare_scriptable__(self) -> NoReturn:  # torch.jit.script calls it first
        raise NotImplementedError(
            "torch.jit.script is not supported: use torch.export or torch.compile, or "
            "torch.jit.trace of diffstride_torch.freeze(model, example_input)"
        )

    @property
    def _axes(self) -> tuple[int, ...]:
        """The axes that are resized."""
        raise NotImplementedError

    def _plan_for(self, x: torch.Tensor) -> Plan:
        """Return the plan for an input, which counts as seen."""
        raise NotImplementedError

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        """Resize a tensor."""
        raise NotImplementedError

    def _convolve(
        self, plan: ConvPlan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        """Convolve and resize a tensor with the fused evaluation."""
        raise NotImplementedError


def fused_plan(
    conv: AnyConv,
    shape: Sequence[int],
    axes: Sequence[int],
    resize: Callable[[], Plan],
    method: str,
) -> ConvPlan | None:
    """Return the plan of the fused evaluation, or None if the convolution is to be called.

    Parameters
    ----------
    conv : torch.nn.Conv1d, Conv2d or Conv3d
    shape : sequence of int
        Shape of its input.
    axes : sequence of int
        Axes of the resize after it.
    resize : callable
        Function that returns the plan of this resize. It is called only if fusing is possible.
    method : {"auto", "fused", "separate"}

    Raises
    ------
    TypeError, ValueError
        If `Resize.forward` would refuse an argument.
    """
    option("method", method, CONV_METHODS)
    _check_keeps_size(conv)
    if method == "separate":
        return None
    rank = len(conv.kernel_size)
    reason = why_not_fused(conv)
    if reason is None and len(shape) not in (rank + 1, rank + 2):
        reason = f"x must have {rank + 1} or {rank + 2} dimensions, but has {len(shape)}"
    elif reason is None and sorted(normalized_axes(tuple(axes), shape)) != list(range(-rank, 0)):
        reason = "the layer must resize all spatial axes, and no other"
    if reason is not None:
        if method == "fused":
            refuse_fused(reason)
        return None
    decide = _decide if torch.compiler.is_compiling() else _decided
    return decide(
        tuple(shape[-rank - 1 :]),  # without the batch
        weight_shape(conv),
        None if conv.bias is None else tuple(conv.bias.shape),
        conv.dilation,
        conv.groups,
        conv.padding_mode,
        resize(),
        method,
    )


def _decide(
    x: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    dilation: _Shape,
    groups: int,
    padding_mode: str,
    resize: Plan,
    method: str,
) -> ConvPlan | None:
    """Return the plan of the fused evaluation for arrays of these shapes, or None."""
    conv = checked_convolution(
        x, weight, dilation=dilation, groups=groups, padding_mode=padding_mode, bias_shape=bias
    )
    plan = ConvPlan(conv, resize)
    return plan if chosen_method(plan, method, EVALUATION_UNITS) == "fused" else None


# Cached, since the decision takes as long as a small layer, and is the same in every step.
_decided = lru_cache(maxsize=256)(_decide)


def refuse_fused(reason: str) -> NoReturn:
    """Raise ValueError for a convolution that cannot be fused, with the reason."""
    raise ValueError(f"method must be 'separate' or 'auto' here, got 'fused': {reason}")


class PooledConvolution:
    """A convolution with a layer. This class comes before one of PyTorch's classes in the bases.

    Attributes
    ----------
    pool : torch.nn.Module
        The layer. Whether it comes before or after the convolution depends on the class.
    method : {"auto", "fused", "separate"}
        How to evaluate the convolution and a layer that resizes; see `conv_diff_stride`.
    """

    pool: nn.Module
    method: str = "auto"

    def convolve(self, x: torch.Tensor) -> torch.Tensor:
        """Apply only the convolution."""
        y: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return y

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply the convolution and the layer to a tensor of shape (N, C, ...)."""
        return convolve_and_pool(self, self.pool, x, method=self.method)  # type: ignore[arg-type]


def convolve_and_pool(
    conv: AnyConv, pool: nn.Module, x: torch.Tensor, *, method: str = "auto"
) -> torch.Tensor:
    """Return ``pool(conv(x))``, evaluated in the cheaper way if the layer is one that resizes."""
    y: torch.Tensor
    if isinstance(pool, Resize):
        y = pool(x, conv, method=method)
        return y
    # A convolution that has another layer is called as a whole.
    is_alone = isinstance(conv, PooledConvolution) and conv.pool is pool
    y = pool(_convolved(conv, x) if is_alone else conv(x))
    return y


def _convolved(conv: AnyConv, x: torch.Tensor) -> torch.Tensor:
    return conv.convolve(x) if isinstance(conv, PooledConvolution) else conv(x)


def weight_shape(conv: AnyConv) -> _Shape:
    """Return the shape of a module's weight without accessing the weight, which may compute it."""
    return conv.out_channels, conv.in_channels // conv.groups, *conv.kernel_size


def _check_keeps_size(conv: Any) -> None:
    if not isinstance(conv, CONVOLUTIONS):
        raise TypeError(
            f"conv must be a torch.nn.Conv1d, Conv2d or Conv3d, got {type(conv).__name__}"
        )
    if set(conv.stride) != {1} or conv.transposed or not _pads_as_much_as_it_takes(conv):
        raise ValueError(
            "conv must have stride 1 and padding that keeps the size, 'same' or half of "
            f"dilation * (kernel_size - 1), got {conv}"
        )


def _pads_as_much_as_it_takes(conv: AnyConv) -> bool:
    if conv.padding == "same":
        return True
    paddings: Any = (0,) * len(conv.kernel_size) if conv.padding == "valid" else conv.padding
    return all(
        2 * padding == dilation * (kernel - 1)
        for padding, dilation, kernel in zip(paddings, conv.dilation, conv.kernel_size, strict=True)
    )


def why_not_fused(conv: AnyConv) -> str | None:
    """Return why a convolution cannot be fused with a layer, or None if it can."""
    if any(kernel % 2 == 0 for kernel in conv.kernel_size):
        return f"the kernel must be odd along every axis, but is {conv.kernel_size}"
    if conv.padding_mode not in PADDING_MODES:
        return f"padding_mode must be 'zeros' or 'circular', but is {conv.padding_mode!r}"
    # The hooks of a convolution with a layer are called, though not by the layer.
    if has_hooks(conv) and not isinstance(conv, PooledConvolution):
        return "conv must have no hooks, which would not be called"
    if not _is_plain(conv):
        return f"conv must compute what PyTorch's own does, but {type(conv).__name__} overrides it"
    return None


def _is_plain(conv: AnyConv) -> bool:
    """Return whether neither the class nor the object overrides what PyTorch's class computes."""
    base: Any = next(base for base in CONVOLUTIONS if isinstance(conv, base))
    owner, name = base, "forward"
    if isinstance(conv, PooledConvolution):
        owner, name = PooledConvolution, "convolve"
    is_own = name not in vars(conv) and getattr(type(conv), name) is getattr(owner, name)
    return is_own and convolves_as(conv, base)
