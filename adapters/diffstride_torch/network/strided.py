"""Turning convolutions with a layer after them into plain strided convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from diffstride_backends.torch_private import has_hooks
from torch import fx, nn

from diffstride_torch.conv_modules import (
    DiffStrideConv,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
)
from diffstride_torch.joining import AnyConv
from diffstride_torch.modules import DiffStride
from diffstride_torch.network.downsampling import is_pointwise
from diffstride_torch.network.rounding import whole_strides
from diffstride_torch.network.summary import named_layers
from diffstride_torch.network.tracing import (
    arguments_of,
    check_model,
    copied,
    swap_modules,
    traced_graph,
    unwrapped,
)
from diffstride_torch.sliding import CONVOLUTIONS, Size, in_numbers

_OWN: tuple[type[nn.Module], ...] = (DiffStrideConv1d, DiffStrideConv2d, DiffStrideConv3d)


class Convolve(nn.Module):
    """Replaces a layer that is called with a convolution: it applies only the convolution."""

    def forward(
        self, x: torch.Tensor, conv: nn.Module | None = None, *, method: str = "auto"
    ) -> torch.Tensor:
        """Return ``conv(x)``, or `x` without a convolution."""
        y: torch.Tensor = x if conv is None else conv(x)
        return y


def to_strided(model: nn.Module) -> nn.Module:
    """Return a copy of a model with plain strided convolutions in place of its layers.

    The result is an approximation. A convolution with a layer after it becomes a convolution with
    the nearest whole stride, as `round_strides` finds it, and the same weights. It keeps every S-th
    sample of the map, without the layer's low-pass filter. Expect the accuracy to fall a lot: train
    the result, which is an ordinary network, and measure it again. To change no output, use
    `freeze`.

    Parameters
    ----------
    model : torch.nn.Module
        The model, or a wrapper of it: ``DistributedDataParallel``, or what ``torch.compile``
        returns. It is not changed. It is traced with torch.fx if layers are called outside a
        `DiffStrideConv`.

    Returns
    -------
    torch.nn.Module
        A model without DiffStride layers. Its parameters have the same names.

    Raises
    ------
    TypeError
        If the model is not a module.
    ValueError
        If the model has no DiffStride layer, cannot be traced, or cannot be copied, for example
        because ``fully_shard`` distributes it; if a stride cannot be rounded; or if layers or
        convolutions have no strided counterpart. The message then names all of these:

        - layers before a convolution (``placement="before"``), which then reads S times as far. A
          convolution with a single tap is allowed, since the layer commutes with it.
        - layers after anything but a convolution, for example a pooling, and layers after a
          convolution whose output is also read elsewhere. A stride of 1 is allowed, since it needs
          no convolution.
        - layers with ``cropping=False`` or a norm other than "forward", whose scale a strided
          convolution does not have.

    Notes
    -----
    The sizes are those of `torch.nn.Conv2d`: floor((N + 2p - d(k - 1) - 1)/S) + 1 samples, which is
    ceil(N/S) if the padding keeps the size. In the nominal convention, for strides up to 4, a layer
    without `size_offset` gives the same size. A layer with one gives the size of the operation that
    `replace_downsampling` replaced. In the other conventions layers give larger maps.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import DiffStrideConv2d, to_strided
    >>> model = torch.nn.Sequential(DiffStrideConv2d(1, 4, 3, (1.8, 2.7), placement="after"))
    >>> to_strided(model)
    Sequential(
      (0): Conv2d(1, 4, kernel_size=(3, 3), stride=(2, 3), padding=(1, 1))
    )
    """
    if isinstance(model, nn.Module):
        model = unwrapped(model)
    check_model(model)
    names = named_layers(model)
    whole = whole_strides(model)
    made = copied(model, "to_strided")
    strides = {made.get_submodule(names[layer][0]): whole[layer] for layer in names}
    conversion = _Conversion(made, strides)
    if conversion.refused:
        found = "; ".join(f"{name}: {reason}" for name, reason in conversion.refused.items())
        raise ValueError(
            f"model {type(model).__name__} cannot become strided: {found}; use freeze instead"
        )
    return conversion.apply()


class _Conversion:
    """Conversion of the convolutions and layers of a model.

    Parameters
    ----------
    model : torch.nn.Module
    strides : dict of DiffStride to tuple of int
        Whole strides of all its layers, one per axis.

    Attributes
    ----------
    refused : dict of str to str
        Why layers and convolutions have no strided counterpart, by name.
    """

    def __init__(self, model: nn.Module, strides: dict[nn.Module, Size]) -> None:
        self._model, self._strides = model, strides
        self._names = {module: name for name, module in model.named_modules()}
        self._new: dict[nn.Module, nn.Module] = {}
        self._of_conv: dict[AnyConv, Size] = {}
        self.refused: dict[str, str] = {}
        for layer in strides:
            assert isinstance(layer, DiffStride)
            self._refuse(layer, _why_not_layer(layer))
        apart: set[nn.Module] = {model} & strides.keys()
        for module in model.modules():
            if isinstance(module, DiffStrideConv) and module.pool in strides:
                reason = _why_not_convolution(module, strides[module.pool])
                self._refuse(module, reason)
                if reason is None:
                    self._new[module] = module.strided(strides[module.pool])
            else:
                apart |= set(module.children()) & strides.keys()
        if apart:
            self._convert_called(apart)

    def apply(self) -> nn.Module:
        """Convert the model and return it. Call this only if nothing is refused."""
        for conv, stride in self._of_conv.items():
            conv.padding = _strided_padding(conv)
            conv.stride = tuple(own * new for own, new in zip(conv.stride, stride, strict=True))
        swap_modules(self._model, self._new)
        return self._new.get(self._model, self._model)

    def _refuse(self, module: nn.Module, reason: str | None) -> None:
        if reason is not None:
            self.refused.setdefault(self._names[module] or type(module).__name__, reason)

    def _convert_called(self, layers: set[nn.Module]) -> None:
        """Convert the layers that the model calls directly, and the convolutions next to them."""
        if self._model in layers:
            self._refuse(self._model, "it follows no convolution")
            return
        graph = traced_graph(self._model, whole=_OWN)
        modules = dict(graph.named_modules(remove_duplicate=False))
        called = {
            node: modules[str(node.target)]
            for node in graph.graph.nodes
            if node.op == "call_module"
        }
        covered: set[fx.Node] = set()
        for node, layer in called.items():
            if layer not in self._strides:
                continue
            given = arguments_of(node, ("x", "conv"))
            conv = given.get("conv")
            if conv is None:
                self._new.setdefault(layer, nn.Identity())
            else:
                self._new[layer] = Convolve()
            if max(self._strides[layer]) == 1:
                continue
            if conv is not None:
                self._add(layer, modules[str(conv.target)])
                continue
            beside = _calls_beside(given["x"], node, called)
            if not beside:
                self._refuse(layer, self._why_not_beside(node, called))
            for call in beside:
                self._add(layer, called[call])
                if call in covered:
                    self._refuse(called[call], "it stands between two layers")
                covered.add(call)
        for layer in layers - self._new.keys():
            self._refuse(layer, "the model does not call it")
        for node, module in called.items():
            if module in self._of_conv and node not in covered:
                self._refuse(module, "it is called without the layer, too")

    def _why_not_beside(self, node: fx.Node, called: Mapping[fx.Node, nn.Module]) -> str:
        reason = "it follows no convolution whose output it alone reads"
        convolutions = [
            self._names[module]
            for reader in node.users
            if isinstance(module := called.get(reader), CONVOLUTIONS) and not _has_one_tap(module)
        ]
        return f"{reason}, but stands before {convolutions[0]}" if convolutions else reason

    def _add(self, layer: nn.Module, conv: Any) -> None:
        """Give a convolution the stride of a layer."""
        assert isinstance(layer, DiffStride)
        rank = len(conv.kernel_size)
        # Count axes from the end, for a map with batch and channels.
        axes = [axis if axis < 0 else axis - rank - 2 for axis in layer.settings.axes]
        if not set(axes) <= set(range(-rank, 0)):
            self._refuse(layer, f"it resizes other axes than those of {self._names[conv]}")
            return
        stride = [1] * rank
        for axis, own in zip(axes, self._strides[layer], strict=True):
            stride[axis] = own
        if self._of_conv.setdefault(conv, tuple(stride)) != tuple(stride):
            self._refuse(conv, "it is called with layers of several strides")


def _calls_beside(
    source: fx.Node, node: fx.Node, called: Mapping[fx.Node, nn.Module]
) -> list[fx.Node]:
    """Return the calls of convolutions that can take over a layer's stride, if there are any.

    If the layer follows a convolution, this is the call of that convolution, provided that only the
    layer reads its output. Otherwise these are the calls of all readers of the layer's output,
    provided that they are convolutions with one tap.
    """
    module = called.get(source)
    if isinstance(module, CONVOLUTIONS) and not isinstance(module, _OWN):
        return [source] if set(source.users) == {node} else []
    readers = list(node.users)
    commute = all(reader in called and _has_one_tap(called[reader]) for reader in readers)
    return readers if commute else []


def _has_one_tap(module: nn.Module) -> bool:
    return is_pointwise(module) and not any(_strided_padding(module))  # type: ignore[arg-type]


def _strided_padding(conv: AnyConv) -> Any:
    """Return the padding with which a strided convolution starts where one of stride 1 does."""
    if conv.padding == "same":  # PyTorch allows it only with stride 1
        return tuple(
            dilation * (kernel - 1) // 2
            for dilation, kernel in zip(conv.dilation, conv.kernel_size, strict=True)
        )
    return in_numbers(conv.padding, len(conv.kernel_size))


def _why_not_layer(layer: DiffStride) -> str | None:
    if not layer.settings.cropping:
        return "it does not crop"
    if layer.settings.norm != "forward":
        return f"its norm is {layer.settings.norm!r}"
    return None


def _why_not_convolution(conv: Any, stride: Size) -> str | None:
    if type(conv) not in _OWN:
        return "its class derives from DiffStrideConv, and may compute something else"
    if has_hooks(conv, of_state=True):
        return "it has hooks, which would be lost"
    if conv.placement == "before" and set(conv.kernel_size) != {1} and max(stride) > 1:
        return "its layer stands before it"
    return None
