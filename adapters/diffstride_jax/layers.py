"""What the modules of every JAX library have in common: plans that are static state.

A module holds its strides, which are traced under `jax.jit`, and a `PlanCache`, which is static
there: made from the strides' values as they were read last, outside. Two caches are equal while no
output size differs, so a compiled function is reused until one does.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import jax
import numpy as np
from diffstride_backends.jax_backend import BACKEND, FUNCTIONAL

from diffstride_core.arguments import checked_shape, initial_strides
from diffstride_core.plan import Plan
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import plan_pool
from diffstride_core.settings import Settings, make_settings


def make_plans(stride: Any, shared: bool, dtype: Any, **options: Any) -> tuple[PlanCache, Any]:
    """Return the plans of a new layer, and its strides as an array.

    Parameters
    ----------
    stride : float or sequence of float
    shared : bool
    dtype : dtype
        Of the strides.
    **options
        For `make_settings`.
    """
    settings = make_settings(**options)
    values = initial_strides(stride, len(settings.axes), shared)
    if np.dtype(dtype) not in (np.float32, np.float64):
        raise TypeError(f"the strides' dtype must be float32 or float64, got {dtype}")
    return PlanCache(settings, len(values), values), jax.numpy.asarray(values, dtype)


def downsample(plans: PlanCache, x: jax.Array, strides: jax.Array) -> jax.Array:
    """Return the output of a layer."""
    BACKEND.check_input(x)
    BACKEND.check_strides(strides, x)
    return FUNCTIONAL.resample(current_plan(plans, x.shape, strides), x, strides)


def pool(settings: Settings, x: jax.Array, stride: tuple[float, ...]) -> jax.Array:
    """Return the output of a layer of spectral pooling."""
    BACKEND.check_input(x)
    return FUNCTIONAL.resample(plan_pool(settings, x.shape, stride), x)


def penalty(plans: Sequence[PlanCache], strides: Sequence[jax.Array]) -> jax.Array:
    """Return the complexity penalty of layers, given in the order of the network."""
    if not plans:
        raise ValueError("layers must have at least one DiffStride layer, got none")
    return FUNCTIONAL.bounded_complexity(tuple(plan.bounds() for plan in plans), strides)


def current_plan(plans: PlanCache, shape: Sequence[int], strides: jax.Array) -> Plan:
    """Return the plan for an input: of the strides as they are, or while traced as last read."""
    plan = plans.plan(checked_shape(shape))  # Which also notes that the layer has seen the size.
    values = BACKEND.host_values(strides)
    return plan if values is None else plans.refreshed(values).plan(shape)


def projected(
    plans: PlanCache, strides: jax.Array, values: tuple[float, ...]
) -> tuple[PlanCache, jax.Array]:
    """Return a layer's strides within their bounds, and the plans that follow from them.

    Parameters
    ----------
    plans : PlanCache
    strides : jax.Array
    values : tuple of float
        The strides' values, from `read_strides`.
    """
    bounded = np.asarray(plans.project(values), strides.dtype)
    kept = tuple(bounded.tolist())
    return plans.refreshed(kept), strides if kept == values else jax.numpy.asarray(bounded)


def read_strides(names: Iterable[str], strides: list[jax.Array]) -> list[tuple[float, ...]]:
    """Return the strides of a model's layers on the host, read in one transfer.

    Raises
    ------
    ValueError
        If a stride is traced or not finite, naming the layer.
    """
    if any(isinstance(array, jax.core.Tracer) for array in strides):
        raise ValueError(
            "strides must have concrete values here, got traced ones: call this outside jax.jit"
        )
    values = [tuple(array.tolist()) for array in jax.device_get(strides)]
    for name, value in zip(names, values, strict=True):
        if not np.isfinite(value).all():
            raise ValueError(f"strides of layer {name!r} must be finite, got {list(value)}")
    return values
