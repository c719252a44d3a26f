"""The private names of PyTorch that the project reads: all of them, and why.

Seen in PyTorch 2.14; a test of each, in `torch/test_private.py`, fails where it has changed. A name
that a version does not have is answered by what is safe: nothing is kept or taken for plain.
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
"""Those that are attributes of ``torch``."""

HOOKS = (
    "_forward_hooks",
    "_forward_pre_hooks",
    "_backward_hooks",
    "_backward_pre_hooks",
)
"""Attributes of a module that hold what is called around its forward pass."""

STATE_HOOKS = ("_state_dict_hooks", "_load_state_dict_pre_hooks")


def _known(name: str, unknown: Any) -> Callable[..., Any]:
    """Return a function of torch's, or one that returns `unknown` where there is none."""
    found: Any = torch
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if callable(found) else lambda *_: unknown


# Functions for which there is no public one that the compiler does not import.
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
    """Return whether `torch.jit.trace` records operations."""
    # A compiler cannot follow the question.
    return not torch.compiler.is_compiling() and bool(_is_tracing())


def check_not_traced() -> None:
    """Raise NotImplementedError within `torch.jit.trace`: what it would record has fixed sizes."""
    # A compiler cannot follow the question.
    if not torch.compiler.is_compiling() and _is_tracing():
        raise NotImplementedError(
            "torch.jit.trace, which records the operations of one evaluation, is not supported "
            "where strides decide the sizes: use torch.export or torch.compile, or trace "
            "diffstride_torch.freeze(model, example_input)"
        )


def active_transform() -> Transform:
    """Return what is done to operations beyond autograd: nothing where a compiler follows.

    ``"forward mode"`` where a level of it is active, whatever the tensors are: asking them for
    tangents would not do, since inside another transform they hide them. ``"torch.func"`` for its
    other transforms.
    """
    # A compiler that traces forward mode would find, when it checks its graph, no level.
    if torch.compiler.is_compiling():
        return None
    if getattr(forward_ad, "_current_level", 0) >= 0:
        return "forward mode"
    return None if _transform() is None else "torch.func"


def is_followed() -> bool:
    """Return whether operations are recorded: by autograd, a compiler, a mode or a transform."""
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
    """Whether a backward pass is given many cotangents at once, as `is_grads_batched` asks for.

    PyTorch does that by an older transform, which can be told from its tensors alone.
    """

    are_batched = False


_cotangents = _Cotangents()


def noting_batched(g: torch.Tensor) -> AbstractContextManager[object]:
    """Return a context in which `is_followed` knows of a cotangent that stands for many."""
    # A compiler cannot follow the question.
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
    """Return whether a mode, as that of torch.export, may make tensors for itself alone."""
    return bool(_dispatch_modes() > 0 or not _CAN_KEEP)


def is_transformed(tensor: torch.Tensor) -> bool:
    """Return whether a tensor stands for others within a transform of torch.func."""
    return bool(_is_wrapped(tensor))


def is_batched(tensor: torch.Tensor) -> bool:
    """Return whether torch.vmap maps over the tensor, also inside other transforms."""
    while _is_wrapped(tensor):
        if _is_batched(tensor):
            return True
        tensor = _unwrapped(tensor)
    return False


def for_later() -> AbstractContextManager[object]:
    """Return a context whose tensors outlive the inference mode or the transform of a call."""
    return _plainly() if _CAN_KEEP else nullcontext()


@contextmanager
def _plainly() -> Iterator[None]:
    with torch.inference_mode(False), _without_transforms():
        yield


def sizes_untraced() -> AbstractContextManager[object]:
    """Return a context in which shapes are ints, as they are not within `torch.jit.trace`."""
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
    """Return what differs after each write to a tensor, None where no trace of one is kept."""
    if tensor.is_inference() or _is_wrapped(tensor):
        return None
    return getattr(tensor, "_version", None)


def is_view(tensor: torch.Tensor) -> bool:
    """Return whether a tensor shares the memory of another one."""
    return bool(getattr(tensor, "_is_view", lambda: True)())


def saved_tensors_hooks() -> object:
    """Return what differs between parts of a network that are checkpointed apart."""
    # The argument: not only while autograd may use them.
    return _saved_tensors_hooks(False)


def mark_static(tensor: torch.Tensor) -> None:
    """Let torch.compile give a constant of its graph no sizes that are symbols."""
    # As torch._dynamo.mark_static, which imports the whole compiler.
    tensor._dynamo_static_indices = set(range(tensor.ndim))  # type: ignore[attr-defined]


def mark_constant(function: Callable[..., Any]) -> None:
    """Let torch.compile take what a function returns for a constant, and not follow it."""
    # As torch.compiler.assume_constant_result, which imports the whole compiler.
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]


def has_hooks(module: nn.Module, *, of_state: bool = False) -> bool:
    """Return whether something is called around a module's forward pass, or that of its state."""
    names = (*HOOKS, *STATE_HOOKS) if of_state else HOOKS
    return any(getattr(module, name, True) for name in names)


def convolves_as(conv: nn.Module, base: type[nn.Module]) -> bool:
    """Return whether class and object leave to PyTorch's class what its convolution computes."""
    name = "_conv_forward"
    return name not in vars(conv) and getattr(type(conv), name, None) is getattr(base, name, conv)


def without_padding(module: nn.Module) -> None:
    """Let a convolution pad nothing, whatever its padding mode."""
    conv: Any = module
    conv.padding = (0,) * len(conv.kernel_size)
    # What modes other than zeros pad by.
    conv._reversed_padding_repeated_twice = [0, 0] * len(conv.padding)


def calls_step_hooks(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether an optimiser calls the hooks that are registered for its steps.

    One that wraps another and was not initialised as an optimiser itself takes them and never does.
    """
    # Initialising an optimiser marks its class's method.
    if not hasattr(torch.optim.Optimizer, "_patch_step_function"):
        return True
    return bool(getattr(type(optimizer).step, "hooked", False))
