"""Freezing: models whose learnt strides become constants."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from diffstride_backends.torch_backend import BACKEND, as_base, without_autocast
from diffstride_backends.torch_private import is_traced, sizes_untraced
from numpy.typing import NDArray
from torch import nn

from diffstride_core import NothingToCropWarning, host, resample
from diffstride_core.convolution import fused
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.ops import Factors
from diffstride_core.plan import Plan
from diffstride_torch.joining import Resize
from diffstride_torch.modules import DiffStride, SpectralPool
from diffstride_torch.network.tracing import (
    check_model,
    checked_example,
    copied,
    evaluation,
    plans_met,
    swap_modules,
)
from diffstride_torch.precision import KeepsPrecision
from diffstride_torch.sliding import Size


class FixedResize(KeepsPrecision, Resize):
    """A resize by constant matrices, one per axis, as a frozen DiffStride layer computes it.

    Parameters
    ----------
    plan : Plan
        Plan of the resize.
    terms : sequence of sequence of ndarray, shape (M, N)
        For each term of the operator, one matrix per axis of the plan.

    Attributes
    ----------
    input_sizes, output_sizes : tuple of int
        The static sizes N and M of the resized axes.
    """

    def __init__(self, plan: Plan, terms: Sequence[Sequence[NDArray[np.floating]]]) -> None:
        super().__init__()
        self._fixed = plan.by_matrices
        self.axes = tuple(axis.axis for axis in plan.axes)
        self.input_sizes: Size = tuple(axis.size for axis in plan.axes)
        self.output_sizes: Size = plan.output_sizes
        self._terms = len(terms)
        for t, matrices in enumerate(terms):
            for i, matrix in enumerate(matrices):
                self.register_buffer(f"matrix_{t}_{i}", torch.tensor(matrix))

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.axes

    def _plan_for(self, x: torch.Tensor) -> Plan:
        sizes = tuple(x.shape[axis] for axis in self.axes)
        if sizes != self.input_sizes:
            raise ValueError(
                f"x must have the sizes {self.input_sizes} along the axes {self.axes}, for which "
                f"the layer was frozen, got {sizes}"
            )
        return self._fixed

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        with sizes_untraced():
            plan = self._plan_for(x)
        with without_autocast(x.device), _quietly_traced():
            return as_base(resample.evaluate(BACKEND, plan, self._matrices(x), x))

    def _convolve(
        self, plan: ConvPlan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        with without_autocast(x.device), _quietly_traced():
            factors = fused.shifted(BACKEND, plan, self._matrices(x))
            return as_base(fused.evaluate(BACKEND, plan, factors, x, weight, bias=bias))

    def _matrices(self, x: torch.Tensor) -> Factors:
        dtype = BACKEND.compute_dtype(x)
        return tuple(
            tuple(self.get_buffer(f"matrix_{t}_{i}").to(dtype) for i in range(len(self.axes)))
            for t in range(self._terms)
        )

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.input_sizes} -> {self.output_sizes}, axes={self.axes}"


@contextmanager
def _quietly_traced() -> Iterator[None]:
    """Return a context without the warnings of `torch.jit.trace` about decisions based on sizes.

    Only the batch size may change, and no decision here depends on it.
    """
    if not is_traced():
        yield
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        yield


def freeze(model: nn.Module, example_input: Any = None) -> nn.Module:
    """Return a copy of a model in which every stride is a constant.

    Each DiffStride and SpectralPool layer becomes a `FixedResize`, for one input size: matrix
    products without FFTs, complex numbers or parameters. The outputs of the model do not change.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It is not changed.
    example_input : Tensor, shape (N, C, ...), or tuple, optional
        Arguments of the model, which is run on them once to find the input size of each layer. By
        default, the sizes of the forward passes since the last `project_strides` are used.

    Returns
    -------
    torch.nn.Module

    Raises
    ------
    TypeError
        If the model is not a module, or the example is not a tensor.
    ValueError
        If the model has no such layer, a layer has seen several input sizes or none, or the model
        cannot be copied, for example because ``fully_shard`` distributes it.
    """
    check_model(model)
    layers = _layers(model)
    if not layers:
        raise ValueError(
            f"model must have a DiffStride or SpectralPool layer, got {type(model).__name__} with "
            "none"
        )
    frozen = copied(model, "freezing")
    plans = _plans_seen(model) if example_input is None else _plans_met(frozen, example_input)
    for name in layers:
        if len(plans[name]) != 1:
            sizes = sorted(tuple(axis.size for axis in plan.axes) for plan in plans[name])
            hint = "" if sizes else "; give an example_input that reaches it"
            raise ValueError(
                f"layer {name!r} must see exactly one input size to be frozen, got "
                f"{', '.join(map(str, sizes)) or 'none'}{hint}"
            )
    like = next(model.parameters(), torch.empty(0))
    fixed = {name: _fixed(layer, plans[name].pop(), like) for name, layer in layers.items()}
    if "" in fixed:
        return fixed[""]
    swap_modules(frozen, {frozen.get_submodule(name): fixed[name] for name in fixed})
    return frozen


def _layers(model: nn.Module) -> dict[str, DiffStride | SpectralPool]:
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, DiffStride | SpectralPool)
    }


def _plans_seen(model: nn.Module) -> dict[str, set[Plan]]:
    """Return the plans that each layer has used since the last projection."""
    return {
        name: set(layer.plans_seen()) if isinstance(layer, DiffStride) else set()
        for name, layer in _layers(model).items()
    }


def _plans_met(model: nn.Module, example_input: Any) -> dict[str, set[Plan]]:
    """Return the plans that each layer uses for an input."""
    arguments = checked_example(model, example_input)
    with plans_met(model) as met, evaluation(model), warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingToCropWarning)
        model(*arguments)
    return {name: set(met[layer]) for name, layer in _layers(model).items()}


def _fixed(layer: DiffStride | SpectralPool, plan: Plan, like: torch.Tensor) -> FixedResize:
    """Return a layer's resize as constants, with the precision and device of a parameter."""
    strides = None
    if isinstance(layer, DiffStride):
        strides = tuple(layer.strides.tolist())
    dtype = "float64" if like.dtype == torch.float64 else "float32"
    return FixedResize(plan, host.matrices(plan, strides, dtype)).to(like.device)
