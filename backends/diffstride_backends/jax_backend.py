"""JAX: a custom derivative whose plan is static to every transformation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from diffstride_backends.functional import Functional, SeparateEvaluation
from diffstride_backends.jax_private import varying_axes
from diffstride_backends.plain import PlainAutodiff
from diffstride_backends.protocol import (
    Backend,
    HostArray,
    HostStrides,
    Pullback,
    evaluate,
    pull_back,
)
from diffstride_backends.registry import Framework
from diffstride_core import bases
from diffstride_core.arguments import check_float
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.complexity import LayerBounds
from diffstride_core.convolution.checks import spatial_axes
from diffstride_core.convolution.evaluation import EvaluationUnits
from diffstride_core.convolution.fused import CONVOLVE
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.operation import Operation
from diffstride_core.ops import Factors
from diffstride_core.plan import Plan
from diffstride_core.resample import RESAMPLE

FLOATS = ("float16", "bfloat16", "float32", "float64")


class JaxBackend(Backend[jax.Array]):
    """JAX arrays, concrete or traced."""

    def __init__(self) -> None:
        # Without an array: the first one starts JAX's devices, before which users configure them.
        super().__init__(jnp)

    def precise_dtype(self, array: jax.Array) -> Any:  # noqa: D102
        return jnp.result_type(float)

    def frequencies(self, count: int, like: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.arange(count, dtype=self.precise_dtype(like))

    def compute_dtype(self, array: jax.Array) -> Any:  # noqa: D102
        return jnp.float32 if array.dtype.itemsize == 2 else array.dtype

    def tables(self, basis: bases.AxisBasis, like: jax.Array) -> tuple[HostArray, HostArray]:  # noqa: D102
        # Host constants: a device copy made while tracing must not outlive the trace.
        return _tables(basis, like.dtype.name)

    def stop_gradient(self, array: jax.Array) -> jax.Array:  # noqa: D102
        return jax.lax.stop_gradient(array)

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, jax.Array)

    def check_input(  # noqa: D102
        self, x: object, name: str = "x", like: jax.Array | None = None
    ) -> None:
        if not isinstance(x, jax.Array):
            raise TypeError(f"{name} must be a jax.Array, got {type(x).__name__}")
        check_float(name, str(x.dtype), FLOATS)
        if like is not None and x.dtype != like.dtype:
            raise TypeError(f"{name} must have the dtype of x, {like.dtype}, got {x.dtype}")
        _check_devices(name, x, like)

    def check_strides(self, strides: jax.Array, like: jax.Array | None) -> None:  # noqa: D102
        if not isinstance(strides, jax.Array):  # for example of a module restored on the host
            raise TypeError(f"strides must be a jax.Array, got {type(strides).__name__}")
        if strides.dtype not in (jnp.float32, jnp.float64):
            raise TypeError(f"strides must be float32 or float64, got dtype {strides.dtype}")
        _check_devices("strides", strides, like)

    def strides_from_host(  # noqa: D102
        self, strides: HostStrides, like: jax.Array | None
    ) -> jax.Array:
        return jnp.asarray(strides.array())

    def host_values(self, strides: jax.Array) -> tuple[float, ...] | None:  # noqa: D102
        if isinstance(strides, jax.core.Tracer):
            return None
        return tuple(np.ravel(strides).tolist())

    def from_host(  # noqa: D102
        self, array: HostArray, dtype: str, device: jax.Device | None = None
    ) -> jax.Array:
        return jnp.asarray(array, dtype=dtype, device=device)

    def devices(self) -> Sequence[jax.Device]:  # noqa: D102
        return jax.devices()

    def device_of(self, array: jax.Array) -> Any:  # noqa: D102
        return array.device

    def dtype_name(self, array: jax.Array) -> str:  # noqa: D102
        return array.dtype.name

    def to_host(self, array: jax.Array) -> HostArray:  # noqa: D102
        host = np.asarray(array)
        return host.astype(np.float32) if array.dtype == jnp.bfloat16 else host


def _is_committed(array: jax.Array) -> bool:
    """Return whether an array is bound to its devices; others follow those they meet."""
    return not isinstance(array, jax.core.Tracer) and array.committed


def _check_devices(name: str, array: jax.Array, like: jax.Array | None) -> None:
    if like is None or not (_is_committed(array) and _is_committed(like)):
        return
    if array.devices() != like.devices():
        raise ValueError(
            f"{name} must be on the device of x, {like.devices()}, got {array.devices()}"
        )


@ByteBoundCache
def _tables(basis: bases.AxisBasis, dtype: str) -> tuple[HostArray, HostArray]:
    synthesis, analysis = bases.tables(basis)
    return synthesis.astype(dtype), analysis.astype(dtype)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attached(operation: Operation, plan: Any, *arrays: jax.Array | None) -> jax.Array:
    return evaluate(BACKEND, operation, plan, arrays)


def _attached_forward(
    operation: Operation, plan: Any, *arrays: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    return evaluate(BACKEND, operation, plan, arrays), arrays


def _attached_backward(
    operation: Operation, plan: Any, arrays: tuple[jax.Array | None, ...], g: jax.Array
) -> tuple[jax.Array | None, ...]:
    needs = tuple(array is not None for array in arrays)
    return pull_back(BACKEND, operation, plan, g, arrays, needs)


_attached.defvjp(_attached_forward, _attached_backward)


# Compiled even outside a user's jit: dispatched one by one, the small operations that build the
# operators would cost more than the products themselves.
def _program(
    plain: bool, operation: Operation, plan: Plan | ConvPlan | LayerBounds
) -> Callable[..., jax.Array]:
    """Return the compiled evaluation of a plan: with it goes what JAX has compiled of it."""

    def program(*arrays: jax.Array | None) -> jax.Array:
        # The default precision of some devices would round the products' inputs.
        with jax.default_matmul_precision("highest"):
            if plain:
                return evaluate(BACKEND, operation, plan, arrays)
            return _attached(operation, plan, *_varying_together(arrays))

    compiled: Callable[..., jax.Array] = jax.jit(program)
    return compiled


def _program_bytes(plain: bool, operation: Operation, plan: Plan | ConvPlan | LayerBounds) -> int:
    """Return about what the program of a plan takes, most of it copies of its constant tables."""
    if isinstance(plan, tuple):  # of a penalty, which has no tables
        return _PROGRAM_BYTES
    resize = plan.by_matrices if isinstance(plan, ConvPlan) else plan
    entries = [
        2 * (min(basis.size, basis.output_size) // 2 + 1) * (basis.size + basis.output_size)
        for term in resize.window.terms(resize.axes)
        for axis, basis in zip(resize.axes, term, strict=True)
        if not axis.use_fft
    ]
    # Two are kept in any case: recompiling one of them at every call would take seconds.
    return min(_PROGRAM_BYTES + _BYTES_PER_TABLE_ENTRY * sum(entries), _MOST_BYTES // 2)


# As measured where gradients are computed: the traced and the compiled program hold a table each,
# and so do those of the backward pass. Without gradients it is less than half.
_PROGRAM_BYTES = 2**18
_BYTES_PER_TABLE_ENTRY = 36
_MOST_BYTES = 2**27

_programs = ByteBoundCache(_program, size=_program_bytes, most_bytes=_MOST_BYTES, most_entries=4096)


def _varying_together(arrays: tuple[jax.Array | None, ...]) -> list[jax.Array | None]:
    """Return arrays that vary over the same axes of a mesh.

    Under `jax.shard_map` a stride can be the same on all devices while the batch is not. JAX adds
    its gradient up over the devices, but not inside a custom derivative.
    """
    nowhere: frozenset[str] = frozenset()
    varying = [nowhere if array is None else varying_axes(array) for array in arrays]
    together = nowhere.union(*varying)
    return [
        None
        if array is None
        else jax.lax.pcast(array, tuple(sorted(together - axes)), to="varying")
        for array, axes in zip(arrays, varying, strict=True)
    ]


def attach(
    backend: JaxBackend, operation: Operation, plan: Any, *arrays: jax.Array | None
) -> jax.Array:
    """Evaluate the forward pass, with its derivative known to JAX."""
    if operation.pull_back is None:
        return evaluate(backend, operation, plan, arrays)
    return _programs(plain_autodiff.enabled, operation, plan)(*arrays)


def _convolve_then_resize(
    backend: JaxBackend,
    plan: ConvPlan,
    factors: Factors,
    x: jax.Array,
    weight: jax.Array,
    strides: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Convolve an array by JAX's own convolution, and resize what comes of it."""
    if x.size == 0:
        # Where nothing is convolved, JAX puts the gradients on the default device.
        return attach(backend, CONVOLVE, plan, x, weight, strides, bias)
    conv = plan.convolution
    lead = x.shape[: -conv.rank - 1]
    x = x.reshape(math.prod(lead), *x.shape[len(lead) :])
    spatial = "DHW"[-conv.rank :]
    layout = f"N{spatial}C" if plan.channels_last else f"NC{spatial}"
    ends = [(amount, amount) for amount in conv.padding]
    if conv.circular:
        axes = spatial_axes(conv.rank, channels_last=plan.channels_last)
        around: list[tuple[int, int]] = [(0, 0)] * x.ndim
        for axis, amounts in zip(axes, ends, strict=True):
            around[axis] = amounts
        x, ends = jnp.pad(x, around, mode="wrap"), [(0, 0)] * conv.rank
    y = jax.lax.conv_general_dilated(
        x,
        weight,
        (1,) * conv.rank,
        ends,
        rhs_dilation=conv.dilation,
        dimension_numbers=(layout, f"OI{spatial}", layout),
        feature_group_count=conv.groups,
    )
    if bias is not None:
        y = y + (bias if plan.channels_last else bias.reshape(-1, *(1,) * conv.rank))
    y = y.reshape(*lead, *y.shape[1:])
    return attach(backend, RESAMPLE, plan.resize, y, strides)


def value_and_pullback(
    backend: JaxBackend, operation: Operation, plan: Any, *arrays: jax.Array | None
) -> tuple[jax.Array, Pullback[jax.Array]]:
    """Evaluate the forward pass and return it with the pullback of `jax.vjp`."""
    y, pullback = jax.vjp(partial(attach, backend, operation, plan), *arrays)

    def of_arrays(g: jax.Array) -> tuple[jax.Array | None, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        gradients = zip(arrays, pullback(g), strict=True)
        return tuple(gradient for array, gradient in gradients if array is not None)

    return y, of_arrays


plain_autodiff = PlainAutodiff(__name__)
BACKEND = JaxBackend()
# Of those that benchmarks/fused.py tries, the units whose worst choice was the least bad; on a host
# XLA has no fast convolution in groups.
EVALUATION_UNITS = EvaluationUnits(
    grouped_convolution=16.0, resize=4.0, pointwise=1.5, shifted_resizes=2.0
)

SEPARATE = SeparateEvaluation(Operation(_convolve_then_resize, pull_back=None), EVALUATION_UNITS)
FUNCTIONAL: Functional[jax.Array, jax.Array] = Functional(BACKEND, attach, SEPARATE)
FRAMEWORK = Framework(
    "jax",
    BACKEND,
    FUNCTIONAL,
    Functional(BACKEND, value_and_pullback, SEPARATE),
    double_precision=partial(jax.enable_x64, True),
    plain_autodiff=plain_autodiff,
)
