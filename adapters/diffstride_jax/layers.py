"""What the modules for all JAX libraries have in common: plans as static state.

A module holds its strides, which are traced under `jax.jit`, and a `PlanCache`, which is static
there. The cache was made from the values of the strides when they were last read, outside
`jax.jit`. Two caches are equal as long as no output size differs, so a compiled function is reused
until one does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from diffstride_backends.jax_backend import BACKEND, FLOATS, FUNCTIONAL
from diffstride_backends.prepare import convolved_arrays

from diffstride_core.arguments import check_float, in_order, initial_strides
from diffstride_core.convolution.checks import checked_convolution, checked_placement, kept_padding
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.plan import Plan
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import plan_pool
from diffstride_core.settings import Settings, make_settings

STRIDES, WEIGHTS = "strides", "weights"
"""The labels that `stride_labels` returns."""

LayerT = TypeVar("LayerT")


class CompilationKey:
    """Hashable key for the part of a compilation that depends on strides.

    `compilation_key` returns it. Two keys are equal if the same compiled function serves both.

    Parameters
    ----------
    plans : iterable of PlanCache
        Plans of a model's layers, in the order of the model.
    """

    def __init__(self, plans: Iterable[PlanCache]) -> None:
        self._plans = tuple(plans)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CompilationKey):
            return NotImplemented
        return len(self._plans) == len(other._plans) and all(
            map(_same_sizes, self._plans, other._plans)
        )

    def __hash__(self) -> int:
        return hash(self._plans)

    def __repr__(self) -> str:
        return f"CompilationKey({', '.join(map(repr, self._plans))})"


def _same_sizes(plans: PlanCache, others: PlanCache) -> bool:
    # Two caches that have seen no size are equal, but their sizes may still differ later.
    return plans is others or (plans == others and plans.newest() is not None)


def make_plans(stride: Any, shared: bool, dtype: Any, **options: Any) -> tuple[PlanCache, Any]:
    """Return the plans of a new layer, and its strides as an array.

    Parameters
    ----------
    stride : float or sequence of float
    shared : bool
    dtype : dtype
        Dtype of the strides.
    **options
        Options of `make_settings`.
    """
    settings = make_settings(**options)
    values = initial_strides(stride, len(settings.axes), shared)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"the strides' dtype must be float32 or float64, got {dtype}")
    return PlanCache(settings, len(values), values), jax.numpy.asarray(values, dtype)


def parameter(array: Any) -> Any:
    """Return a parameter as an array of JAX: what reads checkpoints may have left NumPy's."""
    return jax.numpy.asarray(array) if isinstance(array, np.ndarray) else array


def _check_strides(strides: jax.Array, x: jax.Array) -> None:
    if getattr(strides, "dtype", None) in (np.float16, jax.numpy.bfloat16):
        raise TypeError(
            f"strides must be float32 or float64, got dtype {strides.dtype}; a model in half "
            "precision keeps its strides in float32"
        )
    BACKEND.check_strides(strides, x)


def downsample(plans: PlanCache, x: jax.Array, strides: jax.Array) -> jax.Array:
    """Return the output of a layer."""
    BACKEND.check_input(x)
    strides = parameter(strides)
    _check_strides(strides, x)
    return FUNCTIONAL.resample(current_plan(plans, x.shape, strides), x, strides)


def check_new_convolution(channels: int, weight_shape: Sequence[int], **options: Any) -> None:
    """Raise the errors that a new layer's first call would raise for every input size.

    Parameters
    ----------
    channels : int
        Channels of the input.
    weight_shape : sequence of int
        (out_channels, in_channels / groups, k_1, ..., k_d).
    **options
        Options of `checked_convolution`.
    """
    # A map so large that no kernel reaches beyond it.
    sizes = (sys.maxsize,) * (len(weight_shape) - 2)
    checked_convolution((channels, *sizes), weight_shape, **options)


def check_kept_padding(
    padding: Any, kernel: Sequence[int], dilation: Sequence[int], *words: str
) -> None:
    """Raise unless a new convolution's padding keeps the size of its input.

    Parameters
    ----------
    padding : str, int, sequence of int or of pairs of ints
    kernel, dilation : sequence of int
    *words : str
        The library's names for such padding, in capitals. Users may write them in any case.
    """
    given = padding.upper() if isinstance(padding, str) else padding
    kept_padding(given, kernel, dilation, same=words, valid="VALID", pairs=True)


def strides_dtype(name: str, dtype: Any) -> Any:
    """Return the dtype of strides for parameters of the given dtype: never half precision.

    Raises
    ------
    TypeError
        If the dtype is not supported. The message names the argument.
    """
    check_float(name, np.dtype(dtype).name, FLOATS)
    return jax.numpy.promote_types(dtype, np.float32)


def convolve_and_downsample(
    plans: PlanCache,
    x: jax.Array,
    weight: jax.Array,
    strides: jax.Array,
    bias: jax.Array | None,
    *,
    method: str,
    placement: str,
    convolve: Callable[[jax.Array], jax.Array],
    channels_last: bool,
    **options: Any,
) -> jax.Array:
    """Return the output of a convolution with a layer before or after it.

    Parameters
    ----------
    plans, x, weight, strides, bias
        State and arrays of the layer and the convolution. The arrays are checked here.
    method : {"auto", "fused", "separate"}
        How to evaluate a layer after the convolution.
    placement : {"before", "after"}
    convolve : callable
        The library's own convolution. It is applied to the output of a layer before it.
    channels_last : bool
    **options
        Options of `checked_convolution`.
    """
    placement = checked_placement(placement, method)
    weight, strides, bias = map(parameter, (weight, strides, bias))
    x, weight, bias = convolved_arrays(BACKEND, x, weight, bias)
    _check_strides(strides, x)
    convolution = checked_convolution(
        x.shape,
        weight.shape,
        channels_last=channels_last,
        bias_shape=None if bias is None else bias.shape,
        **options,
    )
    # The convolution keeps the size of its input, so the layer sees that size.
    resize = current_plan(plans, x.shape, strides)
    if placement == "before":
        return convolve(FUNCTIONAL.resample(resize, x, strides))
    plan = ConvPlan(convolution, resize, channels_last)
    return FUNCTIONAL.convolve(plan, x, weight, strides, bias, method=method)


def pool(settings: Settings, x: jax.Array, stride: tuple[float, ...]) -> jax.Array:
    """Return the output of a spectral pooling layer."""
    BACKEND.check_input(x)
    return FUNCTIONAL.resample(plan_pool(settings, x.shape, stride), x)


def penalty(plans: Sequence[PlanCache], strides: Sequence[jax.Array]) -> jax.Array:
    """Return the complexity penalty of layers, given in the order of the network."""
    if not plans:
        raise ValueError("layers must have at least one DiffStride layer, got none")
    bounds = tuple(plan.bounds() for plan in plans)
    return FUNCTIONAL.bounded_complexity(bounds, list(map(parameter, strides)))


def checked_layers(layers: Any, kind: type[LayerT]) -> list[LayerT]:
    """Return layers of one kind, given in the order of the network."""
    found = list(in_order("layers", layers, "of DiffStride layers"))
    for layer in found:
        if not isinstance(layer, kind):
            hint = "; the layer of a convolution is its pool" if hasattr(layer, "pool") else ""
            raise TypeError(f"layers must be DiffStride layers, got {type(layer).__name__}{hint}")
    return found


def current_plan(plans: PlanCache, shape: Sequence[int], strides: jax.Array) -> Plan:
    """Return the plan for an input at the present strides or, if they are traced, as last read."""
    return plans.plan_of(shape, BACKEND.host_values(strides))


def projected(
    plans: PlanCache, strides: jax.Array, values: tuple[float, ...]
) -> tuple[PlanCache, jax.Array]:
    """Return a layer's plans and strides after moving the strides within their bounds.

    Parameters
    ----------
    plans : PlanCache
    strides : jax.Array
    values : tuple of float
        Values of the strides from `read_strides`.
    """
    bounded = np.asarray(plans.project(values), strides.dtype)
    kept = tuple(bounded.tolist())
    return plans.refreshed(kept), strides if kept == values else jax.numpy.asarray(bounded)


def read_strides(names: Iterable[str], strides: list[jax.Array]) -> list[tuple[float, ...]]:
    """Return the strides of a model's layers on the host, read in one transfer.

    Raises
    ------
    ValueError
        If a stride is traced or not finite, or if the layers are an ensemble. The message names the
        layer.
    """
    if any(isinstance(array, jax.core.Tracer) for array in strides):
        raise ValueError(
            "strides must have concrete values here, got traced ones: project or replan outside "
            "jax.jit"
        )
    named = [
        (f" of layer {name!r}" if name else "", array)
        for name, array in zip(names, strides, strict=True)
    ]
    for name, array in named:
        if array.ndim != 1:
            raise ValueError(
                f"strides{name} must have one axis, got shape {array.shape}: the members of an "
                "ensemble that vmap makes share their output sizes, so they cannot have strides of "
                "their own; keep the members in a list"
            )
    values = [tuple(array.tolist()) for array in jax.device_get(strides)]
    for (name, _), value in zip(named, values, strict=True):
        if not np.isfinite(value).all():
            raise ValueError(f"strides{name} must be finite, got {list(value)}")
    return values
