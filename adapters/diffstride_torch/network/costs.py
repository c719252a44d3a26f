"""The multiply-adds of a network as a function of its strides."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from diffstride_backends.torch_backend import whole
from torch import nn

from diffstride_core.arguments import axis_sizes, normalized_axes
from diffstride_core.convolution.evaluation import Product, comparable_products, fused_products
from diffstride_core.plan import AxisPlan, Plan
from diffstride_core.planning import never_cropped, plan_diff_stride
from diffstride_torch.joining import fused_plan, weight_shape
from diffstride_torch.modules import DiffStride, read_strides
from diffstride_torch.network.tracing import (
    Call,
    Constant,
    Learnt,
    Pooled,
    Recording,
    ResizeCall,
    Step,
    Trace,
    unwrapped,
)
from diffstride_torch.sliding import Size

Strides: TypeAlias = Mapping[DiffStride, tuple[float, ...]]
"""The stride parameters of layers, as numbers."""

_BEYOND_ALL_BOUNDS = 1e30


def flops_penalty(model: nn.Module, example_input: Any) -> FlopsPenalty:
    """Trace a model and return its multiply-adds as a function of its strides.

    Parameters
    ----------
    model : torch.nn.Module
        A model with at least one DiffStride layer, or a wrapper of it: ``DistributedDataParallel``,
        or what ``torch.compile`` returns. It is traced with torch.fx and run once.
    example_input : Tensor, shape (N, C, ...), or tuple
        Arguments of the model. The cost is counted for inputs of this size.

    Returns
    -------
    FlopsPenalty
        The penalty. Call it in every step: ``loss + weight * penalty() / penalty.initial``.

    Raises
    ------
    TypeError
        If the model is not a module, or the example is not a tensor.
    ValueError
        If the model has no DiffStride layer, cannot be traced or run, is already distributed by
        ``fully_shard``, or makes a call whose size or cost depends on a stride in an unknown way.
    """
    model = unwrapped(model)
    return FlopsPenalty(Trace(model, example_input), type(model).__name__)


class FlopsPenalty:
    r"""The multiply-adds of a network, differentiable in its strides; made by `flops_penalty`.

    It counts, per image, convolutions, linear layers and the matrix products of resizes. It does
    not count norms and nonlinearities. An axis of more than 384 samples (512 unless it is the last
    one) counts as so many multiply-adds per output sample, whether it is resized by a product or
    by FFTs, which take about the time of such a product.

    For shorter axes the value is exact. It is a step function of the strides, since the output size
    M is a whole number. The gradient is that of a smooth size that M approximates, at the present
    sizes: N/S plus the layer's size offset, which differs from M by less than one sample. In the
    paper's convention the smooth size is N/S + 2R, and differs from M by less than two. The
    gradient is passed on unchanged through the bounds of strides, as for the complexity penalty,
    and through M = N, where the stride is still too small to crop, unless no stride crops that
    axis. Strided operations and padding after a layer are taken into account.

    Attributes
    ----------
    layers : list of DiffStride
        The layers in the order of execution, each once.
    initial : int
        Multiply-adds per image at the strides that the model had when traced.
    """

    def __init__(self, trace: Trace, name: str) -> None:
        self.layers: list[DiffStride] = trace.layers
        if not self.layers:
            raise ValueError(f"model must have a DiffStride layer, got {name} with none")
        for step in trace.steps:
            if step.rule is None and _is_learnt(step.before):
                raise ValueError(
                    f"model {name}: it is unknown how the output size of {step.name} depends on "
                    "its input size"
                )
        for call in trace.calls:
            if not call.is_per_position and _is_learnt(call.at):
                raise ValueError(
                    f"model {name}: it is unknown how the cost of {call.name} depends on its input "
                    "size; it is known for convolutions and linear layers"
                )
        self._trace = trace
        self.initial = self.multiply_adds()

    def __call__(self) -> torch.Tensor:
        """Return the multiply-adds per image.

        Returns
        -------
        Tensor, shape ()
            Number of multiply-adds, with the strides' dtype.
        """
        now = self._evaluate()
        every = [whole(layer.strides) for layer in self.layers]
        total = every[0].new_tensor(float(now.total))
        for layer, strides in zip(self.layers, every, strict=True):
            gradients = strides.new_tensor(now.stride_gradients(layer))
            # This adds 0 to the value, but adds the gradient.
            total = total + ((strides - strides.detach()) * gradients).sum().to(total)
        return total

    def multiply_adds(self) -> int:
        """Return the multiply-adds per image at the present strides."""
        return self._evaluate().total

    def of_layer(self, layer: DiffStride) -> int:
        """Return the multiply-adds per image of a layer itself, over all its calls."""
        return self._evaluate().of_layer[layer]

    def at_output_of(self, layer: DiffStride) -> int:
        """Return the multiply-adds per image of all that runs at the size of a layer's output.

        This covers the operations up to the next layer. The layers themselves are not included.
        """
        return self._evaluate().at_output_of[layer]

    def multiply_adds_range(self) -> tuple[int, int]:
        """Return the multiply-adds per image with all strides at one end of their bounds.

        Returns
        -------
        (least, most) : int
            Strides that are not trained, whose ``requires_grad`` is False, stay where they are.
        """
        ends = [
            self._evaluate(
                {
                    layer: (end,) * layer.strides.numel()
                    for layer in self.layers
                    if layer.strides.requires_grad
                }
            ).total
            for end in (1.0, _BEYOND_ALL_BOUNDS)
        ]
        return min(ends), max(ends)

    def _evaluate(self, strides: Strides | None = None) -> _Evaluation:
        return _Evaluation(self._trace, self.layers, strides)


def recorded_multiply_adds(recording: Recording) -> int:
    """Return the multiply-adds per image that a model had when it was recorded."""
    return _Evaluation(recording, recording.layers).total


class _Evaluation:
    """The cost and its gradients, at the present strides or at given strides of some layers."""

    def __init__(
        self, trace: Recording, layers: list[DiffStride], strides: Strides | None = None
    ) -> None:
        self.total = 0
        self.of_layer = dict.fromkeys(layers, 0)
        self.at_output_of = dict.fromkeys(layers, 0)
        self._strides = dict(zip(layers, read_strides(layers), strict=True))
        self._strides.update(strides or {})
        self._stride_gradients = {layer: [0.0] * len(layer.settings.axes) for layer in layers}
        self._sizes: dict[Step | None, Size] = {None: trace.input_size}
        self._plans: dict[Step, Plan] = {}
        for step in trace.steps:
            self._resize(step)
        # Derivative of the cost with respect to each size, at first without the steps after it.
        self._size_gradients = {step: [0.0] * len(size) for step, size in self._sizes.items()}
        for call in trace.calls:
            self._add_call(call, math.prod(trace.size_at(call.at)))
        for resize in trace.resizes:
            self._add_resize(resize)
        for step in reversed(trace.steps):
            self._pull_back(step)

    def stride_gradients(self, layer: DiffStride) -> list[float]:
        """Return the derivative of the cost with respect to each stride parameter of a layer."""
        gradients = self._stride_gradients[layer]
        return [sum(gradients)] if layer.strides.numel() < len(gradients) else gradients

    def _resize(self, step: Step) -> None:
        size, rule = self._sizes[step.before], step.rule
        shape = (1, 1, *size)
        if isinstance(rule, Learnt):
            layer = rule.layer
            axes = normalized_axes(layer.settings.axes, shape)
            self._plans[step] = plan_diff_stride(
                layer.settings,
                axes,
                axis_sizes(axes, size),
                self._strides[layer],
                shared=layer.strides.numel() < len(axes),
                warn=False,
            )
        elif isinstance(rule, Pooled):
            self._plans[step] = rule.layer.plan(shape)
        else:
            size = step.output_size if rule is None else rule.resize(size)
            # If strides are so large that a window no longer fits, the model itself fails.
            self._sizes[step] = tuple([max(1, n) for n in size])
            return
        self._sizes[step] = self._plans[step].output_shape(size)

    def _add_call(self, call: Call, positions: int) -> None:
        size = self._sizes[call.at]
        cost = call.multiply_adds
        layer = _last_layer(call.at)
        if layer is not None and call.is_per_position:
            cost = cost // positions * math.prod(size)
            self.at_output_of[layer] += cost
            for axis, n in enumerate(size):
                self._size_gradients[call.at][axis] += cost / n
        self.total += cost

    def _add_resize(self, resize: ResizeCall) -> None:
        """Count a layer's products, and those of the convolution that it is called with."""
        step, conv = resize.step, resize.conv
        plan, size = self._plans[step], self._sizes[step.before]
        at = [len(size) + axis.axis for axis in plan.axes]
        others = [axis for axis in range(len(size)) if axis not in at]
        elsewhere = math.prod(size[axis] for axis in others)
        own = comparable_products(plan, resize.channels * elsewhere)
        if conv is not None:
            shape = (1, conv.in_channels, *size)
            axes = tuple(axis.axis for axis in plan.axes)
            joined = fused_plan(conv, shape, axes, lambda: plan, resize.method)
            place = step.before
            taps = math.prod(weight_shape(conv))
            of_conv = Product(taps * elsewhere, tuple(range(len(at))), ())
            if joined is not None:
                place = step
                of_conv, *own = fused_products(joined)
            self._add_product(of_conv, resize, at, others)
            if (last := _last_layer(place)) is not None:
                self.at_output_of[last] += of_conv.multiply_adds(plan)
        for product in own:
            self._add_product(product, resize, at, others)
            if isinstance(step.rule, Learnt):
                self.of_layer[step.rule.layer] += product.multiply_adds(plan)

    def _add_product(
        self, product: Product, resize: ResizeCall, at: list[int], others: list[int]
    ) -> None:
        plan, step = self._plans[resize.step], resize.step
        cost, before = product.multiply_adds(plan), self._size_gradients[step.before]
        self.total += cost
        for i in product.inputs:
            before[at[i]] += cost / plan.axes[i].size
        for i in product.outputs:
            self._size_gradients[step][at[i]] += cost / plan.axes[i].output_size
        for axis in others:
            before[axis] += cost / self._sizes[step.before][axis]

    def _pull_back(self, step: Step) -> None:
        """Pass the gradients after a step on to the sizes before it and to its strides."""
        rule, before, after = (
            step.rule,
            self._size_gradients[step.before],
            self._size_gradients[step],
        )
        if isinstance(rule, Learnt):
            gradients, plan = self._stride_gradients[rule.layer], self._plans[step]
            never = never_cropped(rule.layer.settings, tuple(axis.size for axis in plan.axes))
            resized = {axis.axis % len(after): i for i, axis in enumerate(plan.axes)}
            for at, gradient in enumerate(after):
                of_size, of_stride = 1.0, 0.0
                if at in resized:
                    i = resized[at]
                    of_size, of_stride = self._size_derivatives(
                        rule.layer, i, plan.axes[i], never[i]
                    )
                    gradients[i] += gradient * of_stride
                before[at] += gradient * of_size
        elif rule is not None and not isinstance(rule, Constant):
            for at, gradient in enumerate(after):
                before[at] += gradient * rule.rate(at)

    def _size_derivatives(
        self, layer: DiffStride, i: int, axis: AxisPlan, never_cropped: bool
    ) -> tuple[float, float]:
        """Return the smooth output size's derivatives with respect to input size and stride."""
        settings, strides = layer.settings, self._strides[layer]
        if not settings.cropping or never_cropped:
            return 1.0, 0.0
        stride = axis.bounds.apply(strides[i % len(strides)])
        # The smooth size is twice the cutoff plus a constant, and the cutoff follows N/(2S).
        growth = (
            settings.convention.cutoff_derivative(axis.size, settings.smoothness, stride) / stride
        )
        of_size = growth if axis.output_size < axis.size else 1.0
        return of_size, -growth * axis.size / stride


def _is_learnt(step: Step | None) -> bool:
    """Return whether the size after a step depends on a learnt stride."""
    return _last_layer(step) is not None


def _last_layer(step: Step | None) -> DiffStride | None:
    """Return the last layer on the way to a step that the step's size depends on, or None."""
    while step is not None and not isinstance(step.rule, Constant):
        if isinstance(step.rule, Learnt):
            return step.rule.layer
        step = step.before
    return None
