"""Keeping strides within their bounds in training loops."""

from __future__ import annotations

import torch
from diffstride_backends.torch_private import calls_step_hooks
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from diffstride_torch.modules import DiffStride, check_module, count_step, project_strides


def project_after_step(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Make an optimiser call `project_strides` on a model after each of its steps.

    Use it with training loops that you do not write yourself, such as those of Lightning,
    Accelerate and the Hugging Face Trainer. In your own loop, calling `project_strides` after each
    step does the same.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        An optimiser whose steps call hooks, which all of PyTorch's do. It may be wrapped, if the
        wrapper has the attribute ``optimizer``, as Accelerate's has.
    model : torch.nn.Module
        As for `project_strides`. It may be wrapped before or after this call, for example by
        ``DistributedDataParallel`` or ``torch.compile``. Without a DiffStride layer, the hook does
        nothing.

    Returns
    -------
    torch.utils.hooks.RemovableHandle
        Handle whose method ``remove()`` ends the projections.

    Raises
    ------
    TypeError
        If the optimiser is not one of PyTorch's or never calls its hooks, or the model is not a
        module.
    ValueError
        If the model learns strides and the optimiser has none of them. With several optimisers,
        each must have some. The step itself raises the errors of `project_strides`.

    Notes
    -----
    The projection is a hook that runs after the step (``register_step_post_hook``). A step that a
    ``GradScaler`` skips moves no stride and calls no hook. Hooks run in the order in which they
    were registered, so register hooks that average weights later.

    The optimiser keeps the model alive. Hooks are not part of an optimiser's state dict, its copies
    or its pickles, so call this function again for each new optimiser.

    The hook is not compiled: it causes a graph break in a compiled function that steps the
    optimiser. It reads the strides, so it cannot be captured in a CUDA graph.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStride1d, project_after_step
    >>> model = DiffStride1d(1.1)
    >>> optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    >>> handle = project_after_step(optimizer, model)
    >>> model.strides.grad = torch.tensor([5.0])
    >>> optimizer.step()
    >>> model.strides.tolist()
    [1.0]
    """
    inner = _unwrapped(optimizer)
    check_module(model)
    learnt = {
        f"{name}.strides".lstrip("."): layer.strides
        for name, layer in model.named_modules()
        if isinstance(layer, DiffStride) and layer.strides.requires_grad
    }
    held = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    if learnt and not held & set(map(id, learnt.values())):
        raise ValueError(
            f"optimizer must hold strides of the model, got one of class {type(inner).__name__} "
            f"that holds none of {', '.join(learnt)}; make it when the model has its layers, with "
            "param_groups(model) or model.parameters()"
        )

    def project(optimizer: Optimizer, arguments: object, options: object) -> None:
        count_step(optimizer, arguments, options)
        project_strides(model)

    hook = torch.compiler.disable(project)  # type: ignore[no-untyped-call]
    return inner.register_step_post_hook(hook)


def _unwrapped(optimizer: Optimizer) -> Optimizer:
    """Return the optimiser that calls hooks. Raise TypeError if there is none."""
    inner: object = optimizer
    while not (isinstance(inner, Optimizer) and calls_step_hooks(inner)):
        held = getattr(inner, "optimizer", None)
        if not isinstance(held, Optimizer):
            kind = type(optimizer).__name__
            if not isinstance(inner, Optimizer):
                raise TypeError(f"optimizer must be a torch.optim.Optimizer, got {kind}")
            raise TypeError(
                f"optimizer must call hooks after its steps, got a {kind}, which never does; call "
                "project_strides(model) after each step instead"
            )
        inner = held
    return inner
