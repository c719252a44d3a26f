"""DiffStride and spectral pooling as PyTorch modules."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from diffstride_backends import torch_private
from diffstride_backends.torch_backend import (
    BACKEND,
    FUNCTIONAL,
    distributed_as,
    is_distributed,
    whole,
)
from torch.optim.optimizer import register_optimizer_step_post_hook

from diffstride_core.arguments import (
    Limits,
    checked_shape,
    in_order,
    initial_strides,
)
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.plan import ConvPlan
from diffstride_core.plan import Plan
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import plan_pool
from diffstride_core.settings import make_settings
from diffstride_torch import saved_state
from diffstride_torch.joining import Resize
from diffstride_torch.precision import KeepsPrecision

_steps = 0
_counted: object = None


def count_step(_optimizer: object, _arguments: object, options: object) -> None:
    """Count a step of an optimiser once, even if several hooks after it ask for that.

    Fused optimisers write without changing the version counter, so the number of steps shows
    whether strides may have changed. A hook that reads strides counts the step first: PyTorch calls
    the hooks of one optimiser before those of all optimisers.

    Parameters
    ----------
    _optimizer, _arguments, options : object
        The arguments that PyTorch passes to hooks: the same objects for all hooks after one step.
    """
    global _steps, _counted
    if _counted is not options:
        _steps += 1
        _counted = options


def _end_step(optimizer: object, arguments: object, options: object) -> None:
    global _counted
    count_step(optimizer, arguments, options)
    _counted = None  # A closure in the options may hold a model.


register_optimizer_step_post_hook(_end_step)


class _Version:
    """Identifies the values of a tensor without reading them from a device."""

    def __init__(self, tensor: torch.Tensor) -> None:
        # The tensor itself, not its id: the id and the memory of a freed tensor are soon reused.
        self._tensor = tensor
        self._state: object = object()  # equal to no other
        if (version := torch_private.version_of(tensor)) is not None:
            steps = _steps if tensor.requires_grad else None
            self._state = version, tensor.data_ptr(), steps

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Version)
            and self._tensor is other._tensor
            and self._state == other._state
        )

    def __hash__(self) -> int:
        return hash((id(self._tensor), self._state))


def values_token(strides: torch.Tensor) -> Any:
    """Return a token that equals the last one exactly if no value has changed since."""
    # Reading host memory costs nothing, and shows even what was written behind autograd's back.
    if strides.is_cpu:
        return BACKEND.host_values(strides)
    return _Version(strides)


class DiffStride(KeepsPrecision, Resize):
    """Downsampling layer with learnt strides.

    This is the base class of `DiffStride1d`, `DiffStride2d` and `DiffStride3d`, which fix the
    number of resized axes, d.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis, or one for all axes.
    smoothness : float, optional
        Width of the window's ramp; see `diff_stride`.
    shared : bool
        Whether all axes share one learnt stride. By default each axis has its own.
    limits : (lower, upper) or None
        Limits on the strides, in addition to the built-in bounds. None switches off both.
    cropping : bool
        Whether to crop the spectrum. If False, the window is applied, but the output is as large
        as the input.
    multiple_of : int
        Raise output sizes to a multiple of this number, but not above the input's size. Some
        hardware and some later layers need such sizes. Must be 1 in the tensorflow convention.
    trainable : bool
        Whether the strides require a gradient.
    norm, convention, method
        See `diff_stride`.
    axes : int or sequence of int, optional
        The axes to resize. By default, the last d axes.
    size_offset : int or sequence of int
        Number to add to the output size that follows from the stride: one per axis, or one for all.
        The result is kept between 1 and the input's size. With an offset, a layer can keep the
        sizes of an operation whose output size is not N/S.
    device : torch.device, optional
        Device of the strides.
    dtype : torch.dtype, optional
        Dtype of the strides: float32 (the default) or float64. Converting the module to half
        precision does not change it.

    Attributes
    ----------
    strides : torch.nn.Parameter, shape (d,) or (1,)
        The stride parameters. A forward pass uses bounded values and leaves the parameter alone.
        `project_strides` moves the parameter back within its bounds; call it after each step of
        the optimiser.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or a stride is below 1.

    Notes
    -----
    The output size depends on the values of the strides. The layer keeps a copy of these values on
    the host, and reads them again when the parameter has changed. On a CPU it compares the values.
    On other devices it compares the parameter's identity, version counter and memory address, and
    counts the steps of optimisers. Two kinds of change remain unseen until the next call of
    `project_strides`: writing through ``strides.data`` on an accelerator, and any change while code
    compiled by `torch.compile` runs.

    A state dict holds the strides and, as extra state, the convention, smoothness, size offset and
    `multiple_of`. Loading a state in which one of these differs is an error, and leaves the layer
    unchanged. A state without extra state, from an older version, is loaded with one warning for
    the whole model.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        smoothness: float | None = None,
        shared: bool = False,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        trainable: bool = True,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
        axes: int | Sequence[int] | None = None,
        size_offset: int | Sequence[int] = 0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.settings = make_settings(
            axes=tuple(range(-self.rank, 0)) if axes is None else axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
            norm=norm,
            convention=convention,
            method=method,
            size_offset=size_offset,
        )
        _check_rank(self.rank, self.settings.axes)
        dtype = torch.float32 if dtype is None else dtype
        if dtype not in (torch.float32, torch.float64):
            raise TypeError(f"dtype must be torch.float32 or torch.float64, got {dtype}")
        values = initial_strides(stride, self.rank, shared)
        self.strides = torch.nn.Parameter(
            torch.tensor(values, dtype=dtype, device=device), requires_grad=trainable
        )
        self._plans = PlanCache(self.settings, len(values))
        if not self.strides.is_meta:
            # So that a module that is compiled before its first call knows its strides.
            self._refresh(self.strides)

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.settings.axes

    def _plan_for(self, x: torch.Tensor) -> Plan:
        torch_private.check_not_traced()
        strides = self.strides
        if strides.dtype.itemsize < 4:
            raise TypeError(
                f"strides must be float32 or float64, got dtype {strides.dtype}; if an "
                "mp_policy changed it, give each DiffStride layer to fully_shard first, without it"
            )
        BACKEND.check_strides(strides, x)
        self._refresh(strides)
        if strides.is_meta and self._plans.strides is None and self.settings.cropping:
            raise ValueError(
                "strides must have values to give the output's size, got strides on the device "
                "'meta': call model.to_empty(device=...), then load a state dict"
            )
        return self._plans.plan(x.shape)

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        return FUNCTIONAL.resample(self._plan(x), x, self.strides)

    def _convolve(
        self, plan: ConvPlan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        torch_private.check_not_traced()
        return FUNCTIONAL.convolve(plan, x, weight, self.strides, bias, method="fused")

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return self.plan(shape).output_sizes

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape, which counts as seen."""
        return self.plans.plan(checked_shape(shape))

    @property
    def plans(self) -> PlanCache:
        """The plans of the inputs seen, for the present values of the strides."""
        self._refresh(self.strides)
        return self._plans

    def plans_seen(self) -> tuple[Plan, ...]:
        """Return the plans for the inputs seen since the last projection of the strides."""
        return self.plans.seen()

    @contextmanager
    def plans_met(self) -> Iterator[list[Plan]]:  # noqa: D102
        own = self._plans
        self._plans = copy.copy(own)
        try:
            with super().plans_met() as met:
                yield met
        finally:
            self._plans = own

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments, with its present strides, as plain values.

        The values can be written as JSON, and make the same layer in every framework but Keras:
        ``DiffStride2d(**layer.to_dict())``. Strides below 1 count as 1, and are returned as 1.
        """
        return self.settings.layer_arguments(whole(self.strides.detach()).tolist())

    def get_extra_state(self) -> torch.Tensor:
        """Return what a state dict holds besides the strides, such as convention and smoothness.

        Returns
        -------
        torch.Tensor, shape (256,)
            Character codes of JSON, with dtype int32.
        """
        return saved_state.encoded(self._saved_arguments())

    def set_extra_state(self, state: torch.Tensor) -> None:
        """Check the arguments of a saved layer, as `get_extra_state` returned them.

        Parameters
        ----------
        state : torch.Tensor, shape (256,)

        Raises
        ------
        ValueError
            If the saved layer had other arguments than this one.
        """
        saved_state.check(state, self._saved_arguments())

    def _saved_arguments(self) -> dict[str, Any]:
        """Return the arguments without which the values of the strides mean nothing."""
        names = ("convention", "smoothness", "size_offset", "multiple_of")
        arguments = self.settings.arguments()
        return {name: arguments[name] for name in names if name in arguments}

    def why_not_loaded(self, state_dict: Mapping[str, Any], prefix: str) -> str | None:
        """Return why the layer refuses a state dict, or None. Its keys begin with `prefix`."""
        key = prefix + saved_state.KEY
        if key in state_dict:
            try:
                saved_state.check(state_dict[key], self._saved_arguments(), prefix)
            except ValueError as error:
                return str(error)
        return None

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        # Check before any stride is overwritten. PyTorch calls `set_extra_state` only after that.
        if (reason := self.why_not_loaded(state_dict, prefix)) is not None:
            error_msgs.append(reason)
            return
        super()._load_from_state_dict(
            state_dict,
            prefix,
            local_metadata,
            strict,
            missing_keys,
            unexpected_keys,
            error_msgs,
        )
        key = prefix + saved_state.KEY
        if key in missing_keys:
            missing_keys.remove(key)
            if prefix + "strides" in state_dict:
                saved_state.warn_unchecked(self._saved_arguments(), prefix, error_msgs)

    def extra_repr(self) -> str:  # noqa: D102
        settings = self.settings
        values = ["..."]
        # Distributed strides would need the other processes, which do not print.
        if not (self.strides.is_meta or is_distributed(self.strides)):
            values = [f"{stride:.4g}" for stride in self.strides.tolist()]
        shown = [f"strides=[{', '.join(values)}]", *settings.shown(tuple(range(-self.rank, 0)))]
        if self.strides.numel() < self.rank:
            shown.append("shared=True")
        if not self.strides.requires_grad:
            shown.append("trainable=False")
        return ", ".join(shown)

    def _refresh(self, strides: torch.Tensor) -> None:
        # A compiled graph must not read device memory. It uses the plans that were made outside.
        if not torch.compiler.is_compiling():
            self._plans.refresh(values_token(strides), lambda: BACKEND.host_values(strides))


class DiffStride1d(DiffStride):
    """Downsampling layer with a learnt stride along the last axis.

    This is `DiffStride` with d = 1. `DiffStride` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStride1d
    >>> DiffStride1d(2.5)(torch.zeros(8, 3, 100)).shape
    torch.Size([8, 3, 40])
    """

    rank = 1


class DiffStride2d(DiffStride):
    """Downsampling layer with learnt strides along the last two axes.

    This is `DiffStride` with d = 2. `DiffStride` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStride2d
    >>> layer = DiffStride2d((2.0, 3.0))
    >>> y = layer(torch.randn(8, 3, 32, 32))
    >>> y.shape
    torch.Size([8, 3, 16, 11])

    The strides have a gradient, like any parameter:

    >>> y.square().mean().backward()
    >>> layer.strides.grad.shape
    torch.Size([2])
    """

    rank = 2


class DiffStride3d(DiffStride):
    """Downsampling layer with learnt strides along the last three axes.

    This is `DiffStride` with d = 3. `DiffStride` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStride3d
    >>> DiffStride3d((1.0, 2.0, 2.0))(torch.zeros(1, 1, 8, 32, 32)).shape
    torch.Size([1, 1, 8, 16, 16])
    """

    rank = 3


class SpectralPool(Resize):
    """Spectral pooling layer with fixed strides.

    This is the base class of `SpectralPool1d`, `SpectralPool2d` and `SpectralPool3d`, which fix the
    number of resized axes, d. It crops the spectrum to floor(N/S) samples per axis, without a
    window; see `spectral_pool`.

    Parameters
    ----------
    stride : float or sequence of float
        Strides, at least 1: one per resized axis, or one for all axes.
    norm, convention
        See `spectral_pool`.
    axes : int or sequence of int, optional
        The axes to resize. By default, the last d axes.

    Raises
    ------
    TypeError, ValueError
        If `spectral_pool` would refuse an argument.
    """

    rank: ClassVar[int]

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        axes: int | Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.settings = make_settings(
            axes=tuple(range(-self.rank, 0)) if axes is None else axes,
            norm=norm,
            convention=convention,
        )
        _check_rank(self.rank, self.settings.axes)
        self.stride = initial_strides(stride, self.rank, shared=False)

    @property
    def _axes(self) -> tuple[int, ...]:
        return self.settings.axes

    def _plan_for(self, x: torch.Tensor) -> Plan:
        torch_private.check_not_traced()
        return plan_pool(self.settings, x.shape, self.stride)

    def _resize(self, x: torch.Tensor) -> torch.Tensor:
        return FUNCTIONAL.resample(self._plan(x), x)

    def _convolve(
        self, plan: ConvPlan, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None
    ) -> torch.Tensor:
        torch_private.check_not_traced()
        return FUNCTIONAL.convolve(plan, x, weight, bias=bias, method="fused")

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return self.plan(shape).output_sizes

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape."""
        return plan_pool(self.settings, checked_shape(shape), self.stride)

    def extra_repr(self) -> str:  # noqa: D102
        settings = self.settings
        return (
            f"stride={self.stride}, convention={settings.convention.name!r}, "
            f"norm={settings.norm!r}, axes={settings.axes}"
        )


class SpectralPool1d(SpectralPool):
    """Spectral pooling layer with a fixed stride along the last axis.

    This is `SpectralPool` with d = 1. `SpectralPool` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import SpectralPool1d
    >>> SpectralPool1d(2.5)(torch.zeros(8, 3, 100)).shape
    torch.Size([8, 3, 40])
    """

    rank = 1


class SpectralPool2d(SpectralPool):
    """Spectral pooling layer with fixed strides along the last two axes.

    This is `SpectralPool` with d = 2. `SpectralPool` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import SpectralPool2d
    >>> SpectralPool2d((2.0, 3.0))(torch.zeros(8, 3, 32, 32)).shape
    torch.Size([8, 3, 16, 10])
    """

    rank = 2


class SpectralPool3d(SpectralPool):
    """Spectral pooling layer with fixed strides along the last three axes.

    This is `SpectralPool` with d = 3. `SpectralPool` documents the parameters.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import SpectralPool3d
    >>> SpectralPool3d((1.0, 2.0, 2.0))(torch.zeros(1, 1, 8, 32, 32)).shape
    torch.Size([1, 1, 8, 16, 16])
    """

    rank = 3


def _check_rank(rank: int, axes: tuple[int, ...]) -> None:
    if len(axes) != rank:
        raise ValueError(f"axes must name {rank} axes, got {axes}")


def is_sharded(module: torch.nn.Module) -> bool:
    """Return whether a module was itself given to ``fully_shard``."""
    # Only sharded modules have this method. Importing the class would slow down all who have none.
    return callable(getattr(module, "reshard", None))


def check_module(model: object) -> None:
    """Raise TypeError unless a model is a module."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")


def _named_layers(model: torch.nn.Module) -> list[tuple[str, DiffStride]]:
    check_module(model)
    return [
        (name, module) for name, module in model.named_modules() if isinstance(module, DiffStride)
    ]


@torch.no_grad()
def project_strides(model: torch.nn.Module) -> None:
    """Move every stride of a model back within its bounds; call it after the optimiser's step.

    The bounds are the layer's limits, and the built-in bounds of the input sizes that the layer has
    seen since the last projection, in forward passes and by `DiffStride.output_sizes`. A layer that
    has seen none keeps the bounds of the last projection. Sizes from before that do not matter, so
    a run that is resumed from the state of model and optimiser continues as it would have.

    All strides are read in one transfer per device and dtype. Forward passes after it read no
    device memory.

    Parameters
    ----------
    model : torch.nn.Module
        Its parameters may be distributed over processes, for example by ``fully_shard``. All
        processes must then call this function.

    Raises
    ------
    TypeError
        If the model is not a module.
    ValueError
        If a stride is NaN or infinite. The message names the layer, and no stride has changed.
    """
    layers = _named_layers(model)
    for module in model.modules():
        # The parameters that fully_shard gathers for a forward pass without a backward pass stay
        # gathered, but training does not continue from these copies.
        if is_sharded(module):
            module.reshard()  # type: ignore[operator]
    values = read_together([layer.strides for _, layer in layers])
    for (name, _), strides in zip(layers, values, strict=True):
        if not np.isfinite(strides).all():
            raise ValueError(f"strides of layer {name!r} must be finite, got {strides.tolist()}")
    for (_, layer), strides in zip(layers, values, strict=True):
        bounded = np.array(layer._plans.project(tuple(strides.tolist())), dtype=strides.dtype)
        if (bounded != strides).any():
            write_strides(layer, bounded.tolist())
        layer._plans.update(values_token(layer.strides), tuple(bounded.tolist()))


@torch.no_grad()
def write_strides(layer: DiffStride, values: Sequence[float]) -> None:
    """Set the values of a layer's stride parameters."""
    on_host = torch.tensor(values, dtype=layer.strides.dtype)
    layer.strides.copy_(distributed_as(on_host, layer.strides))


def read_strides(layers: Iterable[DiffStride]) -> list[tuple[float, ...]]:
    """Return the strides of layers as numbers, and update the layers' plans.

    Strides that have changed since they were last read are read in one transfer per device and
    dtype. After `project_strides` there are none.
    """
    layers = list(layers)
    changed = [layer for layer in layers if not layer._plans.is_as_of(values_token(layer.strides))]
    read = read_together(layer.strides for layer in changed)
    for layer, strides in zip(changed, read, strict=True):
        layer._plans.update(values_token(layer.strides), tuple(strides.tolist()))
    return [layer._plans.strides or () for layer in layers]


def read_together(tensors: Iterable[torch.Tensor]) -> list[np.ndarray[Any, Any]]:
    """Return the values of small tensors on the host, in one transfer per device and dtype."""
    tensors = [whole(tensor.detach()) for tensor in tensors]
    groups: dict[tuple[torch.device, torch.dtype], list[int]] = {}
    for i, tensor in enumerate(tensors):
        groups.setdefault((tensor.device, tensor.dtype), []).append(i)
    values: list[np.ndarray[Any, Any]] = [np.empty(0)] * len(tensors)
    for members in groups.values():
        together = torch.cat([tensors[i] for i in members]).cpu()
        parts = torch.split(together, [tensors[i].numel() for i in members])
        for i, part in zip(members, parts, strict=True):
            values[i] = part.numpy()
    return values


def param_groups(
    model: torch.nn.Module, *, stride_lr: float | None = None, **options: Any
) -> list[dict[str, Any]]:
    """Return parameter groups for an optimiser, with the strides in a group of their own.

    The strides get no weight decay, which would pull them towards 0 and out of their bounds.

    Parameters
    ----------
    model : torch.nn.Module
    stride_lr : float, optional
        Learning rate of the strides. By default, that of the other parameters.
    **options
        Options of the optimiser for all parameters, for example ``lr`` and ``weight_decay``.

    Returns
    -------
    list of dict
        Parameter groups for a constructor such as `torch.optim.SGD`, with all parameters that
        require a gradient.

    Raises
    ------
    TypeError
        If the model is not a module, or an option is a misspelt ``stride_lr``: optimisers accept
        unknown options without a word.
    """
    if misspelt := [name for name in options if "stride" in name]:
        raise TypeError(
            f"param_groups got an unknown option {misspelt[0]!r}; the strides' learning rate is "
            "stride_lr"
        )
    strides = {id(layer.strides): layer.strides for _, layer in _named_layers(model)}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in strides]
    groups = [{**options, "params": others}]
    learnt = [p for p in strides.values() if p.requires_grad]
    if learnt:
        group = {**options, "params": learnt, "weight_decay": 0.0}
        if stride_lr is not None:
            group["lr"] = stride_lr
        groups.append(group)
    return groups


def complexity_penalty(model: torch.nn.Module | Sequence[DiffStride]) -> torch.Tensor:
    """Return the complexity penalty J of a model's layers.

    Parameters
    ----------
    model : torch.nn.Module or sequence of DiffStride
        The layers of a model are taken in the order in which they were registered. If the network
        runs them in another order, pass the layers as a sequence in that order.

    Returns
    -------
    torch.Tensor, shape ()
        J, differentiable in the strides; see `complexity`.

    Raises
    ------
    TypeError
        If `model` is a set, which has no order, or holds anything but DiffStride layers.
    ValueError
        If there is no DiffStride layer.
    """
    if isinstance(model, torch.nn.Module):
        layers = [layer for _, layer in _named_layers(model)]
    else:
        layers = list(in_order("model", model, "of DiffStride layers, or a module"))
        for layer in layers:
            if not isinstance(layer, DiffStride):
                raise TypeError(
                    "model must be a module or a sequence of DiffStride layers, got one with "
                    f"{type(layer).__name__}"
                )
    if not layers:
        raise ValueError(
            f"model must have a DiffStride layer, got {type(model).__name__} with none"
        )
    torch_private.check_not_traced()
    bounds = tuple(layer.plans.bounds() for layer in layers)
    return FUNCTIONAL.bounded_complexity(bounds, [whole(layer.strides) for layer in layers])
