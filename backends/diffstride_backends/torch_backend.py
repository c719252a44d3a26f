"""PyTorch backend: one autograd function attaches the derivatives of all operations of the core."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch.nn import functional
from torch.nn.grad import conv2d_weight

from diffstride_backends import torch_private
from diffstride_backends.functional import Functional, SeparateEvaluation
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
from diffstride_core._namespace import namespace_of
from diffstride_core.byte_cache import ByteBoundCache
from diffstride_core.convolution.evaluation import EvaluationUnits
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.kernels import Kernels
from diffstride_core.operation import MakeFactors, Operation
from diffstride_core.ops import Factors
from diffstride_core.planning import warn_of_nothing_to_crop
from diffstride_core.resample import RESAMPLE

_AUTOCAST = (torch.float16, torch.bfloat16, torch.float32)
_FLOATS = (*_AUTOCAST, torch.float64)
_PLAIN = (torch.Tensor, torch.nn.Parameter)
"""Types of tensors that are not distributed, masked or otherwise special."""


class TorchKernels(Kernels):
    """PyTorch's matrix products. On the host they work in place, on a part of a batch at a time."""

    def memory_order(self, array: torch.Tensor) -> tuple[int, ...] | None:  # noqa: D102
        # A compiler chooses layouts itself, and cannot trace the calls below.
        if torch.compiler.is_compiling() or array.layout != torch.strided:
            return None
        rank = array.ndim
        if array.is_contiguous() or rank not in _CHANNELS_LAST or torch_private.is_batched(array):
            return None
        if not array.is_contiguous(memory_format=_CHANNELS_LAST[rank]):
            return None
        return (0, *range(2, rank), 1)

    def can_write(self, array: torch.Tensor) -> bool:  # noqa: D102
        return array.is_cpu and not torch_private.is_followed()

    def matmul(  # noqa: D102
        self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None
    ) -> torch.Tensor:
        if b.ndim == 2:
            return torch.mm(a, b, out=out)
        return torch.bmm(a.expand(b.shape[0], *a.shape), b, out=out)

    def product(  # noqa: D102
        self, matrix: torch.Tensor, x: torch.Tensor, axis: int
    ) -> torch.Tensor | None:
        # PyTorch reshapes in less time, but it copies the array if the matrix has a gradient.
        if torch_private.is_followed():
            return None
        if axis == -1:
            return functional.linear(x, matrix)
        return torch.matmul(matrix, x) if axis == -2 and x.shape[-1] > 1 else None

    def add_matmul(  # noqa: D102
        self, total: torch.Tensor, a: torch.Tensor, b: torch.Tensor
    ) -> torch.Tensor:
        if torch_private.is_followed():
            return total + self.matmul(a, b)
        if b.ndim == 2:
            return total.addmm_(a, b)
        return total.baddbmm_(a.expand(b.shape[0], *a.shape), b)

    def pointwise(  # noqa: D102
        self, x: torch.Tensor, kernel: torch.Tensor, total: torch.Tensor | None = None
    ) -> torch.Tensor:
        lines = _convolved_lines(x)
        if lines is None:
            return torch.bmm(x, kernel) if total is None else torch.baddbmm(total, x, kernel)
        y = functional.conv2d(_as_images(x, lines), kernel[0].mT[:, :, None, None])
        y = y.movedim(1, -1).reshape(1, x.shape[1], -1)
        return y if total is None else total.add_(y)

    def pointwise_kernel(self, x: torch.Tensor, g: torch.Tensor) -> torch.Tensor:  # noqa: D102
        lines = _convolved_lines(x)
        if lines is None:
            return torch.bmm(x.mT, g)
        shape, images = (g.shape[2], x.shape[2], 1, 1), _as_images(g, lines)
        weight: torch.Tensor = conv2d_weight(  # type: ignore[no-untyped-call]
            _as_images(x, lines), shape, images
        )
        return weight[None, :, :, 0, 0].mT


class TorchBackend(Backend[torch.Tensor]):
    """PyTorch tensors on any device."""

    def __init__(self) -> None:
        super().__init__(namespace_of(torch.empty(0)), TorchKernels)

    def precise_dtype(self, array: torch.Tensor) -> torch.dtype:  # noqa: D102
        return _precise_dtype(array.device.type)

    def frequencies(self, count: int, like: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return torch.arange(count, dtype=self.precise_dtype(like), device=like.device)

    def compute_dtype(self, array: torch.Tensor) -> torch.dtype:  # noqa: D102
        return torch.float32 if array.dtype.itemsize == 2 else array.dtype

    def tables(  # noqa: D102
        self, basis: bases.AxisBasis, like: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Pass the fields of the basis, not the basis: torch.compile has no constants for objects
        # that are made in the code it traces.
        return _constant_tables(
            basis.size, basis.output_size, basis.bins, basis.quadrature, like.dtype, like.device
        )

    def made(  # noqa: D102
        self, make: MakeFactors, plan: Hashable, strides: torch.Tensor | None, like: torch.Tensor
    ) -> Factors:
        if torch_private.is_followed() or (strides is not None and not strides.is_cpu):
            return make(self, plan, strides, like)
        values = None if strides is None else _values(strides)
        return _factors(make, plan, values, self.compute_dtype(like), like.device)

    def zeros(self, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return like.new_zeros(shape)

    def concat(self, arrays: list[torch.Tensor], axis: int = 0) -> torch.Tensor:  # noqa: D102
        # Of the two names, this one has a rule for batched cotangents.
        return torch.cat(arrays, axis)

    def stop_gradient(self, array: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return array.detach()

    def rfft(self, array: torch.Tensor, axis: int) -> torch.Tensor:  # noqa: D102
        if array.numel() == 0:  # MKL refuses empty arrays
            size = array.shape[axis] // 2 + 1
            nothing = _without_entries(array, size, axis)
            return torch.complex(nothing, nothing)
        spectrum: torch.Tensor = torch.fft.rfft(array, dim=axis)
        return spectrum

    def irfft(self, array: torch.Tensor, size: int, axis: int) -> torch.Tensor:  # noqa: D102
        if array.numel() == 0:
            return _without_entries(array, size, axis).real
        # irfft leaves the transformed axis last in memory.
        samples: torch.Tensor = torch.fft.irfft(array, n=size, dim=axis).contiguous()
        return samples

    def fft(self, array: torch.Tensor, axis: int) -> torch.Tensor:  # noqa: D102
        return _along_memory(torch.fft.fft, array, axis)

    def ifft(self, array: torch.Tensor, axis: int) -> torch.Tensor:  # noqa: D102
        return _along_memory(torch.fft.ifft, array, axis)

    def is_array(self, x: object) -> bool:  # noqa: D102
        return isinstance(x, torch.Tensor)

    def is_compiling(self) -> bool:  # noqa: D102
        return torch.compiler.is_compiling()

    def check_input(  # noqa: D102
        self, x: object, name: str = "x", like: torch.Tensor | None = None
    ) -> None:
        if not isinstance(x, torch.Tensor):
            raise TypeError(f"{name} must be a torch.Tensor, got {type(x).__name__}")
        if type(x) is not torch.Tensor or x.is_nested or x.layout != torch.strided:
            _check_dense(name, x)
        if type(x) is not torch.Tensor and is_distributed(x):
            raise TypeError(
                f"{name} must be a tensor of one process, got a DTensor: give {name}.to_local() "
                f"where every process has a part of the batch, else {name}.full_tensor()"
            )
        if x.dtype not in _FLOATS:
            raise TypeError(
                f"{name} must be real floating point, one of float16, bfloat16, float32, float64, "
                f"got dtype {x.dtype}"
            )
        if like is None:
            return
        if x.dtype != like.dtype:
            raise TypeError(f"{name} must have the dtype of x, {like.dtype}, got {x.dtype}")
        if x.device != like.device:
            raise ValueError(f"{name} must be on the device of x, {like.device}, got {x.device}")

    def as_convolved(self, *arrays: Any) -> tuple[Any, ...]:  # noqa: D102
        kind = next((a.device.type for a in arrays if isinstance(a, torch.Tensor)), None)
        if kind is None or not has_autocast(kind):
            return arrays
        dtype = torch.get_autocast_dtype(kind)
        return tuple(
            a.to(dtype)
            if isinstance(a, torch.Tensor) and a.dtype in _AUTOCAST and _sparse_kind(a) is None
            else a
            for a in arrays
        )

    def check_strides(self, strides: torch.Tensor, like: torch.Tensor | None) -> None:  # noqa: D102
        _check_dense("strides", strides)
        if like is not None and is_distributed(strides):
            raise TypeError(
                "strides must have all their entries here, got a DTensor: call the module that "
                "fully_shard was given, or give strides.full_tensor()"
            )
        if strides.dtype not in (torch.float32, torch.float64):
            raise TypeError(f"strides must be float32 or float64, got dtype {strides.dtype}")
        if like is not None and strides.device != like.device:
            raise ValueError(
                f"strides must be on the device of x, {like.device}, got {strides.device}"
            )

    def strides_from_host(  # noqa: D102
        self, strides: HostStrides, like: torch.Tensor | None
    ) -> torch.Tensor:
        dtype, device = getattr(torch, strides.dtype), None if like is None else like.device
        if device is not None and device.type == "mps":
            dtype = torch.float32
        return torch.tensor(strides.values, dtype=dtype, device=device).reshape(strides.shape)

    def unshared(self, strides: torch.Tensor) -> torch.Tensor:  # noqa: D102
        return strides

    def host_values(self, strides: torch.Tensor) -> tuple[float, ...] | None:  # noqa: D102
        if torch.compiler.is_compiling() or strides.is_meta or torch_private.is_batched(strides):
            return None
        return _values(strides)

    def from_host(  # noqa: D102
        self, array: HostArray, dtype: str, device: torch.device | None = None
    ) -> torch.Tensor:
        return torch.tensor(array, dtype=getattr(torch, dtype), device=device)

    def devices(self) -> Sequence[torch.device]:  # noqa: D102
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        host = torch.device("cpu")
        return (host,) if accelerator is None else (host, torch.device(accelerator.type, 0))

    def device_of(self, array: torch.Tensor) -> torch.device:  # noqa: D102
        return array.device

    def dtype_name(self, array: torch.Tensor) -> str:  # noqa: D102
        return str(array.dtype).removeprefix("torch.")

    def to_host(self, array: torch.Tensor) -> HostArray:  # noqa: D102
        array = array.detach().cpu()
        return (array.float() if array.dtype == torch.bfloat16 else array).numpy()


def _values(strides: torch.Tensor) -> tuple[float, ...]:
    """Return the values of a tensor, with all its entries if it is distributed."""
    if type(strides) in _PLAIN:
        return tuple(strides.tolist()) if strides.ndim else (strides.item(),)
    return tuple(whole(strides.detach()).reshape(-1).tolist())


def _check_dense(name: str, tensor: torch.Tensor) -> None:
    """Raise TypeError if a tensor is masked or nested, or its layout is not strided."""
    if (kind := _sparse_kind(tensor)) is not None:
        raise TypeError(f"{name} must be a dense tensor, got {kind}")


def _sparse_kind(tensor: torch.Tensor) -> str | None:
    """Return the kind of a tensor that is not dense, or None if the tensor is dense."""
    if type(tensor) not in _PLAIN and isinstance(tensor, torch.masked.MaskedTensor):
        return "a masked tensor"
    if tensor.is_nested:
        return "a nested tensor"
    return None if tensor.layout == torch.strided else f"one of layout {tensor.layout}"


def is_distributed(tensor: torch.Tensor) -> bool:
    """Return whether a tensor is a DTensor, of which each process may hold only a part."""
    # Only a DTensor has this method. Importing the class would slow down all who do not use it.
    return type(tensor) not in _PLAIN and hasattr(tensor, "full_tensor")


def whole(tensor: Any) -> torch.Tensor:
    """Return a distributed tensor with all its entries, or any other tensor unchanged.

    All processes that hold a part must call this function. Each gets the whole tensor, and the
    gradient that a single process would compute.
    """
    full: torch.Tensor = tensor.full_tensor() if is_distributed(tensor) else tensor
    return full


def distributed_as(values: torch.Tensor, like: Any) -> torch.Tensor:
    """Return values that every process holds, distributed like `like` if that is a DTensor."""
    if not is_distributed(like):
        return values
    from torch.distributed.tensor import DTensor, Replicate

    mesh, values = like.device_mesh, values.to(like.device)
    everywhere = DTensor.from_local(values, mesh, [Replicate()] * mesh.ndim, run_check=False)
    return everywhere.redistribute(placements=like.placements)


def _convolved_lines(rows: torch.Tensor) -> int | None:
    """Return into how many one-line images to split rows for a convolution, or None to multiply.

    On the host, PyTorch convolves with oneDNN and multiplies matrices with MKL or OpenBLAS. On some
    processors the matrix products take twice the time.
    """
    if (
        torch_private.is_followed()
        or rows.dtype != torch.float32
        or rows.shape[0] > 1
        or rows.numel() == 0
        or not torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        or not rows.is_cpu
    ):
        return None
    # With one thread, PyTorch uses oneDNN only for batches of at least 16.
    return next((n for n in range(16, 65) if rows.shape[1] % n == 0), None)


def _as_images(rows: torch.Tensor, lines: int) -> torch.Tensor:
    """Return rows of channels, shape (1, rows, channels), as a batch of images of one line each."""
    return rows.reshape(lines, 1, -1, rows.shape[2]).movedim(-1, 1)


def _along_memory(
    transform: Callable[[torch.Tensor], torch.Tensor], array: torch.Tensor, axis: int
) -> torch.Tensor:
    """Return the transform of an array along an axis.

    MKL takes about twice the time along an axis whose entries are far apart in memory.
    """
    if array.numel() == 0:  # MKL refuses empty arrays
        return array
    return transform(array.movedim(axis, -1).contiguous()).movedim(-1, axis)


def _without_entries(array: torch.Tensor, size: int, axis: int) -> torch.Tensor:
    """Return an empty array with another size along an axis."""
    shape = list(array.shape)
    shape[axis] = size
    # Adding the sum, which is 0, makes the result depend on the array for autograd.
    return array.new_zeros(shape) + array.sum()


# Apple's GPUs have no double precision.
def _precise_dtype(device: str) -> torch.dtype:
    return torch.float32 if device == "mps" else torch.float64


_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


@ByteBoundCache
def _factors(
    make: MakeFactors,
    plan: Hashable,
    strides: tuple[float, ...] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> Factors:
    arrays = host.factors(make, plan, strides, str(dtype).removeprefix("torch."))
    with torch_private.for_later():
        return _on_device(arrays, device)


def _on_device(arrays: Factors, device: torch.device) -> Factors:
    return tuple(
        _on_device(array, device)
        if isinstance(array, tuple)
        else torch.tensor(array, device=device)
        for array in arrays
    )


@ByteBoundCache
def _tables(
    basis: bases.AxisBasis, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    synthesis, analysis = bases.tables(basis)
    # The tables are kept after the inference mode or the transform of this call has ended.
    with torch_private.for_later():
        tables = (
            torch.tensor(synthesis, dtype=dtype, device=device),
            torch.tensor(analysis, dtype=dtype, device=device),
        )
    for table in tables:
        torch_private.mark_static(table)
    return tables


def _constant_tables(
    size: int,
    output_size: int,
    bins: bases.BinRule,
    quadrature: bool,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[torch.Tensor, torch.Tensor]:
    get = _tables.__wrapped__ if torch_private.is_dispatched() else _tables
    return get(bases.AxisBasis(size, output_size, bins, quadrature), dtype, device)


# Otherwise torch.compile would trace the tables' NumPy code as torch code in single precision.
torch_private.mark_constant(_constant_tables)
# The warning is issued while the compiler traces, and is not part of the graph.
torch_private.mark_constant(warn_of_nothing_to_crop)


def has_autocast(kind: str) -> bool:
    """Return whether autocast is on for a device type. Some types, such as "meta", have none."""
    is_available = kind in _WITH_AUTOCAST or torch.amp.is_autocast_available(kind)
    return is_available and torch.is_autocast_enabled(kind)


def without_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Return a context without autocast, whose half precision would spoil the matrices."""
    return torch.autocast(device.type, enabled=False) if has_autocast(device.type) else _UNCHANGED


_UNCHANGED = nullcontext()
_WITH_AUTOCAST = ("cpu", "cuda")  # PyTorch's own answer takes longer


class _Attached(torch.autograd.Function):
    """A forward pass of the core with its vector-Jacobian product.

    The backward pass keeps only the inputs. It is written in differentiable operations, so autograd
    gives second derivatives.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(
        backend: TorchBackend, operation: Operation, plan: Any, *arrays: torch.Tensor | None
    ) -> torch.Tensor:
        # Detach, so that the result is not a view of a temporary: autograd forbids writing to a
        # view that was made in here. A detached tensor still shares the memory, so nothing is
        # copied.
        return evaluate(backend, operation, plan, arrays).detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
        ctx.backend, ctx.operation, ctx.plan, *arrays = inputs
        ctx.save_for_backward(*arrays)

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> Any:
        if not torch.compiler.is_compiling():  # a compiler refuses this check in a backward pass
            _check_dense("the gradient of the output", g)
        needs = ctx.needs_input_grad[3:]
        # The backward pass may run inside autocast too.
        with without_autocast(g.device), torch_private.noting_batched(g):
            gradients = pull_back(ctx.backend, ctx.operation, ctx.plan, g, ctx.saved_tensors, needs)
        return None, None, None, *gradients


class _AttachedOutsideTransforms(torch.autograd.Function):
    """The function of `_Attached`, for calls without an active transform of torch.func.

    Without `setup_context`, PyTorch does not inspect the signature of the forward pass in each
    call. That would take longer than a small resize.
    """

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> torch.Tensor:
        y = _Attached.forward(*inputs)
        _Attached.setup_context(ctx, inputs, y)
        return y

    backward = staticmethod(_Attached.backward)


def attach(
    backend: TorchBackend, operation: Operation, plan: Any, *arrays: torch.Tensor | None
) -> torch.Tensor:
    """Evaluate the forward pass and attach its derivative for autograd.

    Forward-mode differentiation has no attached derivative, so it differentiates the forward pass.
    `torch.jit.trace` cannot record an attached derivative, so it records the forward pass.
    """
    if operation.pull_back is None:
        return evaluate(backend, operation, plan, arrays)
    x = arrays[0]
    assert x is not None
    # Autocast would run the small products that build the operator in half precision.
    with without_autocast(x.device):
        transform = torch_private.active_transform()
        if plain_autodiff.enabled or transform == "forward mode" or torch_private.is_traced():
            return evaluate(backend, operation, plan, arrays)
        is_compiling = torch.compiler.is_compiling()
        if transform is None and not _has_gradient(arrays):
            if is_compiling:
                return evaluate(backend, operation, plan, arrays)
            with torch.no_grad() if torch.is_grad_enabled() else _UNCHANGED:
                return evaluate(backend, operation, plan, arrays).detach()
        if is_compiling:
            # With dynamic sizes, a compiler makes a symbol of each number of the plan when it first
            # reads it. A symbol made within an autograd function would be unknown to the next one.
            hash(plan)
        is_plain = transform is None and not is_compiling
        attached = _AttachedOutsideTransforms if is_plain else _Attached
        y: torch.Tensor = attached.apply(backend, operation, plan, *arrays)
        return y


def as_base(result: torch.Tensor) -> torch.Tensor:
    """Return a result computed without `attach` as a tensor that can be written to.

    Without gradients, the result may be a view of a temporary. Once gradients are on again,
    autograd forbids writing values that have a gradient into such a view.
    """
    is_recorded = torch.compiler.is_compiling() or torch_private.is_traced()
    if torch.is_grad_enabled() or is_recorded or not torch_private.is_view(result):
        return result
    return result.detach()


def _has_gradient(arrays: tuple[torch.Tensor | None, ...]) -> bool:
    if torch.is_grad_enabled():
        for array in arrays:
            if array is not None and array.requires_grad:
                return True
    return False


def _convolve_then_resize(
    backend: TorchBackend,
    plan: ConvPlan,
    factors: Factors,
    x: torch.Tensor,
    weight: torch.Tensor,
    strides: torch.Tensor | None,
    bias: torch.Tensor | None,
) -> torch.Tensor:
    """Convolve an array with PyTorch's own convolution, and resize the result."""
    conv = plan.convolution
    lead = x.shape[: -conv.rank - 1]
    x = x.reshape(math.prod(lead), *x.shape[len(lead) :])
    if plan.channels_last:
        x = x.movedim(-1, 1)
    padding: tuple[int, ...] = conv.padding
    if conv.circular:
        ends = [amount for amount in reversed(padding) for _ in range(2)]
        x, padding = functional.pad(x, ends, mode="circular"), (0,) * conv.rank
    convolve = _CONVOLUTIONS[conv.rank]
    y = convolve(x, weight, bias, 1, padding, conv.dilation, conv.groups)
    if plan.channels_last:
        y = y.movedim(1, -1)
    y = y.reshape(*lead, *y.shape[1:])
    return attach(backend, RESAMPLE, plan.resize, y, strides)


_CONVOLUTIONS: dict[int, Callable[..., torch.Tensor]] = {
    1: functional.conv1d,
    2: functional.conv2d,
    3: functional.conv3d,
}


def value_and_pullback(
    backend: TorchBackend, operation: Operation, plan: Any, *arrays: torch.Tensor | None
) -> tuple[torch.Tensor, Pullback[torch.Tensor]]:
    """Return the value of the forward pass and the pullback that autograd computes."""
    copies = [None if array is None else array.detach().requires_grad_() for array in arrays]
    leaves = [array for array in copies if array is not None]
    y = attach(backend, operation, plan, *copies)

    def pullback(g: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        return torch.autograd.grad(y, leaves, g, retain_graph=True)

    return y.detach(), pullback


plain_autodiff = PlainAutodiff(__name__)
BACKEND = TorchBackend()
# Of all units that benchmarks/fused.py tries, the worst choice of these was the least bad.
EVALUATION_UNITS = EvaluationUnits(
    grouped_convolution=1.0, resize=4.0, pointwise=1.5, shifted_resizes=4.0
)

SEPARATE = SeparateEvaluation(Operation(_convolve_then_resize, pull_back=None), EVALUATION_UNITS)
FUNCTIONAL: Functional[torch.Tensor, torch.Tensor] = Functional(BACKEND, attach, SEPARATE)
FRAMEWORK = Framework(
    "torch",
    BACKEND,
    FUNCTIONAL,
    Functional(BACKEND, value_and_pullback, SEPARATE),
    plain_autodiff=plain_autodiff,
)
