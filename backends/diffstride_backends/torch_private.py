"""All private names of PyTorch that the project uses, and why.

The names are those of PyTorch 2.14. Each has a test in `torch/test_private.py`, which fails if the
name has changed. If a version lacks a name, the answer is the safe one: nothing is kept, and
nothing counts as plain.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from torch import nn
from torch.autograd import forward_ad

Transform: TypeAlias = Literal["forward mode", "torch.func"] | None

NAMES = (
    "_C._DisableFuncTorch",
    "_C._autograd._top_saved_tensors_default_hooks",
    "_C._functorch.get_unwrapped",
    "_C._functorch.is_batchedtensor",
    "_C._functorch.is_functorch_wrapped_tensor",
    "_C._functorch.is_legacy_batchedtensor",
    "_C._functorch.peek_interpreter_stack",
    "_C._get_tracing_state",
    "_C._is_tracing",
    "_C._len_torch_dispatch_stack",
    "_C._set_tracing_state",
    "Tensor._is_view",
    "Tensor._version",
    "autograd.forward_ad._current_level",
    "nn.Conv2d._conv_forward",
    "optim.Optimizer._patch_step_function",
)
"""The private names that are attributes of ``torch``."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Attributes of a module that hold the hooks of its forward and backward passes."""

STATE_HOOKS = ("_state_dict_hooks", "_load_state_dict_pre_hooks")


def _known(name: str, unknown: Any) -> Callable[..., Any]:
    """Return a function of torch by its name, or one that returns `unknown` if there is none."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else lambda *_: unknown


# For these functions there is no public one that does not import the compiler.
_is_tracing = _known("_C._is_tracing", unknown=False)
_get_tracing_state = _known("_C._get_tracing_state", unknown=None)
_set_tracing_state = _known("_C._set_tracing_state", unknown=None)
_dispatch_modes = _known("_C._len_torch_dispatch_stack", unknown=1)
_transform = _known("_C._functorch.peek_interpreter_stack", unknown=True)
_is_wrapped = _known("_C._functorch.is_functorch_wrapped_tensor", unknown=True)
_is_batched = _known("_C._functorch.is_batchedtensor", unknown=True)
_is_legacy_batched = _known("_C._functorch.is_legacy_batchedtensor", unknown=True)
_unwrapped = _known("_C._functorch.get_unwrapped", unknown=None)
_without_transforms = _known("_C._DisableFuncTorch", unknown=None)
_saved_tensors_hooks = _known("_C._autograd._top_saved_tensors_default_hooks", unknown=None)
_CAN_KEEP = _without_transforms() is not None


def is_traced() -> bool:
    """Return whether `torch.jit.trace` is recording operations."""
    # A compiler cannot trace this call.
    return not torch.compiler.is_compiling() and bool(_is_tracing())


def check_not_traced() -> None:
    """Raise NotImplementedError within `torch.jit.trace`, which would record fixed sizes."""
    # A compiler cannot trace this call.
    if not torch.compiler.is_compiling() and _is_tracing():
        raise NotImplementedError(
            "torch.jit.trace, which records the operations of one evaluation, is not supported "
            "where strides decide the sizes: use torch.export or torch.compile, or trace "
            "diffstride_torch.freeze(model, example_input)"
        )


def active_transform() -> Transform:
    """Return the transform that is active besides autograd; None while a compiler traces.

    The value is ``"forward mode"`` if a level of it is active, whether or not a tensor has a
    tangent: inside another transform, tensors hide their tangents. It is ``"torch.func"`` for the
    other transforms of torch.func.
    """
    # A compiler that traces forward mode would find no level when it checks its graph.
    if torch.compiler.is_compiling():
        return None
    if getattr(forward_ad, "_current_level", 0) >= 0:
        return "forward mode"
    return None if _transform() is None else "torch.func"


def is_followed() -> bool:
    """Return whether autograd, a compiler, a mode or a transform records operations."""
    return (
        torch.compiler.is_compiling()
        or _is_tracing()
        or torch.is_grad_enabled()
        or getattr(forward_ad, "_current_level", 0) >= 0
        or _dispatch_modes() > 0
        or _transform() is not None
        or _cotangents.are_batched
        or not _CAN_KEEP
    )


class _Cotangents(threading.local):
    """Whether a backward pass gets many cotangents at once, as with `is_grads_batched`.

    PyTorch uses an older transform for this, which only its tensors reveal.
    """

    are_batched = False


_cotangents = _Cotangents()


def noting_batched(g: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which `is_followed` is true if a cotangent stands for many."""
    # A compiler cannot trace this call.
    if torch.compiler.is_compiling() or not _is_legacy_batched(g):
        return nullcontext()
    return _batched_cotangents()


@contextmanager
def _batched_cotangents() -> Iterator[None]:
    _cotangents.are_batched = True
    try:
        yield
    finally:
        _cotangents.are_batched = False


def is_dispatched() -> bool:
    """Return whether a mode, such as that of torch.export, may make tensors only for itself."""
    return bool(_dispatch_modes() > 0 or not _CAN_KEEP)


def is_batched(tensor: torch.Tensor) -> bool:
    """Return whether torch.vmap maps over a tensor, possibly inside other transforms."""
    while _is_wrapped(tensor):
        if _is_batched(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False


def for_later() -> AbstractContextManager[object]:
    """Return a context for tensors that outlive the inference mode or the transform of a call."""
    return _plainly() if _CAN_KEEP else nullcontext()


@contextmanager
def _plainly() -> Iterator[None]:
    with torch.inference_mode(False), _without_transforms():
        yield


def sizes_untraced() -> AbstractContextManager[object]:
    """Return a context in which shapes are ints, even within `torch.jit.trace`."""
    return _tracing_paused() if is_traced() else nullcontext()


@contextmanager
def _tracing_paused() -> Iterator[None]:
    state = _get_tracing_state()
    _set_tracing_state(None)
    try:
        yield
    finally:
        _set_tracing_state(state)


def version_of(tensor: torch.Tensor) -> int | None:
    """Return a tensor's version, which each write changes; None if writes leave no trace."""
    if tensor.is_inference() or _is_wrapped(tensor):
        return None
    return getattr(tensor, "_version", None)


def is_view(tensor: torch.Tensor) -> bool:
    """Return whether a tensor shares the memory of another one."""
    return bool(getattr(tensor, "_is_view", lambda: True)())


def saved_tensors_hooks() -> object:
    """Return an object that differs between parts of a network that are checkpointed separately."""
    # With the argument False, PyTorch returns no hooks while they are traced.
    return _saved_tensors_hooks(False)


def mark_static(tensor: torch.Tensor) -> None:
    """Tell torch.compile that the sizes of a constant in its graph are not symbols."""
    # torch._dynamo.mark_static does the same, but imports the whole compiler.
    tensor._dynamo_static_indices = set(range(tensor.ndim))  # type: ignore[attr-defined]


def mark_constant(function: Callable[..., Any]) -> None:
    """Tell torch.compile that the result of a function is a constant, and not to trace it."""
    # torch.compiler.assume_constant_result does the same, but imports the whole compiler.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_hooks(module: nn.Module, *, of_state: bool = False) -> bool:
    """Return whether a module has hooks on its passes or, with `of_state`, on its state dict."""
    names = (*HOOKS, *STATE_HOOKS) if of_state else HOOKS
    return any(getattr(module, name, True) for name in names)


def convolves_as(conv: nn.Module, base: type[nn.Module]) -> bool:
    """Return whether neither a convolution nor its class overrides how PyTorch convolves."""
    name = "_conv_forward"
    return name not in vars(conv) and getattr(type(conv), name, None) is getattr(base, name, conv)


def without_padding(module: nn.Module) -> None:
    """Switch off the padding of a convolution, in every padding mode."""
    conv: Any = module
    conv.padding = (0,) * len(conv.kernel_size)
    # The amounts for padding modes other than zeros.
    conv._reversed_padding_repeated_twice = [0, 0] * len(conv.padding)


def calls_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimiser calls the hooks that are registered for its steps.

    An optimiser that wraps another one, and was not itself initialised as an optimiser, accepts
    hooks but never calls them.
    """
    # Initialising an optimiser marks the `step` method of its class.
    if not hasattr(torch.optim.Optimizer, "_patch_step_function"):
        return True
    return bool(getattr(type(optimizer).step, "hooked", False))
