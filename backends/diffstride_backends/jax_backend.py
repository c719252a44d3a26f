"""JAX backend: a custom derivative whose plan is static in every transformation."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

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
from diffstride_core import bases, host
from diffstride_core.arguments import check_float
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.complexity import LayerBounds
from diffstride_core.convolution.checks import spatial_axes
from diffstride_core.convolution.evaluation import EvaluationUnits
from diffstride_core.convolution.fused import CONVOLVE
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.kernels import Kernels
from diffstride_core.operation import MakeFactors, Operation
from diffstride_core.ops import Factors
from diffstride_core.plan import Plan
from diffstride_core.resample import RESAMPLE

FLOATS = ("float16", "bfloat16", "float32", "float64")


class JaxKernels(Kernels):
    """XLA's matrix products."""

    def matmul(  # noqa: D102
        self, a: jax.Array, b: jax.Array, out: jax.Array | None = None
    ) -> jax.Array:
        # On the host, XLA turns many products with the same matrix into one large product, and
        # copies all of `b` and of the result for that. This is slower, and adds two loops to
        # compile.
        if b.ndim == 3 and jax.default_backend() == "cpu":
            return jnp.broadcast_to(a, (b.shape[0], *a.shape)) @ b
        product: jax.Array = super().matmul(a, b)
        return product


class JaxBackend(Backend[jax.Array]):
    """JAX arrays, concrete or traced."""

    def __init__(self) -> None:
        # Make no array here: the first array starts JAX's devices, which users configure before.
        super().__init__(jnp, JaxKernels)

    def precise_dtype(self, array: jax.Array) -> Any:  # noqa: D102
        return jnp.result_type(float)

    def frequencies(self, count: int, like: jax.Array) -> jax.Array:  # noqa: D102
        return jnp.arange(count, dtype=self.precise_dtype(like))

    def compute_dtype(self, array: jax.Array) -> Any:  # noqa: D102
        return jnp.float32 if array.dtype.itemsize == 2 else array.dtype

    def tables(self, basis: bases.AxisBasis, like: jax.Array) -> tuple[HostArray, HostArray]:  # noqa: D102
        # Host constants, since a device copy made while tracing must not outlive the trace.
        return _tables(basis, like.dtype.name)

    def stop_gradient(self, array: jax.Array) -> jax.Array:  # noqa: D102
        return jax.lax.stop_gradient(array)

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, jax.Array)

    def check_input(  # noqa: D102
        self, x: object, name: str = "x", like: jax.Array | None = None
    ) -> None:
        if not isinstance(x, jax.Array):
            hint = "; jax.numpy.asarray makes one" if isinstance(x, np.ndarray) else ""
            raise TypeError(f"{name} must be a jax.Array, got {type(x).__name__}{hint}")
        check_float(name, str(x.dtype), FLOATS)
        if like is not None and x.dtype != like.dtype:
            raise TypeError(f"{name} must have the dtype of x, {like.dtype}, got {x.dtype}")
        _check_devices(name, x, like)

    def check_strides(self, strides: jax.Array, like: jax.Array | None) -> None:  # noqa: D102
        if not isinstance(strides, jax.Array):  # for example in a module restored on the host
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
    """Return whether an array is committed to its devices. JAX moves uncommitted arrays freely."""
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


def _made_on_host(
    operation: Operation,
    plan: Any,
    arrays: tuple[jax.Array | None, ...],
    *,
    for_strides: bool = False,
) -> tuple[Factors, ...] | None:
    """Return the factors of an operation and, with `for_strides`, those of the strides' gradient.

    The factors are NumPy arrays: XLA takes several times as long to compile a program that makes
    them as one that multiplies by them. The result is None if the operation has no factors, if the
    strides are traced, or if they are on an accelerator and would have to be read from it.
    """
    x, strides = arrays[0], arrays[operation.strides]
    placed = x if strides is None else strides
    if operation.make_factors is None or x is None or placed is None or not _is_on_host(placed):
        return None
    values = None if strides is None else BACKEND.host_values(strides)
    makes = (operation.make_factors, operation.make_stride_factors)[: 1 + for_strides]
    # With the same shapes for all strides, so that the program is compiled once.
    return tuple(host.factors(make, plan, values, x.dtype.name, True) for make in makes)


def _is_on_host(array: jax.Array) -> bool:
    """Return whether an array has values and is on a single device, the host."""
    if isinstance(array, jax.core.Tracer):
        return False
    if not hasattr(array, "devices"):  # JAX differentiates NumPy's arrays as they are.
        return True
    if not array.is_fully_addressable:
        return False
    devices = array.devices()
    return len(devices) == 1 and next(iter(devices)).platform == "cpu"


class _Given(JaxBackend):
    """The backend inside a program that gets the factors of an operation as arguments."""

    def __init__(self, operation: Operation, factors: tuple[Factors, ...]) -> None:
        super().__init__()
        self._makes = (operation.make_factors, operation.make_stride_factors)
        self._factors = factors

    def made(
        self, make: MakeFactors, plan: Any, strides: jax.Array | None, like: jax.Array
    ) -> Factors:
        return self._factors[self._makes.index(make)]


_Plan: TypeAlias = Plan | ConvPlan | LayerBounds


# Compiled even without a user's jit: dispatching the small operations one by one would cost more
# than the products themselves.
def _program(
    operation: Operation, plan: _Plan, needs: tuple[bool, ...] | None, _makes_factors: bool
) -> Callable[..., Any]:
    """Return a jitted function for a plan. What JAX compiles for it is freed with the function.

    Parameters
    ----------
    operation : Operation
    plan : Plan, ConvPlan or LayerBounds
    needs : tuple of bool or None
        Which gradients the function returns; None for the value.

    Returns
    -------
    callable
        Function of the factors made on the host (or None), the cotangent if there are gradients,
        and the arrays.
    """

    def program(factors: tuple[Factors, ...] | None, *arrays: Any) -> Any:
        backend = BACKEND if factors is None else _Given(operation, factors)
        # At the default precision, some devices round the inputs of products.
        with jax.default_matmul_precision("highest"):
            if needs is None:
                return evaluate(backend, operation, plan, arrays)
            g, *others = arrays
            return pull_back(backend, operation, plan, g, tuple(others), needs)

    compiled: Callable[..., Any] = jax.jit(program)
    return compiled


def _program_bytes(
    operation: Operation, plan: _Plan, needs: tuple[bool, ...] | None, makes_factors: bool
) -> int:
    """Return about how many bytes the program of a plan takes, mostly for copies of its tables."""
    if isinstance(plan, tuple) or not makes_factors:  # A penalty has no tables.
        return _PROGRAM_BYTES
    resize = plan.by_matrices if isinstance(plan, ConvPlan) else plan
    entries = [
        2 * (min(basis.size, basis.output_size) // 2 + 1) * (basis.size + basis.output_size)
        for term in resize.window.terms(resize.axes)
        for axis, basis in zip(resize.axes, term, strict=True)
        if not axis.use_fft
    ]
    # At most a quarter of the cache, so that two programs for values and two for gradients always
    # fit: recompiling one of them at every call would take seconds.
    return min(_PROGRAM_BYTES + _BYTES_PER_TABLE_ENTRY * sum(entries), _MOST_BYTES // 4)


# Measured: the traced and the compiled program each hold a copy of every table.
_PROGRAM_BYTES = 2**18
_BYTES_PER_TABLE_ENTRY = 18
_MOST_BYTES = 2**27

_programs = ByteBoundCache(_program, size=_program_bytes, most_bytes=_MOST_BYTES, most_entries=4096)


def _value(operation: Operation, plan: Any, arrays: tuple[jax.Array | None, ...]) -> jax.Array:
    factors = _made_on_host(operation, plan, arrays)
    value: jax.Array = _programs(operation, plan, None, factors is None)(factors, *arrays)
    return value


# The custom derivative is outside the compiled functions. Without a user's jit, the forward and the
# backward pass then get strides that have values, even if their gradient is needed.
@partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2))
def _attached(
    operation: Operation, plan: Any, needs: tuple[bool, ...], *arrays: jax.Array | None
) -> jax.Array:
    return _value(operation, plan, arrays)


def _attached_forward(
    operation: Operation, plan: Any, needs: tuple[bool, ...], *arrays: jax.Array | None
) -> tuple[jax.Array, tuple[jax.Array | None, ...]]:
    return _value(operation, plan, arrays), arrays


def _attached_backward(
    operation: Operation,
    plan: Any,
    needs: tuple[bool, ...],
    arrays: tuple[jax.Array | None, ...],
    g: jax.Array,
) -> tuple[jax.Array | None, ...]:
    factors = _made_on_host(operation, plan, arrays, for_strides=needs[operation.strides])
    gradients: tuple[jax.Array | None, ...] = _programs(operation, plan, needs, factors is None)(
        factors, g, *arrays
    )
    return gradients


_attached.defvjp(_attached_forward, _attached_backward)


def _varying_together(arrays: tuple[jax.Array | None, ...]) -> list[jax.Array | None]:
    """Return the arrays, made to vary over the same axes of a mesh.

    Under `jax.shard_map`, a stride can be the same on all devices while the batch is not. JAX sums
    the stride's gradient over the devices, but not inside a custom derivative.
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
    """Evaluate the forward pass and attach its derivative for JAX."""
    if operation.pull_back is None:
        return evaluate(backend, operation, plan, arrays)
    # Arrays with values are constants in every transformation.
    needs = tuple(isinstance(array, jax.core.Tracer) for array in arrays)
    if plain_autodiff.enabled or not any(needs):
        return _value(operation, plan, arrays)
    return _attached(operation, plan, needs, *_varying_together(arrays))


def _convolve_then_resize(
    backend: JaxBackend,
    plan: ConvPlan,
    factors: Factors,
    x: jax.Array,
    weight: jax.Array,
    strides: jax.Array | None,
    bias: jax.Array | None,
) -> jax.Array:
    """Convolve an array with JAX's own convolution, and resize the result."""
    if x.size == 0:
        # For an empty input, JAX's own convolution puts the gradients on the default device.
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
    """Return the value of the forward pass and its pullback from `jax.vjp`."""
    y, pullback = jax.vjp(partial(attach, backend, operation, plan), *arrays)

    def of_arrays(g: jax.Array) -> tuple[jax.Array | None, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        gradients = zip(arrays, pullback(g), strict=True)
        return tuple(gradient for array, gradient in gradients if array is not None)

    return y, of_arrays


plain_autodiff = PlainAutodiff(__name__)
BACKEND = JaxBackend()
# Of all units that benchmarks/fused.py tries, the worst choice of these was the least bad. On a
# host, XLA has no fast grouped convolution.
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
