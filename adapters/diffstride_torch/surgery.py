"""Putting DiffStride into models that exist: strided operations are replaced, weights are kept."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import nn

from diffstride_core import NothingToCropWarning
from diffstride_core.arguments import Limits, option
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution import CONV_METHODS
from diffstride_core.planning import never_cropped
from diffstride_torch.costs import traced_multiply_adds
from diffstride_torch.downsampling import AntiAliasing, made_anew, why_not_replaceable
from diffstride_torch.modules import DiffStride, DiffStride1d, DiffStride2d, DiffStride3d
from diffstride_torch.tracing import (
    Learnt,
    Pooled,
    Size,
    Step,
    Trace,
    Window,
    checked_example,
    swap_modules,
)

_LAYERS: dict[int, type[DiffStride]] = {1: DiffStride1d, 2: DiffStride2d, 3: DiffStride3d}


@dataclass(frozen=True)
class Replaced:
    """An operation that was replaced.

    Attributes
    ----------
    name, operation : str
        Its qualified name and its class.
    stride : tuple of float
        What it was; the layer's initial stride.
    layer : DiffStride
        Branches that meet again have the same one.
    input_size, output_size : tuple of int
        Of the layer at the example input.
    never_cropped : bool
        Whether some axis keeps its size at every stride.
    """

    name: str
    operation: str
    stride: tuple[float, ...]
    layer: DiffStride
    input_size: Size
    output_size: Size
    never_cropped: bool


@dataclass(frozen=True)
class Kept:
    """An operation that was not replaced, and why."""

    name: str
    operation: str
    reason: str

    def __str__(self) -> str:
        """Return it as a line of text."""
        return f"{self.name} ({self.operation}): {self.reason}"


@dataclass(frozen=True)
class ReplacementReport:
    """What `replace_downsampling` did.

    Attributes
    ----------
    replaced : tuple of Replaced
        In the order of execution, as the other two.
    kept : tuple of Kept
    layers : tuple of DiffStride
        Each once.
    multiply_adds_before, multiply_adds_after : int
        Of the whole model, per image.
    """

    replaced: tuple[Replaced, ...]
    kept: tuple[Kept, ...]
    layers: tuple[DiffStride, ...]
    multiply_adds_before: int
    multiply_adds_after: int

    @property
    def never_cropped(self) -> tuple[str, ...]:
        """Names of the operations whose layer cannot crop some axis at these sizes."""
        return tuple(done.name for done in self.replaced if done.never_cropped)

    def __str__(self) -> str:
        """Return the report as text."""
        numbers = {layer: i for i, layer in enumerate(self.layers, start=1)}
        lines = [f"replaced {len(self.replaced)} operations by {len(self.layers)} layers:"]
        for done in self.replaced:
            sizes = " -> ".join("x".join(map(str, s)) for s in (done.input_size, done.output_size))
            stride = "x".join(f"{s:g}" for s in done.stride)
            note = ", cannot crop at this size" if done.never_cropped else ""
            lines.append(
                f"  {done.name} ({done.operation}, stride {stride}): "
                f"layer {numbers[done.layer]}, {sizes}{note}"
            )
        if self.kept:
            lines.append(f"kept {len(self.kept)} strided operations:")
            lines += [f"  {kept}" for kept in self.kept]
        before, after = self.multiply_adds_before, self.multiply_adds_after
        lines.append(
            f"multiply-adds per image: {before / 1e6:.1f} M before, {after / 1e6:.1f} M after"
        )
        return "\n".join(lines)


def replace_downsampling(
    model: nn.Module,
    example_input: Any,
    *,
    convention: str = DEFAULT_CONVENTION,
    smoothness: float | None = None,
    limits: Limits | None = (None, None),
    skip: Iterable[str] = (),
    method: str = "auto",
) -> ReplacementReport:
    """Replace a model's strided convolutions and poolings by stride-1 operations and DiffStride.

    In place. Weights and their names stay; each layer adds one parameter, ``pool.strides``. A
    stride begins where the operation's was. Branches that meet again, in an addition or a
    concatenation, get one shared layer; where they cannot, their operations keep their strides.

    Parameters
    ----------
    model : torch.nn.Module
        Traced with torch.fx.
    example_input : Tensor, shape (N, C, ...), or tuple
        The arguments of the model.
    convention, smoothness, limits
        Of the layers, see `DiffStride`.
    skip : iterable of str
        Qualified names of modules to leave as they are, with all that is in them.
    method : {"auto", "fused", "separate"}
        How convolutions and the layers behind them are evaluated, see `conv_diff_stride`; "fused"
        counts for those with an odd kernel whose padding is half of it, zeros or circular.

    Returns
    -------
    ReplacementReport

    Raises
    ------
    TypeError
        If the model is no module, the example no tensor, or a name no string.
    ValueError
        If the model has no such module as one to skip, cannot be traced, cannot run on the example,
        has nothing to replace, or cannot run with the sizes that the layers give. The model is then
        as it was.
    """
    options: dict[str, Any] = {
        "convention": convention,
        "smoothness": smoothness,
        "limits": limits,
    }
    DiffStride2d(1.0, **options)  # Refuses bad options before any work.
    option("method", method, CONV_METHODS)
    device = checked_example(model, example_input)[0].device
    skipped = _skipped(model, skip)
    before = Trace(model, example_input)
    groups = _groups(before, skipped)
    layers: dict[_Group, DiffStride] = {}
    new: dict[nn.Module, nn.Module] = {}
    for step in _strided(before):
        group = groups[step.name].root()
        if groups[step.name].reason is None and step.module is not None:
            if group not in layers:
                stride = _stride(step)
                assert stride is not None
                layers[group] = _LAYERS[len(stride)](stride, device=device, **options)
            new[step.module] = made_anew(step.module, layers[group], method)
    if not new:
        found = "; ".join(str(kept) for kept in _kept(before, groups))
        raise ValueError(
            f"model {type(model).__name__} has no strided operation that can be replaced"
            + (f": {found}" if found else "")
        )
    undo = swap_modules(model, new)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NothingToCropWarning)
            after = Trace(model, example_input)
        return ReplacementReport(
            replaced=tuple(_replaced(before, after, new)),
            kept=tuple(_kept(before, groups)),
            layers=tuple(dict.fromkeys(layers.values())),
            multiply_adds_before=traced_multiply_adds(before),
            multiply_adds_after=traced_multiply_adds(after),
        )
    except Exception as error:
        undo()
        raise ValueError(
            f"model {type(model).__name__} does not run with the sizes that DiffStride gives, and "
            f"is as it was; skip the operations whose sizes must stay: {error}"
        ) from error


class _Group:
    """Operations that must have one stride, or keep theirs.

    Attributes
    ----------
    own : str or None
        Why this operation keeps its stride.
    """

    def __init__(self, reason: str | None) -> None:
        self.own = self._shared = reason
        self._parent: _Group | None = None

    def root(self) -> _Group:
        return self if self._parent is None else self._parent.root()

    @property
    def reason(self) -> str | None:
        """Why the operation keeps its stride, be it for the sake of another."""
        shared = self.root()._shared
        if self.own is None and shared is not None:
            return f"it shares its stride with an operation that keeps its own: {shared}"
        return self.own

    def join(self, other: _Group) -> None:
        root, other_root = self.root(), other.root()
        if root is not other_root:
            other_root._parent = root
            root._shared = root._shared or other_root._shared

    def keep(self, reason: str) -> None:
        self.own = self.own or reason
        self.root()._shared = self.root()._shared or reason


def _strided(trace: Trace) -> list[Step]:
    """Return the steps that are strided operations, each module or call once."""
    steps = {s.name: s for s in trace.steps if _stride(s) is not None}
    return list(steps.values())


def _stride(step: Step) -> tuple[float, ...] | None:
    """Return the stride of a strided operation, None for any other step."""
    if isinstance(step.rule, Window) and max(step.rule.stride) > 1:
        return tuple(map(float, step.rule.stride))
    if isinstance(step.module, AntiAliasing):
        return step.module.stride * (len(step.input_size) // len(step.module.stride))
    return None


def _groups(trace: Trace, skipped: set[nn.Module]) -> dict[str, _Group]:
    """Return the group of each strided operation by its name."""
    groups = {step.name: _Group(_reason(step, skipped)) for step in _strided(trace)}
    for meeting in trace.meetings:
        first, *others = (_way(branch) for branch in meeting.branches)
        for other in others:
            _join(groups, first, other, meeting.name)
    return groups


def _way(step: Step | None) -> list[Step]:
    return [] if step is None else step.way()


def _join(groups: dict[str, _Group], first: list[Step], second: list[Step], where: str) -> None:
    """Join the groups of two branches that meet, or keep what differs between them."""
    rest = 0
    while rest < min(len(first), len(second)) and _alike(first[rest], second[rest]):
        rest += 1
    tails = first[rest:], second[rest:]
    pairs = list(zip(*tails, strict=False))
    fit = len(tails[0]) == len(tails[1]) and all(_may_share(a, b) for a, b in pairs)
    for a, b in pairs if fit else ():
        if a.name in groups and b.name in groups:
            groups[a.name].join(groups[b.name])
    if fit:
        return
    for step in (*tails[0], *tails[1]):
        if step.name in groups:
            groups[step.name].keep(
                f"it meets at {where} a branch whose size changes in other steps"
            )
    if not _always_equal(*tails):
        for step in first[:rest]:
            if step.name in groups:
                groups[step.name].keep(
                    f"behind it two branches meet at {where} that are equal at few sizes only"
                )


def _always_equal(first: list[Step], second: list[Step]) -> bool:
    """Return whether two branches of fixed steps give equal sizes, whatever they begin with."""
    largest = (first or second)[0].input_size
    return all(
        _after(first, (n,) * len(largest)) == _after(second, (n,) * len(largest))
        for n in range(1, max(largest, default=0) + 1)
    )


def _after(steps: list[Step], size: Size) -> Size | None:
    for step in steps:
        if step.rule is None or isinstance(step.rule, Learnt | Pooled):
            return None
        size = step.rule.resize(size)
    return size


def _alike(a: Step, b: Step) -> bool:
    """Return whether two steps change a size in the same way, and always will."""
    if a is b or (a.module is not None and a.module is b.module):
        return True
    return a.rule == b.rule and a.rule is not None and _stride(a) is None


def _may_share(a: Step, b: Step) -> bool:
    return _stride(a) == _stride(b) is not None or _alike(a, b)


def _reason(step: Step, skipped: set[nn.Module]) -> str | None:
    """Return why a strided operation keeps its stride, None if nothing speaks against it."""
    if step.module is None:
        return "it is a function, not a module"
    if step.module in skipped:
        return "it was to be skipped"
    return why_not_replaceable(step.module)


def _skipped(model: nn.Module, skip: Iterable[str]) -> set[nn.Module]:
    """Return the modules of some names with all that is in them."""
    names = (skip,) if isinstance(skip, str) else tuple(skip)
    known = dict(model.named_modules(remove_duplicate=False))
    skipped: set[nn.Module] = set()
    for name in names:
        if not isinstance(name, str):
            raise TypeError(f"skip must hold names of modules, got {name!r}")
        if not name or name not in known:
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"skip: the model has no module {name!r}{hint}")
        skipped.update(known[name].modules())
    return skipped


def _replaced(before: Trace, after: Trace, new: dict[nn.Module, nn.Module]) -> Iterator[Replaced]:
    learnt = {step.name: step for step in after.steps if isinstance(step.rule, Learnt)}
    of_layer = {step.module: step for step in learnt.values()}
    for step in _strided(before):
        if step.module not in new:
            continue
        made = new[step.module]
        layer = made if isinstance(made, DiffStride) else made.pool
        stride = _stride(step)
        assert isinstance(layer, DiffStride)
        assert stride is not None
        resize = learnt.get(f"{step.name}.pool", of_layer[layer])
        yield Replaced(
            step.name,
            type(step.module).__name__,
            stride,
            layer,
            resize.input_size,
            resize.output_size,
            any(never_cropped(layer.settings, resize.input_size)),
        )


def _kept(trace: Trace, groups: dict[str, _Group]) -> Iterator[Kept]:
    for step in _strided(trace):
        reason = groups[step.name].reason
        if reason is not None:
            kind = "function" if step.module is None else type(step.module).__name__
            yield Kept(step.name, kind, reason)
