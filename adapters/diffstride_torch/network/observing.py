"""Running a model on an example without a trace, while watching some of its modules.

A model that torch.fx cannot trace can still be run. The run shows which sizes a module reads and
returns, and what it costs, but not how sizes depend on each other.
"""

from __future__ import annotations

import math
import traceback
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from diffstride_backends.torch_private import version_of
from torch import nn

from diffstride_torch.joining import Resize
from diffstride_torch.modules import DiffStride, SpectralPool
from diffstride_torch.network.tracing import (
    Call,
    Constant,
    Recording,
    Rehearsal,
    ResizeCall,
    Rule,
    Step,
    cannot_run,
    checked_example,
    counted,
    evaluation,
    plans_met,
    resizing_rule,
)
from diffstride_torch.sliding import sliding_kernel_of, sliding_rule_of


class Observation(Recording):
    """Record of one run of a model on an example, with some modules watched.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It is run in evaluation mode without gradients, and restored afterwards.
    example_input : Tensor or tuple
        Arguments of the model. A tensor of shape (N, C, ...) stands for a single argument.
    watched : mapping of str to torch.nn.Module
        Strided operations by name. Layers that resize are always watched.

    Attributes
    ----------
    steps : list of Step
        Two for each call of a watched module: the size that it reads, and how it changes the size.
    calls : list of Call
        A single call, for all but the layers that resize.

    Raises
    ------
    TypeError, ValueError
        If `Trace` would refuse an argument, except that the model need not be traceable.
    """

    def __init__(
        self, model: nn.Module, example_input: Any, watched: Mapping[str, nn.Module] | None = None
    ) -> None:
        arguments = checked_example(model, example_input)
        super().__init__(arguments)
        self._versions: dict[Step, int | None] = {}
        self._in_layers = 0
        layers = {
            name: module for name, module in model.named_modules() if isinstance(module, Resize)
        }
        with evaluation(model), plans_met(model), counted() as counter, ExitStack() as hooks:
            for name, module in {**layers, **(watched or {})}.items():
                watch = _Watch(self, name, counter.get_total_flops)
                for hook in (
                    module.register_forward_pre_hook(watch.before, with_kwargs=True),
                    module.register_forward_hook(watch.after, with_kwargs=True),
                ):
                    hooks.callback(hook.remove)
            try:
                model(*arguments)
            except Exception as error:
                where = place_of(error, model)
                raise cannot_run(model, arguments, f"in {where}: {error}") from error
            # The counter counts a multiply-add as two operations.
            rest = (counter.get_total_flops() - self._in_layers) // 2 // self._batch
        self.calls.append(Call("the model without its layers", rest, None, False))

    def is_overwritten(self, step: Step) -> bool:
        """Return whether the tensor that a step reads is written to later."""
        assert isinstance(step.reads, torch.Tensor)
        version = self._versions[step]
        return version is None or version_of(step.reads) != version

    def add(self, step: Step, version: int | None) -> None:
        """Record a call of a module.

        Parameters
        ----------
        step : Step
        version : int or None
            Version of the tensor that the step reads.
        """
        assert step.before is not None
        self.steps += [step.before, step]
        self._versions[step] = version

    def add_resize(self, call: ResizeCall, batch: int, counted: int) -> None:
        """Record a call of a layer.

        Parameters
        ----------
        call : ResizeCall
        batch : int
            Batch size of the call. It is larger than the model's if it counts parts of images, or
            frames.
        counted : int
            Operations of the call, which do not belong to the rest of the model.
        """
        self.resizes += [call] * max(1, batch // self._batch)
        self._in_layers += counted


class _Watch:
    """The hooks that run before and after a module.

    Parameters
    ----------
    observation : Observation
    name : str
    count : callable
        Function that returns the number of operations so far.
    """

    def __init__(self, observation: Observation, name: str, count: Callable[[], int]) -> None:
        self._observation, self._name, self._count = observation, name, count
        self._begun = 0

    def before(self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        self._begun = self._count()

    def after(
        self, module: nn.Module, args: tuple[Any, ...], options: dict[str, Any], output: Any
    ) -> None:
        given = _given(args, options)
        x, y = given["x"], output[0] if isinstance(output, tuple) else output
        rule: Rule
        if isinstance(module, DiffStride | SpectralPool):
            rule, rank = resizing_rule(module, x.shape), x.ndim - 2
            if rule is None:
                return  # It resizes axes other than spatial ones, and the counter counts its cost.
        else:
            sliding = sliding_kernel_of(module)
            assert sliding is not None
            rank = len(sliding.stride)
            rule = sliding_rule_of(module, tuple(x.shape[-rank:]), tuple(y.shape[-rank:]))
        size, output_size = tuple(x.shape[-rank:]), tuple(y.shape[-rank:])
        begin = Step(None, self._name, None, Constant(size), size, size)
        step = Step(begin, self._name, module, rule, size, output_size, x)
        self._observation.add(step, version_of(x))
        if isinstance(module, DiffStride | SpectralPool):
            call = ResizeCall(
                step, y.shape[-rank - 1], given.get("conv"), given.get("method", "auto")
            )
            self._observation.add_resize(
                call, batch=math.prod(y.shape[: -rank - 1]), counted=self._count() - self._begun
            )


def _given(args: tuple[Any, ...], options: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a module, the first one as ``x``."""
    if not args:
        first, *_ = options
        args, options = (options[first],), {k: v for k, v in options.items() if k != first}
    return {**dict(zip(("x", "conv"), args, strict=False)), **options}


class ObservedRehearsal(Rehearsal):
    """Rehearsal of a model that is run without a trace."""

    def _run(self) -> None:
        self._model(*self._arguments)

    def _failed(self, error: Exception) -> tuple[str, str]:
        return place_of(error, self._model), str(error)


def place_of(error: Exception, model: nn.Module) -> str:
    """Return the name of the innermost module of a model in which an error was raised."""
    names = {module: name for name, module in model.named_modules() if name}
    found = type(model).__name__
    for frame, _ in traceback.walk_tb(error.__traceback__):
        module = frame.f_locals.get("self")
        if isinstance(module, nn.Module):
            found = names.get(module, found)
    return found
