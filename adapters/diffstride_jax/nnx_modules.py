"""DiffStride and spectral pooling as Flax NNX modules: channels last, like all of Flax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.linear import default_bias_init, default_kernel_init

from diffstride_core.arguments import Limits, checked_shape, initial_strides
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import checked_placement, odd_kernel, per_axis, spatial_axes
from diffstride_core.planning import plan_pool
from diffstride_core.settings import make_settings
from diffstride_jax.layers import (
    STRIDES,
    WEIGHTS,
    CompilationKey,
    check_kept_padding,
    check_new_convolution,
    checked_layers,
    convolve_and_downsample,
    current_plan,
    downsample,
    make_plans,
    penalty,
    pool,
    projected,
    read_strides,
    strides_dtype,
)

__all__ = [
    "CompilationKey",
    "DiffStride",
    "DiffStrideConv",
    "SpectralPool",
    "StrideParam",
    "compilation_key",
    "complexity_penalty",
    "project_strides",
    "replan",
    "stride_labels",
]

ParamsT = TypeVar("ParamsT")


class StrideParam(nnx.Param[Any]):
    """The strides of a layer, as a type of parameter of its own.

    An optimiser can tell them from other parameters by it. They should have no weight decay, for
    example, which would pull them towards 0 and out of their bounds.
    """


class DiffStride(nnx.Module):
    """Downsampling layer with learnt strides, channels last: (..., H, W, C), like Flax's layers.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis, or one for all axes.
    axes : int or sequence of int
        The axes to resize. By default, height and width, the two axes before the channels.
    shared : bool
        Whether all axes share one learnt stride. By default each axis has its own.
    smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Number to add to the output size that follows from the stride: one per axis, or one for all.
        The result is kept between 1 and the input's size.
    param_dtype : dtype
        Dtype of the strides: float32 or float64.

    Attributes
    ----------
    strides : StrideParam, shape (d,) or (1,)
        The stride parameters. A call uses bounded values and leaves the parameter alone.
        `project_strides` moves the parameter back within its bounds; call it after each step of
        the optimiser.
    plans : PlanCache
        Static state: the output sizes for the strides as they were last read. They are read when
        the layer is made, by `replan` and by `project_strides`. `nnx.jit` recompiles when an output
        size has changed, and only then.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or a stride is below 1.

    Notes
    -----
    Outside `jax.jit` and other transformations, strides have concrete values, and the output size
    follows them. Inside, it follows the strides as they were last read. After restoring strides
    from a checkpoint, call `replan`.

    A checkpoint made from `nnx.state` has the values of the strides, but not the convention and
    smoothness that they were learnt with. In a model with another convention or smoothness the
    same strides mean something else, without an error. Save the layer's arguments, for example
    `to_dict`, with the checkpoint.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.nnx_modules import DiffStride
    >>> layer = DiffStride([2.0, 3.0])
    >>> layer(jnp.ones((8, 32, 32, 3))).shape
    (8, 16, 11, 3)
    """

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        axes: int | Sequence[int] = (-3, -2),
        shared: bool = False,
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
        size_offset: int | Sequence[int] = 0,
        param_dtype: Any = jnp.float32,
    ) -> None:
        self.plans, strides = make_plans(
            stride,
            shared,
            param_dtype,
            axes=axes,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
            norm=norm,
            convention=convention,
            method=method,
            size_offset=size_offset,
        )
        self.strides = StrideParam(strides)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Downsample an array.

        Parameters
        ----------
        x : jax.Array, shape (..., N_1, ..., N_d, C)
            Input. By default two axes are resized; `axes` may name others.

        Returns
        -------
        jax.Array, shape (..., M_1, ..., M_d, C)
        """
        return downsample(self.plans, x, self.strides[...])

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return current_plan(self.plans, checked_shape(shape), self.strides[...]).output_sizes

    def replan(self) -> None:
        """Read the strides and update the output sizes; call it outside `nnx.jit`."""
        replan(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments, with its present strides, as plain values.

        The values can be written as JSON, and make the same layer in every framework but Keras:
        ``DiffStride(**layer.to_dict())``. Strides below 1 count as 1, and are returned as 1.
        """
        return self.plans.settings.layer_arguments(self.strides[...].tolist())


class DiffStrideConv(nnx.Conv):
    """An `nnx.Conv` with learnt strides, channels last, in place of a strided one.

    It takes the arguments of `nnx.Conv` that are listed here, in the same order. Two arguments
    differ:

    - `strides` holds the initial strides. They are real numbers from 1 on; the default is 2.0.
    - `padding` must keep the size of the input.

    The module is an `nnx.Conv` of stride 1, whose parameters keep their names and shapes, and a
    DiffStride layer, `pool`.

    Parameters
    ----------
    in_features, out_features : int
    kernel_size : int or sequence of int
        Odd sizes. An int stands for one spatial axis, as in `nnx.Conv`.
    strides : float or sequence of float
        Initial strides, at least 1: one per spatial axis, or one for all axes.
    padding : str, int, sequence of int or of pairs of ints
        "SAME", "SAME_LOWER", "CIRCULAR", or half of ``kernel_dilation * (kernel_size - 1)`` on each
        side. With the placement "before" also "REFLECT". For a kernel of one tap also "VALID".
    kernel_dilation, feature_group_count, use_bias
        See `nnx.Conv`.
    method : {"auto", "fused", "separate"}
        How to evaluate a layer after the convolution; see `conv_diff_stride`.
    placement : {"before", "after"}, optional
        Whether the layer comes before or after the convolution. The default is "before", unless
        `method` is "fused" or "separate".

        - "before": resize the input, then convolve the smaller map. This costs about as much as the
          strided convolution. In the nominal convention the output has the size that the strided
          convolution gives, at integer strides up to 4 that are at most half the axis.
        - "after": convolve the input at full resolution, then resize the result, as in the paper.
          Choose it to reproduce the paper, or to compute exactly a convolution at full resolution
          followed by a low-pass filter. ``method="auto"`` may compute this without a map at full
          resolution.
    shared, smoothness, limits, cropping, multiple_of, norm, convention
        See `DiffStride`.
    dtype, kernel_init, bias_init
        See `nnx.Conv`.
    param_dtype : dtype
        Dtype of all parameters. Strides are never in half precision.
    rngs : nnx.Rngs
        Random number generators for the initial kernel and bias.

    Attributes
    ----------
    kernel : nnx.Param, shape (k_1, ..., k_d, in_features / feature_group_count, out_features)
    bias : nnx.Param, shape (out_features,), or None
    pool : DiffStride
        The layer that has the strides.

    Raises
    ------
    TypeError, ValueError
        If `DiffStride` would refuse an argument; if the kernel is even or does not fit the
        features; if the padding would change the size; or if the placement is "before" and the
        method is "fused" or "separate".

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.nnx_modules import DiffStrideConv
    >>> from flax import nnx
    >>> conv = DiffStrideConv(3, 16, (3, 3), [2.0, 3.0], rngs=nnx.Rngs(0))
    >>> conv(jnp.ones((8, 32, 32, 3))).shape
    (8, 16, 11, 16)
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: float | Sequence[float] = 2.0,
        *,
        padding: str | int | Sequence[int] | Sequence[tuple[int, int]] = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        method: str = "auto",
        placement: str | None = None,
        shared: bool = False,
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: nnx.Initializer = default_kernel_init,
        bias_init: nnx.Initializer = default_bias_init,
        rngs: nnx.Rngs,
    ) -> None:
        placement = checked_placement(placement, method)
        kernel = odd_kernel(kernel_size, np.size(kernel_size))
        dilations = per_axis("kernel_dilation", kernel_dilation, len(kernel))
        modes = {"CIRCULAR": "circular"}
        if placement == "before":
            modes["REFLECT"] = "reflect"
        check_kept_padding(padding, kernel, dilations, "SAME", "SAME_LOWER", *modes)
        (groups,) = per_axis("feature_group_count", feature_group_count, 1)
        if in_features % groups or out_features % groups:
            raise ValueError(
                "feature_group_count must divide in_features and out_features, "
                f"{in_features} and {out_features}, got {feature_group_count}"
            )
        values = initial_strides(strides, len(kernel), shared, "strides")
        dtype_of_strides = strides_dtype("param_dtype", param_dtype)
        word = padding.upper() if isinstance(padding, str) else ""
        super().__init__(
            in_features,
            out_features,
            kernel,
            padding=word if word in modes else "SAME",
            kernel_dilation=dilations,
            feature_group_count=feature_group_count,
            use_bias=use_bias,
            dtype=dtype,
            param_dtype=param_dtype,
            kernel_init=kernel_init,
            bias_init=bias_init,
            rngs=rngs,
        )
        self.padding_mode, self.method = modes.get(word, "zeros"), method
        self.placement = placement
        *_, per_group, features = self.kernel_shape
        check_new_convolution(in_features, (features, per_group, *kernel), **self._options())
        self.pool = DiffStride(
            values,
            axes=spatial_axes(len(kernel), channels_last=True),
            shared=shared,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
            norm=norm,
            convention=convention,
            param_dtype=dtype_of_strides,
        )

    def __call__(self, x: jax.Array) -> jax.Array:  # type: ignore[override]
        """Convolve and downsample an array, in the order given by `placement`.

        Parameters
        ----------
        x : jax.Array, shape (..., N_1, ..., N_d, in_features)
            Input. It is promoted with the parameters, or to `dtype`, as in `nnx.Conv`.

        Returns
        -------
        jax.Array, shape (..., M_1, ..., M_d, out_features)
        """
        bias = None if self.bias is None else self.bias[...]
        x, kernel, bias = self.promote_dtype((x, self.kernel[...], bias), dtype=self.dtype)
        rank = kernel.ndim - 2
        return convolve_and_downsample(
            self.pool.plans,
            x,
            kernel.transpose(rank + 1, rank, *range(rank)),
            self.pool.strides[...],
            bias,
            method=self.method,
            placement=self.placement,
            convolve=super().__call__,
            channels_last=True,
            **self._options(),
        )

    def _options(self) -> dict[str, Any]:
        return {
            "dilation": self.kernel_dilation,
            "groups": self.feature_group_count,
            # If the layer comes before the convolution, Flax pads its output.
            "padding_mode": "zeros" if self.placement == "before" else self.padding_mode,
        }


class SpectralPool(nnx.Module):
    """Spectral pooling layer with fixed strides, channels last: (..., H, W, C), like Flax's layers.

    Parameters
    ----------
    stride : float or sequence of float
        Strides, at least 1: one per resized axis, or one for all axes.
    axes : int or sequence of int
        The axes to resize. By default, height and width, the two axes before the channels.
    norm, convention
        See `spectral_pool`.

    Raises
    ------
    TypeError, ValueError
        If `spectral_pool` would refuse an argument.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.nnx_modules import SpectralPool
    >>> SpectralPool([2.0, 3.0])(jnp.ones((8, 32, 32, 3))).shape
    (8, 16, 10, 3)
    """

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        axes: int | Sequence[int] = (-3, -2),
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
    ) -> None:
        self.settings = make_settings(axes=axes, norm=norm, convention=convention)
        self.stride = initial_strides(stride, len(self.settings.axes), shared=False)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Downsample an array.

        Parameters
        ----------
        x : jax.Array, shape (..., N_1, ..., N_d, C)
            Input. By default two axes are resized; `axes` may name others.

        Returns
        -------
        jax.Array, shape (..., M_1, ..., M_d, C)
        """
        return pool(self.settings, x, self.stride)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return plan_pool(self.settings, checked_shape(shape), self.stride).output_sizes


def replan(model: nnx.Module) -> None:
    """Read the strides of a model's layers and update their output sizes.

    Call it outside `nnx.jit`, where something other than `project_strides` has changed strides. All
    strides are read in one transfer. A function compiled with the model is recompiled at its next
    call if an output size has changed, and only then.

    Parameters
    ----------
    model : nnx.Module
        A model or a layer.

    Raises
    ------
    ValueError
        If strides are traced, or a stride is NaN or infinite, in which case the message names the
        layer. Nothing has changed.
    """
    layers = _named_layers(model)
    values = read_strides(layers, [layer.strides[...] for layer in layers.values()])
    for layer, strides in zip(layers.values(), values, strict=True):
        layer.plans = layer.plans.refreshed(strides)


def project_strides(model: nnx.Module) -> None:
    """Move every stride of a model back within its bounds, and update the output sizes.

    Call it after each step of the optimiser, outside `nnx.jit`. All strides are read in one
    transfer. The bounds are the layer's limits, and the built-in bounds of the input sizes that the
    layer has seen since the last projection. A layer that has seen none, for example because a
    compiled function was not traced again, keeps the bounds of the last projection.

    Parameters
    ----------
    model : nnx.Module

    Raises
    ------
    ValueError
        If a stride is traced, NaN or infinite; see `replan`.
    """
    layers = _named_layers(model)
    values = read_strides(layers, [layer.strides[...] for layer in layers.values()])
    for layer, strides in zip(layers.values(), values, strict=True):
        layer.plans, kept = projected(layer.plans, layer.strides[...], strides)
        layer.strides.set_value(kept)


def compilation_key(model: nnx.Module) -> CompilationKey:
    """Return a key that changes when the strides make a compiled function compile again.

    Collect the keys of all calls in a set. If the key of the next call is not in the set, the call
    will compile. The key does not cover other reasons to compile, such as another batch size.

    Parameters
    ----------
    model : nnx.Module
        A model or a layer. Its strides are not read: the key has the output sizes of the last
        `replan` or `project_strides`, as a compiled function has them.

    Returns
    -------
    CompilationKey
        Hashable. Two keys are equal if the same compiled function serves both calls. The output
        sizes of a layer that has seen no input are not known yet, and then any change of its
        strides changes the key.

    Examples
    --------
    >>> from diffstride_jax.nnx_modules import DiffStride, compilation_key, replan
    >>> import jax.numpy as jnp
    >>> layer = DiffStride(2.0)
    >>> layer(jnp.ones((8, 32, 32, 3))).shape
    (8, 16, 16, 3)
    >>> before = compilation_key(layer)
    >>> layer.strides[...] = jnp.array([2.01, 1.99])
    >>> replan(layer)
    >>> compilation_key(layer) == before
    True
    >>> layer.strides[...] = jnp.array([2.0, 3.0])
    >>> replan(layer)
    >>> compilation_key(layer) == before
    False
    """
    return CompilationKey(layer.plans for layer in _named_layers(model).values())


def stride_labels(params: ParamsT) -> ParamsT:
    """Return the labels of a model's parameters for `optax.multi_transform`.

    Pass the returned tree to `optax.multi_transform`, not this function. `nnx.Optimizer` passes
    plain arrays to Optax, which do not show whether they are strides.

    Parameters
    ----------
    params : nnx.State
        Variables, as ``nnx.state(model, nnx.Param)`` returns them.

    Returns
    -------
    nnx.State
        A tree of the same structure, with "strides" for each `StrideParam` and "weights" for each
        other variable. Names of variables do not matter.

    Raises
    ------
    TypeError
        If `params` is a module, or a leaf of the tree is not a variable.

    Examples
    --------
    >>> import optax
    >>> from diffstride_jax.nnx_modules import DiffStride, stride_labels
    >>> from flax import nnx
    >>> model = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), DiffStride(2.0))
    >>> labels = stride_labels(nnx.state(model, nnx.Param))
    >>> transforms = {"weights": optax.adamw(1e-3), "strides": optax.adam(1e-2)}
    >>> optimizer = nnx.Optimizer(model, optax.multi_transform(transforms, labels), wrt=nnx.Param)
    """
    if isinstance(params, nnx.Module):
        raise TypeError(
            "params must be the state of a model, as nnx.state(model, nnx.Param), got the module "
            f"{type(params).__name__}"
        )
    labels: ParamsT = jax.tree.map(_label, params, is_leaf=_is_variable)
    return labels


def _is_variable(node: Any) -> bool:
    return isinstance(node, nnx.Variable)


def _label(variable: Any) -> str:
    if not _is_variable(variable):
        raise TypeError(
            "params must hold variables, as nnx.state(model, nnx.Param) does, got a plain "
            f"{type(variable).__name__}, which does not say whether it is a stride; give Optax the "
            "tree that stride_labels returns, not the function"
        )
    return STRIDES if isinstance(variable, StrideParam) else WEIGHTS


def complexity_penalty(layers: Sequence[DiffStride]) -> jax.Array:
    """Return the complexity penalty J of layers.

    Parameters
    ----------
    layers : sequence of DiffStride
        Layers in the order of the network. A model does not keep this order under `nnx.jit`.

    Returns
    -------
    jax.Array, shape ()
        J, differentiable in the strides; see `complexity`.

    Raises
    ------
    TypeError
        If the layers are not in a sequence, or not of this module's `DiffStride`. A set, for
        example, has no order.
    ValueError
        If there is no layer.
    """
    found = checked_layers(layers, DiffStride)
    return penalty([layer.plans for layer in found], [layer.strides[...] for layer in found])


def _named_layers(model: nnx.Module) -> dict[str, DiffStride]:
    if not isinstance(model, nnx.Module):
        raise TypeError(f"model must be a Flax NNX module, got {type(model).__name__}")
    layers = {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, DiffStride)
    }
    for name, layer in layers.items():
        if not isinstance(layer.strides, nnx.Variable):
            raise TypeError(
                f"strides of layer {name!r} must be a parameter, got "
                f"{type(layer.strides).__name__}: change its values with layer.strides[...] = ..."
            )
    return layers
