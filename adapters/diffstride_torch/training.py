"""What loops of training call: strides kept within their bounds."""

from __future__ import annotations

import torch
from diffstride_backends.torch_private import calls_step_hooks
from torch import nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from diffstride_torch.modules import DiffStride, count_step, project_strides


def project_after_step(optimizer: Optimizer, model: nn.Module) -> RemovableHandle:
    """Let an optimiser project a model's strides after each of its steps.

    For loops that are not your own, as those of Lightning, Accelerate and the Hugging Face Trainer:
    what steps the optimiser calls `project_strides` too. In a loop of your own that call does the
    same.

    Parameters
    ----------
    optimizer : torch.optim.Optimizer
        Of any class whose steps call hooks, as all of PyTorch do; of a wrapper with an attribute
        ``optimizer``, as that of Accelerate, the one in it.
    model : torch.nn.Module
        As for `project_strides`: without a DiffStride layer nothing happens. It may be wrapped,
        before or after, as by ``DistributedDataParallel`` or ``torch.compile``.

    Returns
    -------
    torch.utils.hooks.RemovableHandle
        Its method ``remove()`` ends the projections.

    Raises
    ------
    TypeError
        If the optimiser is none of PyTorch's or never calls its hooks, and if the model is no
        module.
    ValueError
        If the model learns strides, and the optimiser holds none of them. Of several optimisers
        each may hold some. The step itself raises what `project_strides` does.

    Notes
    -----
    The projection is a hook after the step (``register_step_post_hook``). A step that a
    ``GradScaler`` skips calls none, and moves no stride. Hooks run in the order in which they were
    registered, those of averages are best registered later.

    The optimiser keeps the model alive, and is no part of the model. Its state dict knows nothing
    of hooks, and PyTorch leaves them out of copies and pickles of an optimiser: call the function
    for each new one.

    The hook is not compiled: a compiled function that steps the optimiser is interrupted by it. It
    cannot be captured in a CUDA graph, since it reads the strides.

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
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
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
    """Return the optimiser that calls hooks, raise TypeError where there is none."""
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
