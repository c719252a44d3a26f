"""Putting DiffStride into existing models: strided operations are replaced, weights are kept."""

from __future__ import annotations

import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from diffstride_core import NothingToCropWarning
from diffstride_core.arguments import Limits
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import checked_placement
from diffstride_core.plan import Plan
from diffstride_core.planning import never_cropped, plan_diff_stride, size_jumps
from diffstride_core.settings import Settings, make_settings
from diffstride_torch.conv_modules import DiffStrideConv
from diffstride_torch.modules import DiffStride, DiffStride1d, DiffStride2d, DiffStride3d
from diffstride_torch.network.costs import recorded_multiply_adds
from diffstride_torch.network.downsampling import (
    AntiAliasingSpectralPool,
    counterpart_of,
    is_pointwise,
    why_not_before,
    why_not_replaceable,
    with_layer,
)
from diffstride_torch.network.naming import (
    modules_of,
    modules_that_share,
    modules_to_replace,
    some_of,
    strided_modules,
)
from diffstride_torch.network.observing import Observation, ObservedRehearsal
from diffstride_torch.network.tracing import (
    Recording,
    Rehearsal,
    Step,
    Trace,
    TracedRehearsal,
    UntraceableError,
    checked_example,
    swap_modules,
)
from diffstride_torch.shared_call import SharedCall
from diffstride_torch.sliding import Size, SlidingKernel, sliding_kernel_of

_LAYERS: dict[int, type[DiffStride]] = {1: DiffStride1d, 2: DiffStride2d, 3: DiffStride3d}


@dataclass(frozen=True)
class Replaced:
    """An operation that was replaced.

    Attributes
    ----------
    name, operation : str
        Qualified name and class of the operation.
    stride : tuple of float
        Stride of the operation, which is the initial stride of the layer.
    layer : DiffStride
        The layer. Branches that meet again share one.
    placement : {"before", "after"} or None
        Where the layer is, or None if it takes the place of a pooling.
    reason : str or None
        Why the layer comes after the operation, if "before" was asked for.
    input_size, output_size : tuple of int
        Sizes of the layer for the example input.
    never_cropped : bool
        Whether an axis keeps its size for every stride.
    only_averaged : bool
        Whether only the means of the layer's outputs matter, on which its stride has no influence.
        Always False if the model was not traced.
    """

    name: str
    operation: str
    stride: tuple[float, ...]
    layer: DiffStride
    placement: str | None
    reason: str | None
    input_size: Size
    output_size: Size
    never_cropped: bool
    only_averaged: bool


@dataclass(frozen=True)
class Kept:
    """An operation that was not replaced, and why."""

    name: str
    operation: str
    reason: str

    def __str__(self) -> str:
        """Return the entry as a line of text."""
        return f"{self.name} ({self.operation}): {self.reason}"


@dataclass(frozen=True)
class Break:
    """A call that fails once strides move.

    Attributes
    ----------
    name : str
        Qualified name of the module, or name of the function and of the module that calls it.
        Without a trace, the name of the innermost module in which the call fails.
    error : str
        Message of the exception.
    layers : tuple of DiffStride
        The layers whose strides, each moved alone, make the call fail. If no single layer does,
        all layers that were moved.
    """

    name: str
    error: str
    layers: tuple[DiffStride, ...]


@dataclass(frozen=True)
class ReplacementReport:
    """Report of `replace_downsampling`. Print it to read it.

    Attributes
    ----------
    replaced : tuple of Replaced
        Replaced operations, in the order of execution.
    kept : tuple of Kept
        Strided operations that were not replaced, in the order of execution.
    layers : tuple of DiffStride
        The new layers, each once.
    breaks : tuple of Break
        Calls that fail when strides move. To find them, the model is run on the example with the
        strides of one layer moved at a time, and the first call that fails is listed. Hold the
        strides of such layers, or change the call.
    multiply_adds_before, multiply_adds_after : int
        Multiply-adds of the whole model per image.
    """

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]
    layers: tuple[DiffStride, ...]
    breaks: tuple[Break, ...]
    multiply_adds_before: int
    multiply_adds_after: int

    @property
    def never_cropped(self) -> tuple[str, ...]:
        """Names of the operations whose layer cannot crop some axis at these sizes."""
        return tuple(done.name for done in self.replaced if done.never_cropped)

    def __str__(self) -> str:
        """Return the report as text."""
        numbers = {layer: i for i, layer in enumerate(self.layers, start=1)}
        operations, layers = _several(self.replaced, "operation"), _several(self.layers, "layer")
        lines = [f"replaced {operations} by {layers}:"]
        lines += [f"  {_line(done, numbers[done.layer])}" for done in self.replaced]
        if self.kept:
            lines.append(f"kept {_several(self.kept, 'strided operation')}:")
            lines += [f"  {kept}" for kept in self.kept]
        if self.breaks:
            lines.append("fails once strides move:")
        for place in self.breaks:
            which = ", ".join(str(numbers[layer]) for layer in place.layers)
            lines.append(f"  {place.name}, by layer {which}: {place.error}")
        before, after = self.multiply_adds_before, self.multiply_adds_after
        unit, scale = ("M", 1e6) if max(before, after) >= 1e6 else ("k", 1e3)
        lines.append(
            f"multiply-adds per image: {before / scale:.1f} {unit} before, "
            f"{after / scale:.1f} {unit} after"
        )
        return "\n".join(lines)


def _several(things: Sequence[object], kind: str) -> str:
    return f"{len(things)} {kind}{'' if len(things) == 1 else 's'}"


def _line(done: Replaced, number: int) -> str:
    sizes = " -> ".join("x".join(map(str, s)) for s in (done.input_size, done.output_size))
    stride = "x".join(f"{s:g}" for s in done.stride)
    where = "in its place" if done.placement is None else f"{done.placement} it"
    notes = "" if done.reason is None else f" ({done.reason})"
    offset = done.layer.settings.size_offset
    if any(offset):
        notes += f", size offset {'x'.join(f'{n:+d}' for n in offset)}"
    if done.never_cropped:
        notes += ", cannot crop at this size"
    if done.only_averaged and done.layer.strides.requires_grad:
        notes += ", its stride gets no gradient: only a mean over all positions follows"
    return (
        f"{done.name} ({done.operation}, stride {stride}): layer {number} {where}, {sizes}{notes}"
    )


def replace_downsampling(
    model: nn.Module,
    example_input: Any,
    *,
    placement: str | None = None,
    trainable: bool = True,
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    skip: Iterable[str] = (),
    only: Iterable[str] | None = None,
    shared: Iterable[Iterable[str]] = (),
    method: str = "auto",
) -> ReplacementReport:
    """Replace a model's strided convolutions and poolings by stride-1 operations and DiffStride.

    The model is changed in place. Weights keep their values and names, and each layer adds one
    parameter, ``pool.strides``. Each learnt stride starts at the stride that it replaces. In the
    nominal convention every map keeps its size at first; where that size is not the one for N/S,
    the layer gets a `size_offset`.

    Convolutions of the same tensor share one call of the layer before them. Branches that meet
    again, in an addition or a concatenation, share one layer.

    Parameters
    ----------
    model : torch.nn.Module
        The model is traced with torch.fx, unless `only` is given. It is run before and after the
        replacement, in evaluation mode and without gradients. Its modes, buffers and the state of
        random number generators do not change.
    example_input : Tensor, shape (N, C, ...), or tuple
        Arguments of the model.
    placement : {"before", "after"}, optional
        Where to put the layers. The default is "before", unless `method` is "fused" or "separate".

        - "before": convolutions run on the smaller map, at about the cost that they had. Some
          operations get their layer after them all the same: poolings, and convolutions with an
          even kernel, with windows that do not overlap, or with padding other than half the kernel.
        - "after": operations run at the resolution of their input. Pointwise convolutions get their
          layer before them all the same, since the result is equal.
    trainable : bool
        Whether the strides require a gradient. If False, optimisers leave them alone, and the model
        downsamples without aliasing at its own sizes.
    convention, smoothness, limits
        Arguments of the layers; see `DiffStride`. In the other conventions, outputs are larger than
        N/S, and layers have no offset.
    skip : iterable of str
        Qualified names of modules to leave unchanged, with their submodules.
    only : iterable of str, optional
        Qualified names of the modules to replace, as in ``model.named_modules()``. The model is
        then not traced, so models that torch.fx cannot trace are allowed. Layers are shared only
        as `shared` says.
    shared : iterable of iterable of str
        Lists of names in `only`. The modules of a list share one layer. This is necessary for
        branches that meet again.
    method : {"auto", "fused", "separate"}
        How to evaluate convolutions with a layer after them; see `conv_diff_stride`. "fused"
        applies to odd kernels padded by half of their size, with zeros or circularly.

    Returns
    -------
    ReplacementReport
        Which operations were replaced or kept, and where the model would fail.

    Raises
    ------
    TypeError
        If the model is not a module, the example is not a tensor, `trainable` is not a bool, a name
        is not a string, or `shared` does not hold lists.
    ValueError
        If the model has no module of a given name, cannot be traced, cannot run on the example, has
        nothing to replace, or cannot run with the layers' sizes; if a module in `only` is not a
        strided operation, cannot be replaced, or is not called; or if the modules of a list in
        `shared` are not in `only` or cannot share a layer. The model has then not changed.
    """
    if not isinstance(trainable, bool):
        raise TypeError(f"trainable must be True or False, got {trainable!r}")
    options: dict[str, Any] = {
        "trainable": trainable,
        "convention": convention,
        "smoothness": smoothness,
        "limits": limits,
    }
    DiffStride2d(1.0, **options)  # This refuses bad options before any work.
    placement = checked_placement(placement, method)
    device = checked_example(model, example_input)[0].device
    skipped = {m for found in modules_of(model, "skip", skip).values() for m in found.modules()}
    found: _Found
    if only is None:
        if tuple(shared):
            raise ValueError("shared must be empty without only: branches are found by a trace")
        found = _Traced(model, example_input, placement, skipped, options)
    else:
        if skipped:
            raise ValueError("skip must be empty with only, which names all that is replaced")
        named = modules_to_replace(model, only)
        together = modules_that_share(model, shared, named)
        found = _Named(model, example_input, placement, named, together, options)
    before, operations = found.recording, found.operations
    replaced = [done for done in operations.values() if done.group.reason is None]
    if not replaced:
        if strided_modules(nn.Sequential(model)).keys() == {"0"}:
            raise ValueError(
                f"model {type(model).__name__} is itself the operation to replace, and cannot be "
                "replaced in its own place: put it in a torch.nn.Sequential"
            )
        kept = "; ".join(str(kept) for kept in _kept(operations))
        present = sum(isinstance(module, DiffStride) for module in model.modules())
        raise ValueError(
            f"model {type(model).__name__} has no strided operation that can be replaced"
            + (f": {kept}" if kept else "")
            + (f"; DiffStride layers that it has already: {present}" if present else "")
        )
    layers: dict[tuple[_Group, Size], DiffStride] = {}
    new: dict[nn.Module, nn.Module] = {}
    for done in replaced:
        key = done.group.root(), done.size_offset
        if key not in layers:
            layers[key] = _LAYERS[len(done.stride)](
                done.stride, size_offset=done.size_offset, device=device, **options
            )
        done.layer = layers[key]
        assert done.counterpart is not None
        new[done.module] = with_layer(done.counterpart, done.layer, done.placement, method)
    averaged = set(layers.values()) - {done.layer for done in replaced if not done.is_averaged}
    _share_calls(replaced, new)
    undo = swap_modules(model, new)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingToCropWarning)
            after = found.record()
        return ReplacementReport(
            replaced=tuple(_replaced(done, averaged) for done in replaced),
            kept=tuple(_kept(operations)),
            layers=tuple(layers.values()),
            breaks=tuple(_breaks(found.rehearsal(), replaced)),
            multiply_adds_before=recorded_multiply_adds(before),
            multiply_adds_after=recorded_multiply_adds(after),
        )
    except Exception as error:
        undo()
        raise ValueError(
            f"model {type(model).__name__} does not run with the sizes that DiffStride gives and "
            f"was left unchanged; {found.advice}: {error}"
        ) from error


class _Group:
    """Operations that must share a stride, or all keep theirs.

    Attributes
    ----------
    own : str or None
        Why this operation keeps its stride, or None.
    """

    def __init__(self, reason: str | None) -> None:
        self.own = self._shared = reason
        self._parent: _Group | None = None

    def root(self) -> _Group:
        return self if self._parent is None else self._parent.root()

    @property
    def reason(self) -> str | None:
        """Why the operation keeps its stride, possibly because another one does."""
        shared = self.root()._shared
        if self.own is None and shared is not None:
            return f"it shares its stride with an operation that keeps its own: {shared}"
        return self.own

    def join(self, other: _Group) -> None:
        root, other_root = self.root(), other.root()
        if root is not other_root:
            other_root._parent = root
            root._shared = root._shared or other_root._shared


class _Operation:
    """A strided operation of a model, and its replacement.

    Attributes
    ----------
    step : Step
        The step of its first call.
    reads : torch.fx.Node, Tensor or None
        The tensor that it reads, or the node that returns it. None if the operation is called more
        than once, or if the tensor is written to.
    stride : tuple of float
    size_offset : tuple of int
        Size offset of the layer.
    placement : {"before", "after"}
        Placement of the layer.
    why_after : str or None
        Why the layer comes after the operation, if "before" was asked for.
    counterpart : torch.nn.Module or None
        The module that gets the layer: the operation, or a module that computes the same.
    is_used : bool
        Whether the model's output depends on it.
    is_averaged : bool
        Whether only the mean of its layer's output matters.
    group : _Group
    layer : DiffStride
        The layer, once it is made.
    """

    layer: DiffStride

    def __init__(
        self,
        recording: Recording,
        steps: Sequence[Step],
        placement: str,
        skipped: set[nn.Module],
        options: dict[str, Any],
    ) -> None:
        self.step, stride = steps[0], _stride(steps[0])
        assert stride is not None
        self.stride, self.placement, self.why_after = stride, placement, None
        reads = self.step.reads
        is_read_once = len(steps) == 1 and reads is not None
        self.reads = reads if is_read_once and not recording.is_overwritten(self.step) else None
        offsets = {_size_offset(step, stride, options) for step in steps}
        self.size_offset = min(offsets)
        reason: str | None = "it is a function, not a module"
        module = self.step.module
        self.counterpart: nn.Module | None = None
        if module is not None:
            if module in skipped:
                reason = "it was to be skipped"
            else:
                self.counterpart = _counterpart(module, {step.input_size for step in steps})
                reason = why_not_replaceable(module, self.counterpart)
            if reason is None and len(offsets) > 1:
                reason = "its calls would need layers of several size offsets"
            if is_pointwise(module):
                self.placement = "before"
            elif self.counterpart is not None and reason is None and placement == "before":
                self.why_after = why_not_before(self.counterpart, self.step.output_size)
                self.placement = "before" if self.why_after is None else "after"
        self.is_used = any(step.is_used for step in steps)
        mixes_positions = self.placement == "before" and not is_pointwise(module)
        self.is_averaged = not mixes_positions and all(step.is_averaged for step in steps)
        self.group = _Group(reason)

    @property
    def module(self) -> nn.Module:
        assert self.step.module is not None
        return self.step.module

    @property
    def is_only_resize(self) -> bool:
        """Whether the layer takes the place of the operation."""
        return isinstance(self.step.module, AntiAliasingSpectralPool)


class _Found:
    """The strided operations of a model, grouped into those that are to share a layer.

    Attributes
    ----------
    recording : Recording
        Recording of the model before the replacement.
    operations : dict of str to _Operation
        Operations by name, in the order of execution.
    advice : str
        What to do if the model cannot run with layers.
    """

    recording: Recording
    operations: dict[str, _Operation]
    advice: str

    def record(self) -> Recording:
        """Run the model as it now is, and return the recording."""
        raise NotImplementedError

    def rehearsal(self) -> Rehearsal:
        """Return a way to run the model with other strides."""
        raise NotImplementedError


class _Traced(_Found):
    """The strided operations and the meetings of branches that a trace finds."""

    advice = "skip the operations whose sizes must not change"

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        placement: str,
        skipped: set[nn.Module],
        options: dict[str, Any],
    ) -> None:
        self._model, self._example = model, example
        try:
            self.recording: Trace = self.record()
        except UntraceableError as error:
            raise ValueError(f"{error}{_without_a_trace(model)}") from error
        self.operations = _operations(self.recording, placement, skipped, options)
        _group(self.recording, self.operations, options["trainable"])
        _keep_unused(self.operations.values())

    def record(self) -> Trace:
        return Trace(self._model, self._example)

    def rehearsal(self) -> Rehearsal:
        return TracedRehearsal(self._model, self._example)


class _Named(_Found):
    """The strided operations that a user names.

    Parameters
    ----------
    named : dict of str to torch.nn.Module
        Modules to replace, by name.
    together : list of list of torch.nn.Module
        Modules that are to share a layer.
    """

    advice = (
        "modules whose outputs meet must change their sizes together: name all of them in only, "
        "and in one list of shared"
    )

    def __init__(
        self,
        model: nn.Module,
        example: Any,
        placement: str,
        named: dict[str, nn.Module],
        together: list[list[nn.Module]],
        options: dict[str, Any],
    ) -> None:
        self._model, self._example = model, example
        self.recording = Observation(model, example, named)
        found = _operations(self.recording, placement, set(), options)
        self.operations = {name: done for name, done in found.items() if name in named}
        for name, module in named.items():
            if name not in found:
                reason = "the model does not call it with this example"
            elif (own := found[name].group.own) is None:
                continue
            else:
                reason = own
            raise ValueError(
                f"only: {name!r} ({type(module).__name__}) cannot be replaced: {reason}"
            )
        of_module = {done.module: done for done in self.operations.values()}
        for modules in together:
            _join([of_module[module] for module in modules])

    def record(self) -> Observation:
        return Observation(self._model, self._example)

    def rehearsal(self) -> Rehearsal:
        return ObservedRehearsal(self._model, self._example)


def _without_a_trace(model: nn.Module) -> str:
    """Return advice for a model that cannot be traced."""
    names = strided_modules(model)
    if not names:
        return ""
    return f"; name the modules to replace in only, which needs no trace: {some_of(names)}"


def _join(operations: Sequence[_Operation]) -> None:
    """Let operations share a layer. Raise ValueError if they cannot."""
    first, *others = operations
    for other in others:
        for what in ("stride", "size_offset"):
            values = [getattr(done, what) for done in (first, other)]
            if values[0] != values[1]:
                raise ValueError(
                    f"shared: {first.step.name!r} and {other.step.name!r} must have the same "
                    f"{what} to have one layer, but have {values[0]} and {values[1]}"
                )
        first.group.join(other.group)


def _operations(
    recording: Recording, placement: str, skipped: set[nn.Module], options: dict[str, Any]
) -> dict[str, _Operation]:
    """Return the strided operations by name, each module or call once."""
    steps: defaultdict[str, list[Step]] = defaultdict(list)
    for step in recording.steps:
        if _stride(step) is not None:
            steps[step.name].append(step)
    return {
        name: _Operation(recording, calls, placement, skipped, options)
        for name, calls in steps.items()
    }


def _stride(step: Step) -> tuple[float, ...] | None:
    """Return the stride of a strided operation, None for any other step."""
    if isinstance(step.module, AntiAliasingSpectralPool):
        return step.module.stride * (len(step.input_size) // len(step.module.stride))
    sliding = step.rule
    if sliding is None and step.module is not None:
        sliding = sliding_kernel_of(step.module)  # A subclass, whose sizes are its own.
    if isinstance(sliding, SlidingKernel) and max(sliding.stride) > 1:
        return tuple(map(float, sliding.stride))
    return None


def _size_offset(step: Step, stride: tuple[float, ...], options: dict[str, Any]) -> Size:
    """Return by how much an operation's output is larger than that of a layer without offset."""
    # Use the operation's own stride, even if the limits keep the layer's stride from it.
    settings = make_settings(
        axes=tuple(range(-len(stride), 0)),
        convention=options["convention"],
        smoothness=options["smoothness"],
    )
    if settings.convention.name != "nominal":
        return (0,) * len(stride)
    own = _plan(settings, step.input_size, stride).output_sizes
    return tuple(m - n for m, n in zip(step.output_size, own, strict=True))


def _plan(settings: Settings, size: Size, strides: Sequence[float]) -> Plan:
    """Return a layer's plan for a map of the given size."""
    return plan_diff_stride(settings, settings.axes, size, tuple(strides), shared=False, warn=False)


def _group(trace: Trace, operations: dict[str, _Operation], trainable: bool) -> None:
    """Join the groups of operations that are to share a layer."""
    for meeting in trace.meetings:
        first, *others = (_way(branch) for branch in meeting.branches)
        for other in others:
            for a, b in _partners(first, other):
                pair = [operations[step.name] for step in (a, b) if step.name in operations]
                # Strides that are held need not match the stride of an operation that is kept.
                if len(pair) == 2 and (trainable or all(done.group.own is None for done in pair)):
                    pair[0].group.join(pair[1].group)
    readers: dict[object, _Operation] = {}
    for done in operations.values():
        if done.placement == "before" and done.reads is not None and done.group.reason is None:
            first_reader = readers.setdefault((done.reads, done.stride), done)
            first_reader.group.join(done.group)


def _keep_unused(operations: Iterable[_Operation]) -> None:
    """Let operations keep their stride if the model's output depends on none of their group."""
    used = {done.group.root() for done in operations if done.is_used}
    for done in operations:
        if done.group.root() not in used and done.group.own is None:
            done.group.own = (
                "the model's output does not depend on it, so its stride would not learn"
            )


def _way(step: Step | None) -> list[Step]:
    return [] if step is None else step.way()


def _partners(first: list[Step], second: list[Step]) -> Iterable[tuple[Step, Step]]:
    """Return the pairs of steps at which two meeting branches change their sizes in the same way.

    There are no pairs if other steps change the sizes, too: shared strides then cannot keep them
    equal.
    """
    rest = 0
    while rest < min(len(first), len(second)) and _alike(first[rest], second[rest]):
        rest += 1
    tails = first[rest:], second[rest:]
    pairs = list(zip(*tails, strict=False))
    fit = len(tails[0]) == len(tails[1]) and all(_may_share(a, b) for a, b in pairs)
    return pairs if fit else ()


def _alike(a: Step, b: Step) -> bool:
    """Return whether two steps change a size in the same way, and always will."""
    if a is b or (a.module is not None and a.module is b.module):
        return True
    return a.rule == b.rule and a.rule is not None and _stride(a) is None


def _may_share(a: Step, b: Step) -> bool:
    return _stride(a) == _stride(b) is not None or _alike(a, b)


def _counterpart(module: nn.Module, sizes: set[Size]) -> nn.Module | None:
    """Return the module that gets a layer in place of one that reads maps of the given sizes."""
    found = {counterpart_of(module, size) for size in sizes}
    # A counterpart with another padding is valid for one size only.
    return found.pop() if len(sizes) == 1 or found == {module} else None


def _share_calls(replaced: Iterable[_Operation], new: dict[nn.Module, nn.Module]) -> None:
    """Let convolutions that read the same tensor share the call of the layer before them."""
    readers: defaultdict[object, list[DiffStrideConv]] = defaultdict(list)
    for done in replaced:
        made = new[done.module]
        if done.placement == "before" and done.reads is not None:
            assert isinstance(made, DiffStrideConv)
            readers[done.reads, done.layer].append(made)
    for together in readers.values():
        if len(together) > 1:
            call = SharedCall(len(together))
            for i, conv in enumerate(together):
                conv.share(call, i)


def _replaced(done: _Operation, averaged: set[DiffStride]) -> Replaced:
    settings, size = done.layer.settings, done.step.input_size
    return Replaced(
        name=done.step.name,
        operation=type(done.module).__name__,
        stride=done.stride,
        layer=done.layer,
        placement=None if done.is_only_resize else done.placement,
        reason=None if done.is_only_resize else done.why_after,
        input_size=size,
        output_size=_plan(settings, size, done.stride).output_sizes,
        never_cropped=any(never_cropped(settings, size)),
        only_averaged=done.layer in averaged,
    )


def _kept(operations: dict[str, _Operation]) -> Iterator[Kept]:
    for name, done in operations.items():
        if done.group.reason is not None:
            module = done.step.module
            kind = "function" if module is None else type(module).__name__
            yield Kept(name, kind, done.group.reason)


def _breaks(rehearsal: Rehearsal, replaced: Iterable[_Operation]) -> Iterator[Break]:
    """Run a model with the strides of its layers moved, and yield the calls that fail."""
    sizes = {done.layer: done.step.input_size for done in replaced}
    # Every second factor is below 1. With all above 1, a deep network's last maps would vanish.
    moves = {
        layer: _moves(layer, size, 1 / (1.2 + 0.1 * i) if i % 2 else 1.2 + 0.1 * i)
        for i, (layer, size) in enumerate(sizes.items())
    }

    def failure(moved: Iterable[tuple[DiffStride, Sequence[float]]]) -> tuple[str, str] | None:
        with _strides_at(moved):
            return rehearsal.failure()

    # All layers at once, each by another factor. If no call fails then, none fails for one layer.
    every = ([(layer, tried[i]) for layer, tried in moves.items()] for i in range(3))
    together = next((where for where in map(failure, every) if where is not None), None)
    if together is None:
        return
    layers: defaultdict[str, list[DiffStride]] = defaultdict(list)
    errors: dict[str, str] = {}
    for layer, tried in moves.items():
        failed = (failure([(layer, strides)]) for strides in tried)
        found = next((where for where in failed if where is not None), None)
        if found is not None:
            layers[found[0]].append(layer)
            errors.setdefault(*found)
    if not errors:
        yield Break(*together, tuple(moves))
    for name, error in errors.items():
        yield Break(name, error, tuple(layers[name]))


def _moves(layer: DiffStride, size: Size, factor: float) -> list[list[float]]:
    """Return strides that a layer may move to: one size further, one size back, and axes apart."""
    further, back, apart = [], [], []
    now = layer.strides.tolist()
    axes = _plan(layer.settings, size, now).axes
    for i, (axis, stride) in enumerate(zip(axes, now, strict=True)):
        below, above = size_jumps(layer.settings, axis, stride)
        # Beyond the jump, even after rounding to single precision.
        further.append(stride if above is None else above * (1 + 1e-6))
        back.append(stride if below is None else below * (1 - 1e-6))
        apart.append(stride * (1 / factor if i % 2 else factor))
    return [further, back, apart]


@contextmanager
def _strides_at(moved: Iterable[tuple[DiffStride, Sequence[float]]]) -> Iterator[None]:
    """Set strides to other values, and restore them afterwards."""
    strides = [(layer.strides, layer.strides.detach().clone(), values) for layer, values in moved]
    try:
        with torch.no_grad():
            for parameter, _, values in strides:
                parameter.copy_(torch.tensor(values))
        yield
    finally:
        with torch.no_grad():
            for parameter, own, _ in strides:
                parameter.copy_(own)
