"""Tracing a model once: the cost of each call, and what the size of each map depends on.

The size of a feature map is the size of the input, changed step by step: by a kernel that slides
with a stride, by padding, by a DiffStride layer. `Trace` finds these steps with torch.fx. Surgery
compares the steps of branches that meet again. The cost of a network at other strides is computed
along these steps.
"""

from __future__ import annotations

import copy
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from diffstride_backends.torch_backend import is_distributed
from diffstride_backends.torch_private import has_hooks, version_of
from torch import fx, nn
from torch.nn import functional
from torch.optim.swa_utils import AveragedModel

from diffstride_core import NothingToCropWarning
from diffstride_core.arguments import normalized_axes
from diffstride_core.plan import Plan
from diffstride_torch.joining import AnyConv, PooledConvolution, Resize
from diffstride_torch.modules import DiffStride, SpectralPool, check_module, is_sharded
from diffstride_torch.sliding import (
    CONVOLUTIONS,
    SLIDING,
    Size,
    SlidingKernel,
    in_numbers,
    per_axis,
    sliding_kernel_of,
    sliding_rule_of,
)

if TYPE_CHECKING:
    from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Shift:
    """Padding or cropping by fixed amounts."""

    amounts: Size

    def resize(self, size: Size) -> Size:
        """Return the output's size."""
        return tuple(n + amount for n, amount in zip(size, self.amounts, strict=True))

    def rate(self, axis: int) -> float:
        """Return the rate at which the output's size grows with the input's."""
        return 1.0


@dataclass(frozen=True)
class Scale:
    """Interpolation by a factor."""

    factors: tuple[float, ...]

    def resize(self, size: Size) -> Size:
        """Return the output's size."""
        return tuple(math.floor(n * f) for n, f in zip(size, self.factors, strict=True))

    def rate(self, axis: int) -> float:
        """Return the rate at which the output's size grows with the input's."""
        return self.factors[axis]


@dataclass(frozen=True)
class Constant:
    """A size that does not depend on the input's, for example after adaptive pooling."""

    size: Size

    def resize(self, size: Size) -> Size:
        """Return the output's size."""
        return self.size


@dataclass(frozen=True)
class Learnt:
    """A DiffStride layer."""

    layer: DiffStride


@dataclass(frozen=True)
class Pooled:
    """A spectral pooling layer, whose stride is fixed."""

    layer: SpectralPool
    factors: tuple[float, ...]

    def rate(self, axis: int) -> float:
        """Return the rate at which the output's size grows with the input's."""
        return self.factors[axis]


Rule: TypeAlias = SlidingKernel | Shift | Scale | Constant | Learnt | Pooled | None
"""How a size changes; None if that is unknown."""


@dataclass(frozen=True, eq=False)
class Step:
    """One change of size on the way from the input to a feature map.

    Attributes
    ----------
    before : Step or None
        The step before this one, or None for the input.
    name : str
        Qualified name of the module, or name of the function and of the module that calls it.
    module : torch.nn.Module or None
        The module, or None for a function.
    rule : Rule
    input_size, output_size : tuple of int
        Sizes for the example input.
    reads : torch.fx.Node, Tensor or None
        The tensor that the step reads, or the node that returns it. None for an input of a traced
        model.
    is_used : bool
        Whether the model's output depends on the step. Always True without a trace.
    is_averaged : bool
        Whether only the mean of the step's output over all positions matters, as far as the trace
        shows. Always False without a trace.
    """

    before: Step | None
    name: str
    module: nn.Module | None
    rule: Rule
    input_size: Size
    output_size: Size
    reads: fx.Node | torch.Tensor | None = None
    is_used: bool = True
    is_averaged: bool = False

    def __getstate__(self) -> dict[str, Any]:
        # A node leads to its graph, which cannot be loaded again.
        return {**vars(self), "reads": None}

    def way(self) -> list[Step]:
        """Return the steps that decide the size after this one, including this one."""
        if isinstance(self.rule, Constant):
            return []  # No step decides the size.
        return [*([] if self.before is None else self.before.way()), self]


@dataclass(frozen=True)
class Meeting:
    """A call that joins branches of equal size, such as an addition or a concatenation."""

    name: str
    branches: tuple[Step | None, ...]


@dataclass(frozen=True)
class Call:
    """A call that costs multiply-adds.

    Attributes
    ----------
    name : str
        Name, as in `Step`.
    multiply_adds : int
        Multiply-adds per image, for the example input.
    at : Step or None
        The step that decides the size of the output.
    is_per_position : bool
        Whether the cost is proportional to the number of positions of the output.
    """

    name: str
    multiply_adds: int
    at: Step | None
    is_per_position: bool


@dataclass(frozen=True)
class ResizeCall:
    """A call of a layer that resizes.

    Attributes
    ----------
    step : Step
    channels : int
        Channels of the output.
    conv : torch.nn.Module or None
        The convolution that the layer is called with, and whose output it resizes.
    method : str
        How to evaluate the layer and the convolution.
    """

    step: Step
    channels: int
    conv: AnyConv | None
    method: str


class Recording:
    """Record of one run of a model on an example: the sizes of its maps and the cost of its calls.

    Parameters
    ----------
    arguments : tuple
        Arguments of the model, from `checked_example`.

    Attributes
    ----------
    input_size : tuple of int
        Spatial size of the model's first argument.
    calls : list of Call
    resizes : list of ResizeCall
    steps : list of Step
        Changes of size. All three lists are in the order of execution.
    """

    def __init__(self, arguments: tuple[Any, ...]) -> None:
        shape = arguments[0].shape
        self._batch, self.input_size = shape[0], tuple(shape[2:])
        self.calls: list[Call] = []
        self.resizes: list[ResizeCall] = []
        self.steps: list[Step] = []

    @property
    def layers(self) -> list[DiffStride]:
        """The DiffStride layers, each once."""
        learnt = [step.rule.layer for step in self.steps if isinstance(step.rule, Learnt)]
        return list(dict.fromkeys(learnt))

    def size_at(self, step: Step | None) -> Size:
        """Return the size of a map after a step, or the size of the input."""
        return self.input_size if step is None else step.output_size

    def is_overwritten(self, step: Step) -> bool:
        """Return whether something writes to the tensor that a step reads."""
        raise NotImplementedError


_LASTING = ("_batch", "input_size", "calls", "resizes", "steps", "meetings")


class Trace(Recording):
    """A model traced with torch.fx and run once on an example.

    Parameters
    ----------
    model : torch.nn.Module
        The model. It is run in evaluation mode without gradients, and restored afterwards.
    example_input : Tensor or tuple
        Arguments of the model. A tensor of shape (N, C, ...) stands for a single argument.

    Attributes
    ----------
    steps : list of Step
        All changes of size.
    meetings : list of Meeting

    Raises
    ------
    TypeError
        If the model is not a module, or the example is not a tensor or a tuple that begins with
        one.
    ValueError
        If torch.fx cannot trace the model, or the model cannot run on the example, or is
        distributed.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        arguments = checked_example(model, example_input)
        super().__init__(arguments)
        self.meetings: list[Meeting] = []
        with evaluation(model), plans_met(model):
            traced = traced_graph(model)
            recorder = _Recorder(traced)
            try:
                recorder.run(*arguments)
            except Exception as error:
                raise cannot_run(model, arguments, error) from error
        # A layer may have several names: as part of a convolution it has one, and it may be called
        # first under another.
        self._modules = dict(traced.named_modules(remove_duplicate=False))
        self._shapes = recorder.shapes
        self._at: dict[fx.Node, Step | None] = {}
        self._calls_of: Counter[str] = Counter()
        self._used = self._used_nodes(traced.graph)
        self._averaged = self._averaged_nodes(traced.graph)
        for node in traced.graph.nodes:
            self._visit(node, recorder.multiply_adds.get(node, 0))

    def __getstate__(self) -> dict[str, Any]:
        # What costs are computed from. The graph cannot be loaded again.
        return {name: value for name, value in vars(self).items() if name in _LASTING}

    def is_overwritten(self, step: Step) -> bool:
        """Return whether some call writes to the tensor that a step reads."""
        assert isinstance(step.reads, fx.Node)
        return any(self._overwrites(user) for user in step.reads.users)

    def _used_nodes(self, graph: fx.Graph) -> set[fx.Node]:
        """Return the nodes that the output depends on, and those that write to a tensor."""
        used: set[fx.Node] = set()
        for node in reversed(graph.nodes):
            if node.op == "output" or self._overwrites(node) or not used.isdisjoint(node.users):
                used.add(node)
        return used

    def _averaged_nodes(self, graph: fx.Graph) -> set[fx.Node]:
        """Return nodes whose output is read only by means, possibly after linear operations."""
        averaged: set[fx.Node] = set()

        def is_mean(node: fx.Node) -> bool:
            module = self._modules[str(node.target)] if node.op == "call_module" else None
            if _takes_mean(node, module, self._shapes):
                return True
            return node in averaged and _is_per_position(module)

        for node in reversed(graph.nodes):
            if node.users and all(map(is_mean, node.users)):
                averaged.add(node)
        return averaged

    def _overwrites(self, node: fx.Node) -> bool:
        if node.op == "call_module":
            return bool(getattr(self._modules[str(node.target)], "inplace", False))
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", "")
        in_place = name.endswith("_") or target in _IN_PLACE_OPERATORS
        return in_place or bool(node.kwargs.get("inplace"))

    def _visit(self, node: fx.Node, multiply_adds: int) -> None:
        if node.op == "placeholder":
            size = self._shapes.get(node, ())[2:]
            self._at[node] = None
            if node in self._shapes and size != self.input_size:
                # An input other than the first, with a size of its own.
                rule = Constant(size)
                given = Step(None, str(node.target), None, rule, self.input_size, size)
                self._at[node] = given
                self.steps.append(given)
            return
        sources = [source for source in node.all_input_nodes if source in self._at]
        if not sources:
            return
        if node not in self._shapes:
            if _called(node) in (getattr, "size"):
                return
            # A tuple of parts of a map, or the model's output.
            self._at[node] = self._at[sources[0]]
            self._shapes[node] = self._shapes.get(sources[0], ())
            return
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        name = _name(node, self._calls_of)
        step = self._at[node] = self._step_at(node, name, module, sources)
        if step is not None and step.module is module and isinstance(step.rule, Learnt | Pooled):
            self.resizes.append(self._resize_call(node, step))
        elif multiply_adds:
            per_position = isinstance(module, _PER_POSITION) or node.target in _PER_POSITION_CALLS
            cost = multiply_adds // self._batch
            self.calls.append(Call(name, cost, step, per_position))

    def _resize_call(self, node: fx.Node, step: Step) -> ResizeCall:
        given = arguments_of(node, ("x", "conv"))
        conv = given.get("conv")
        if conv is not None:
            conv = self._modules[str(conv.target)]
        return ResizeCall(step, self._shapes[node][1], conv, given.get("method", "auto"))

    def _step_at(
        self, node: fx.Node, name: str, module: nn.Module | None, sources: list[fx.Node]
    ) -> Step | None:
        """Return the last step on the way to a call's output: a new one if the size changes."""
        output, before = self._shapes[node], self._at[sources[0]]
        rule = _rule(node, module, self._shapes)
        if rule is None and (like := self._map_of_size(node)) is not None:
            return self._at[like]
        if rule is None:
            same = [source for source in sources if self._has_positions_of(output, source)]
            if len(same) > 1:
                self.meetings.append(Meeting(name, tuple(self._at[s] for s in same)))
            if same:
                return self._at[same[0]]
            if _keeps_positions(node, module):
                return before
            if len(output) < 3 or math.prod(output[2:]) == 1:
                rule = Constant(output[2:])
        elif output[2:] == self.size_at(before) and not _can_change(rule):
            return before
        size, read = self.size_at(before), self._shapes.get(sources[0], ())[2:]
        if isinstance(rule, SlidingKernel) and size != read:
            # Tokens have become a map again, in a way that the trace does not follow.
            before = Step(before, name, None, None, size, read, sources[0])
            self.steps.append(before)
            size = read
        facts = node in self._used, node in self._averaged
        step = Step(before, name, module, rule, size, output[2:], sources[0], *facts)
        self.steps.append(step)
        return step

    def _map_of_size(self, node: fx.Node) -> fx.Node | None:
        """Return the map whose size an interpolation takes as its target, or None."""
        if node.target is not functional.interpolate:
            return None
        maps: set[fx.Node] = set()
        to_visit = [source for source in node.all_input_nodes if source not in self._at]
        while to_visit:
            for source in to_visit.pop().all_input_nodes:
                (maps.add if source in self._at else to_visit.append)(source)
        if len(maps) != 1:
            return None
        (found,) = maps
        return found if self.size_at(self._at[found]) == self._shapes[node][2:] else None

    def _has_positions_of(self, output: Size, source: fx.Node) -> bool:
        """Return whether an output has as many positions as one of its inputs."""
        if source not in self._shapes:  # an argument that is not given, such as a mask
            return False
        shape, size = self._shapes[source], self.size_at(self._at[source])
        if output == shape:
            return True
        if not size:
            return len(output) < 3
        return output[-len(size) :] == shape[-len(size) :] == size


def check_model(model: nn.Module) -> None:
    """Raise TypeError if a model is not a module, ValueError if it is distributed.

    A distributed model cannot be copied, and its parts can be called only through it.
    """
    check_module(model)
    if any(map(is_sharded, model.modules())) or any(map(is_distributed, model.parameters())):
        raise ValueError(
            "model must not be distributed by fully_shard, got a distributed "
            f"{type(model).__name__}: give the model before fully_shard, or another one that has "
            "loaded its full state"
        )


def copied(model: nn.Module, purpose: str) -> nn.Module:
    """Return a copy of a model. Raise ValueError if it cannot be copied."""
    try:
        return copy.deepcopy(model)
    except Exception as error:
        raise ValueError(
            f"model {type(model).__name__} cannot be copied, which {purpose} requires: {error}"
        ) from error


def unwrapped(model: nn.Module) -> nn.Module:
    """Return a model without PyTorch's wrappers, which torch.fx cannot trace."""
    while True:
        if isinstance(model, _WRAPPERS):
            model = model.module
        # The wrapper of torch.compile. Importing its class would slow down all who have none.
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel, AveragedModel)


def checked_example(model: nn.Module, example_input: Any) -> tuple[Any, ...]:
    """Return the checked arguments of a model; see `Trace`."""
    check_model(model)
    arguments = example_input if isinstance(example_input, tuple) else (example_input,)
    if not arguments or not isinstance(arguments[0], torch.Tensor):
        kind = type(example_input).__name__
        if arguments and example_input is arguments:
            kind += f" that begins with a {type(arguments[0]).__name__}"
        raise TypeError(
            f"example_input must be a tensor, or a tuple of arguments that begins with one, got a "
            f"{kind}"
        )
    if arguments[0].ndim < 3 or 0 in arguments[0].shape:
        raise ValueError(
            "example_input must have the shape (N, C, ...) with one to three spatial axes and no "
            f"axis of size 0, got {tuple(arguments[0].shape)}"
        )
    return arguments


def cannot_run(model: nn.Module, arguments: tuple[Any, ...], error: object) -> ValueError:
    """Return the error for a model that fails on its example."""
    # torch.fx appends its own trace to the message.
    reason = str(error).partition("\n\nWhile executing ")[0]
    return ValueError(
        f"model {type(model).__name__} cannot run on example_input of shape "
        f"{tuple(arguments[0].shape)}: {reason}"
    )


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode without gradients, and restore it afterwards.

    The mode of every module, the buffers and the random number generators are restored.
    """
    training = {module: module.training for module in model.modules()}
    # Some models count or collect something even in evaluation mode.
    buffers = [(buffer, version_of(buffer), buffer.clone()) for buffer in model.buffers()]
    model.eval()
    try:
        with _generators_kept(model), torch.no_grad():
            yield
    finally:
        for module, mode in training.items():
            module.training = mode
        with torch.no_grad():
            for buffer, version, values in buffers:
                if version_of(buffer) != version:
                    buffer.copy_(values)


@contextmanager
def _generators_kept(model: nn.Module) -> Iterator[None]:
    devices = {tensor.device for tensor in (*model.parameters(), *model.buffers())}
    with ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng([]))
        for device in devices:
            if device.type not in ("cpu", "meta"):
                stack.enter_context(torch.random.fork_rng([device], device_type=device.type))
        yield


def swap_modules(model: nn.Module, new: Mapping[nn.Module, nn.Module]) -> Callable[[], None]:
    """Replace modules of a model with others, and return a function that undoes this."""
    places = [
        (parent, name, child)
        for parent in model.modules()
        for name, child in parent._modules.items()
        if child is not None and child in new
    ]
    for parent, name, child in places:
        setattr(parent, name, new[child])

    def undo() -> None:
        for parent, name, child in places:
            setattr(parent, name, child)

    return undo


@contextmanager
def plans_met(model: nn.Module) -> Iterator[dict[nn.Module, list[Plan]]]:
    """Record the plans of a model's layers in a context; see `Resize.plans_met`."""
    with ExitStack() as stack:
        yield {
            layer: stack.enter_context(layer.plans_met())
            for layer in model.modules()
            if isinstance(layer, Resize)
        }


class Rehearsal:
    """A model that can be run on an example again and again, with other strides.

    Parameters
    ----------
    model, example_input
        Model and example of a `Recording` that was made.
    """

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        self._model, self._arguments = model, checked_example(model, example_input)

    def failure(self) -> tuple[str, str] | None:
        """Run the model, and return the call that fails.

        Returns
        -------
        name, error : str
            Name and error of the call that fails at the present strides. None in place of both if
            no call fails.
        """
        with evaluation(self._model), plans_met(self._model), warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingToCropWarning)
            try:
                self._run()
            except Exception as error:
                return self._failed(error)
        return None

    def _run(self) -> None:
        raise NotImplementedError

    def _failed(self, error: Exception) -> tuple[str, str]:
        raise NotImplementedError


class TracedRehearsal(Rehearsal):
    """Rehearsal of a model that torch.fx can trace. It is traced once."""

    def __init__(self, model: nn.Module, example_input: Any) -> None:
        super().__init__(model, example_input)
        with evaluation(model):
            self._runner = _Runner(traced_graph(model))

    def _run(self) -> None:
        self._runner.run(*self._arguments)

    def _failed(self, error: Exception) -> tuple[str, str]:
        # Drop the lines that torch.fx adds.
        return self._runner.name, str(error).partition("\n\nWhile executing")[0]


class _Runner(fx.Interpreter):
    """Interpreter that knows the name of the call that it is running."""

    name: str

    def run(self, *args: Any, **options: Any) -> Any:
        self._calls_of: Counter[str] = Counter()
        return super().run(*args, **options)

    def run_node(self, n: fx.Node) -> Any:
        self.name = _name(n, self._calls_of)
        return super().run_node(n)


class UntraceableError(ValueError):
    """Error for a model that torch.fx cannot trace."""


class _Tracer(fx.Tracer):
    """Tracer that keeps calls of some classes of modules whole."""

    def __init__(self, whole: tuple[type[nn.Module], ...]) -> None:
        super().__init__()
        self._whole = (DiffStride, SpectralPool, *whole)

    def create_arg(self, a: Any) -> Any:
        # The convolution that is passed to a layer.
        if isinstance(a, nn.Module):
            return self.create_node("get_attr", self.path_of_module(a), (), {})
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if isinstance(m, self._whole):
            return True
        if isinstance(m, PooledConvolution):
            return False  # Even if it is parametrised, when its class counts as PyTorch's.
        if isinstance(m, SLIDING) and not any(m.children()):
            return True  # Subclasses too: they may compute padding from sizes.
        return super().is_leaf_module(m, module_qualified_name)


def traced_graph(model: nn.Module, whole: tuple[type[nn.Module], ...] = ()) -> fx.GraphModule:
    """Return a model traced with torch.fx.

    Parameters
    ----------
    model : torch.nn.Module
    whole : tuple of type
        Classes of modules whose calls are kept whole, besides the layers that resize and PyTorch's
        own modules.

    Raises
    ------
    UntraceableError
        If torch.fx cannot trace the model.
    """
    # On its own it would have no name, under which it is passed to its layer.
    root = nn.Sequential(model) if isinstance(model, PooledConvolution) else model
    try:
        return fx.GraphModule(root, _Tracer(whole).trace(root))
    except Exception as error:
        hint = "" if unwrapped(model) is model else "; give the model before it is wrapped"
        raise UntraceableError(
            f"model {type(model).__name__} cannot be traced by torch.fx, which runs it without "
            f"values: {error}{hint}"
        ) from error


class _NoModules(nullcontext[None]):
    """Takes the place of the counter's tracker of modules, of which only the total is needed.

    Without gradients, the tracker fails on a module that is called with a view of a parameter.
    """

    parents = frozenset({"Global"})


@contextmanager
def counted() -> Iterator[FlopCounterMode]:
    """Count the operations in a context. A multiply-add counts as two."""
    # Imported on first use, since it takes longer to import than everything else here.
    from torch.utils.flop_counter import FlopCounterMode

    # The counter does not see into fused attention.
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        counter = FlopCounterMode(display=False)
        counter.mod_tracker = _NoModules()  # type: ignore[assignment]
        with counter:
            yield counter
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


class _Recorder(fx.Interpreter):
    """Interpreter that records every tensor's shape and every call's multiply-adds."""

    _counter: FlopCounterMode

    def __init__(self, module: fx.GraphModule) -> None:
        super().__init__(module)
        self.shapes: dict[fx.Node, Size] = {}
        self.multiply_adds: dict[fx.Node, int] = {}

    def run(self, *args: Any, **options: Any) -> Any:
        with counted() as self._counter:
            return super().run(*args, **options)

    def run_node(self, n: fx.Node) -> Any:
        before = self._counter.get_total_flops()
        result = super().run_node(n)
        if isinstance(result, torch.Tensor) and n.op != "output":
            self.shapes[n] = tuple(result.shape)
        self.multiply_adds[n] = (self._counter.get_total_flops() - before) // 2
        return result


_IN_PLACE_OPERATORS = {
    getattr(operator, f"i{name}")
    for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "and", "or", "xor")
}


def _name(node: fx.Node, calls_of: Counter[str]) -> str:
    """Return a call's name, with a number if a module has called the same function before."""
    if node.op == "call_module":
        return str(node.target)
    target = node.target
    function = target if isinstance(target, str) else getattr(target, "__name__", node.name)
    owners = list(node.meta.get("nn_module_stack", ()))
    name = f"{function} in {owners[-1]}" if owners else function
    calls_of[name] += 1
    return name if calls_of[name] == 1 else f"{name} ({calls_of[name]})"


def _called(node: fx.Node) -> Any:
    """Return the function or the name of the method that a node calls, or None."""
    return node.target if node.op in ("call_function", "call_method") else None


def _can_change(rule: Rule) -> bool:
    """Return whether a rule that has kept one size may change another one."""
    if isinstance(rule, SlidingKernel):
        return max(rule.stride) > 1
    return isinstance(rule, Learnt | Pooled | Constant)


_PADDINGS = (
    *(nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d),
    *(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d),
    *(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d),
    *(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d),
)
_ADAPTIVE_MEANS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
_ADAPTIVE_POOLS = (
    *_ADAPTIVE_MEANS,
    *(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d),
)
_ADAPTIVE_MEAN_CALLS = {
    *(functional.adaptive_avg_pool1d, functional.adaptive_avg_pool2d),
    functional.adaptive_avg_pool3d,
}
_ADAPTIVE_POOL_CALLS = {
    *_ADAPTIVE_MEAN_CALLS,
    *(functional.adaptive_max_pool1d, functional.adaptive_max_pool2d),
    functional.adaptive_max_pool3d,
}
_PER_POSITION = (*CONVOLUTIONS, nn.Linear)
_CONVOLUTION_CALLS = {functional.conv1d: 1, functional.conv2d: 2, functional.conv3d: 3}
_PER_POSITION_CALLS = {*_CONVOLUTION_CALLS, functional.linear}
_AVERAGE_CALLS = {
    functional.avg_pool1d: 1,
    functional.avg_pool2d: 2,
    functional.avg_pool3d: 3,
}
_MAXIMUM_CALLS: dict[Any, int] = {
    **{functional.max_pool1d: 1, functional.max_pool2d: 2, functional.max_pool3d: 3},
    **{torch.max_pool1d: 1, torch.max_pool2d: 2, torch.max_pool3d: 3},
}


def _rule(node: fx.Node, module: nn.Module | None, shapes: dict[fx.Node, Size]) -> Rule:
    """Return how a call changes the size of its input, or None if the call is not a known one."""
    if isinstance(module, DiffStride | SpectralPool):
        return resizing_rule(module, shapes[arguments_of(node, ("x",))["x"]])
    output = shapes[node][2:]
    if isinstance(module, SLIDING) and sliding_kernel_of(module) is not None:
        return sliding_rule_of(module, shapes.get(node.all_input_nodes[0], ())[2:], output)
    if isinstance(module, _ADAPTIVE_POOLS) or node.target in _ADAPTIVE_POOL_CALLS:
        return Constant(output)
    (source, *_) = node.all_input_nodes
    size = shapes.get(source, ())[2:]
    if _called(node) in _REDUCTIONS and _reduces_all_positions(node, len(shapes[source])):
        return Constant(output)
    if node.target is functional.pad and _has_nodes(node.args[1:]):
        return None
    if isinstance(module, _PADDINGS) or node.target is functional.pad:
        return Shift(tuple(m - n for m, n in zip(output, size, strict=True)))
    if isinstance(module, nn.Upsample):
        return _interpolation(output, module.scale_factor)
    if node.target is functional.interpolate:
        given = arguments_of(node, ("input", "size", "scale_factor"))
        if _has_nodes((given.get("size"), given.get("scale_factor"))):
            return None
        return _interpolation(output, given.get("scale_factor"))
    return _called_kernel(node, shapes)


def _is_per_position(module: nn.Module | None) -> bool:
    """Return whether a module is known to be linear and to keep the positions apart."""
    if module is None or has_hooks(module):
        return False
    if type(module) in CONVOLUTIONS:
        sliding = sliding_kernel_of(module)
        return (
            sliding is not None
            and {*sliding.kernel, *sliding.stride} == {1}
            and not any(sliding.padding)
        )
    return type(module) is nn.Identity


def _takes_mean(node: fx.Node, module: nn.Module | None, shapes: dict[fx.Node, Size]) -> bool:
    """Return whether a call is known to take the mean over all positions."""
    is_module = type(module) in _ADAPTIVE_MEANS and module is not None and not has_hooks(module)
    if is_module or node.target in _ADAPTIVE_MEAN_CALLS:
        return math.prod(shapes[node][2:]) == 1
    if _called(node) not in ("mean", torch.mean):
        return False
    (source, *_) = node.all_input_nodes
    return _reduces_all_positions(node, len(shapes[source]))


def _reduces_all_positions(node: fx.Node, rank: int) -> bool:
    given = arguments_of(node, ("input", "dim"))
    dims = given.get("dim", given.get("axis"))
    if dims is None or _has_nodes(dims):
        return dims is None
    return {dim % rank for dim in per_axis(dims, 1)} >= set(range(2, rank))


def resizing_rule(module: DiffStride | SpectralPool, shape: Size) -> Rule:
    """Return how a layer changes sizes, or None if it resizes the batch or the channels."""
    axes = normalized_axes(module.settings.axes, shape)
    if min(axes) < 2 - len(shape):
        return None  # An axis of the batch or the channels.
    if isinstance(module, DiffStride):
        return Learnt(module)
    strides = module.stride * (len(axes) // len(module.stride))
    factors = [1.0] * (len(shape) - 2)
    for axis, stride in zip(axes, strides, strict=True):
        factors[axis] = 1 / stride
    return Pooled(module, tuple(factors))


def _interpolation(output: Size, factor: Any) -> Rule:
    if factor is None:
        return Constant(output)
    return Scale(tuple(map(float, per_axis(factor, len(output)))))


def _called_kernel(node: fx.Node, shapes: dict[fx.Node, Size]) -> SlidingKernel | None:
    """Return the sliding kernel of a call of a convolution or pooling function, or None."""
    if node.op != "call_function":
        return None
    rank: int
    if node.target in _CONVOLUTION_CALLS:
        rank = _CONVOLUTION_CALLS[node.target]
        given = arguments_of(node, ("input", "weight", "bias", "stride", "padding", "dilation"))
        kernel: Any = shapes[given["weight"]][2:]
        given = {"stride": 1, **given}
    elif node.target in _AVERAGE_CALLS:
        rank = _AVERAGE_CALLS[node.target]
        given = arguments_of(node, ("input", "kernel_size", "stride", "padding", "ceil_mode"))
        kernel = given["kernel_size"]
    elif node.target in _MAXIMUM_CALLS:
        rank = _MAXIMUM_CALLS[node.target]
        names = ("input", "kernel_size", "stride", "padding", "dilation", "ceil_mode")
        given = arguments_of(node, names)
        kernel = given["kernel_size"]
    else:
        return None
    stride, padding = given.get("stride"), in_numbers(given.get("padding", 0), rank)
    if padding is None or _has_nodes((kernel, stride, padding)):
        return None
    return SlidingKernel(
        per_axis(kernel, rank),
        per_axis(kernel if stride is None else stride, rank),
        padding,
        per_axis(given.get("dilation", 1), rank),
        bool(given.get("ceil_mode", False)),
    )


def _has_nodes(arguments: Any) -> bool:
    """Return whether arguments hold values that the model computes, usually sizes of maps."""
    found: list[fx.Node] = []
    fx.node.map_arg(arguments, found.append)
    return bool(found)


def arguments_of(node: fx.Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the arguments of a call by name, given the names in order."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


_REDUCTIONS = {"mean", "sum", "amax", torch.mean, torch.sum, torch.amax}
_KEEPING_MODULES = (nn.Linear, nn.LayerNorm)
_KEEPING_CALLS = {
    *("permute", "transpose", "movedim"),
    *(torch.permute, torch.transpose, torch.movedim, functional.linear, functional.layer_norm),
}


def _keeps_positions(node: fx.Node, module: nn.Module | None) -> bool:
    """Return whether a call keeps the positions, even if it mixes channels or permutes axes."""
    return isinstance(module, _KEEPING_MODULES) or _called(node) in _KEEPING_CALLS
