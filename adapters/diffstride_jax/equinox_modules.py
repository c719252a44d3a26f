"""DiffStride and spectral pooling as Equinox modules: channels first, no batch, like Equinox's own.

Map over a batch with `jax.vmap`, or pass it as axes before the channels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffstride_core.arguments import Limits, checked_shape, initial_strides, option
from diffstride_core.conventions import DEFAULT_CONVENTION
from diffstride_core.convolution.checks import (
    PADDING_MODES,
    checked_placement,
    odd_kernel,
    per_axis,
    spatial_axes,
)
from diffstride_core.plan_cache import PlanCache
from diffstride_core.planning import plan_pool
from diffstride_core.settings import Settings, make_settings
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
    "compilation_key",
    "complexity_penalty",
    "project_strides",
    "replan",
    "stride_labels",
]

ModelT = TypeVar("ModelT")


class DiffStride(eqx.Module):
    """Downsampling layer with learnt strides, channels first: (C, H, W), like Equinox's layers.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis, or one for all axes.
    axes : int or sequence of int
        The axes to resize. By default, height and width, the last two axes. Use ``axes=-1`` for one
        spatial axis and ``axes=(-3, -2, -1)`` for three.
    shared : bool
        Whether all axes share one learnt stride. By default each axis has its own.
    smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Number to add to the output size that follows from the stride: one per axis, or one for all.
        The result is kept between 1 and the input's size.
    dtype : dtype
        Dtype of the strides: float32 or float64.

    Attributes
    ----------
    strides : jax.Array, shape (d,) or (1,)
        The stride parameters. A call uses bounded values and leaves the parameter alone.
        `project_strides` returns a model with the parameters moved back within their bounds; call
        it after each step of the optimiser.
    plans : PlanCache
        Static state: the output sizes for the strides as they were last read. They are read when
        the layer is made, by `replan` and by `project_strides`. `equinox.filter_jit` recompiles
        when an output size has changed, and only then.

    Raises
    ------
    TypeError, ValueError
        If `diff_stride` would refuse an argument, or a stride is below 1.

    Notes
    -----
    Outside `jax.jit` and other transformations, strides have concrete values, and the output size
    follows them. Inside, it follows the strides as they were last read. After restoring strides
    from a checkpoint, call `replan`.

    A file written by `equinox.tree_serialise_leaves` has the values of the strides, but not the
    convention and smoothness that they were learnt with. In a model with another convention or
    smoothness the same strides mean something else, without an error. Save the layer's arguments,
    for example `to_dict`, with the file.

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.equinox_modules import DiffStride
    >>> layer = DiffStride([2.0, 3.0])
    >>> layer(jnp.ones((3, 32, 32))).shape
    (3, 16, 11)
    >>> jax.vmap(layer)(jnp.ones((8, 3, 32, 32))).shape
    (8, 3, 16, 11)
    """

    strides: jax.Array
    # A leaf that is not an array. Equinox's transformations treat it as static, but it is not part
    # of the tree's structure, which must stay that of the optimiser's state.
    plans: PlanCache

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        axes: int | Sequence[int] = (-2, -1),
        shared: bool = False,
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        method: str = "auto",
        size_offset: int | Sequence[int] = 0,
        dtype: Any = jnp.float32,
    ) -> None:
        self.plans, self.strides = make_plans(
            stride,
            shared,
            dtype,
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

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Downsample an array.

        Parameters
        ----------
        x : jax.Array, shape (..., C, N_1, ..., N_d)
            Input. By default two axes are resized; `axes` may name others.
        key : ignored
            `equinox.nn.Sequential` passes it.

        Returns
        -------
        jax.Array, shape (..., C, M_1, ..., M_d)
        """
        return downsample(self.plans, x, self.strides)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return current_plan(self.plans, checked_shape(shape), self.strides).output_sizes

    def replan(self) -> DiffStride:
        """Return the layer with its strides read and its output sizes updated; see `replan`."""
        return replan(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments, with its present strides, as plain values.

        The values can be written as JSON, and make the same layer in every framework but Keras:
        ``DiffStride(**layer.to_dict())``. Strides below 1 count as 1, and are returned as 1.
        """
        return self.plans.settings.layer_arguments(self.strides.tolist())


class DiffStrideConv(eqx.nn.Conv):
    """An `equinox.nn.Conv` with learnt strides, channels first, in place of a strided one.

    It takes the arguments of `equinox.nn.Conv`, in the same order. Two arguments differ:

    - `stride` holds the initial strides. They are real numbers from 1 on; the default is 2.0.
    - `padding` must keep the size of the input. The default is "SAME".

    The module is an `equinox.nn.Conv` of stride 1, whose parameters keep their names and shapes,
    and a DiffStride layer, `pool`.

    Parameters
    ----------
    num_spatial_dims : int
        1, 2 or 3.
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        Odd sizes.
    stride : float or sequence of float
        Initial strides, at least 1: one per spatial axis, or one for all axes.
    padding : str, int, sequence of int or of pairs of ints
        "SAME", "SAME_LOWER", or half of ``dilation * (kernel_size - 1)`` on each side. For a kernel
        of one tap also "VALID".
    dilation, groups, use_bias
        See `equinox.nn.Conv`.
    padding_mode : {"ZEROS", "CIRCULAR", "REFLECT", "REPLICATE"}
        How to pad the map that is convolved, in capitals or not. "REFLECT" and "REPLICATE" require
        the placement "before".
    dtype : dtype, optional
        Dtype of all parameters, by default that of `equinox.nn.Conv`. Strides are never in half
        precision.
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
    key : jax.Array
        Random key for the initial weight and bias.

    Attributes
    ----------
    weight : jax.Array, shape (out_channels, in_channels / groups, k_1, ..., k_d)
    bias : jax.Array, shape (out_channels, 1, ..., 1), or None
    pool : DiffStride
        The layer that has the strides.

    Raises
    ------
    TypeError, ValueError
        If `DiffStride` or `equinox.nn.Conv` would refuse an argument; if the kernel is even; if the
        padding would change the size; or if the placement is "before" and the method is "fused" or
        "separate".

    Examples
    --------
    >>> import jax
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.equinox_modules import DiffStrideConv
    >>> key = jax.random.key(0)
    >>> conv = DiffStrideConv(2, 3, 16, 3, [2.0, 3.0], 1, key=key)
    >>> jax.vmap(conv)(jnp.ones((8, 3, 32, 32))).shape
    (8, 16, 16, 11)
    """

    pool: DiffStride
    method: str = eqx.field(static=True)
    placement: str = eqx.field(static=True)

    def __init__(
        self,
        num_spatial_dims: int,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: float | Sequence[float] = 2.0,
        padding: str | int | Sequence[int] | Sequence[tuple[int, int]] = "SAME",
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        use_bias: bool = True,
        padding_mode: str = "ZEROS",
        dtype: Any = None,
        *,
        method: str = "auto",
        placement: str | None = None,
        shared: bool = False,
        smoothness: float | None = None,
        limits: Limits | None = (None, None),
        cropping: bool = True,
        multiple_of: int = 1,
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
        key: jax.Array,
    ) -> None:
        if num_spatial_dims not in (1, 2, 3):
            raise ValueError(f"num_spatial_dims must be 1, 2 or 3, got {num_spatial_dims!r}")
        placement = checked_placement(placement, method)
        kernel = odd_kernel(kernel_size, num_spatial_dims)
        dilations = per_axis("dilation", dilation, num_spatial_dims)
        check_kept_padding(padding, kernel, dilations, "SAME", "SAME_LOWER")
        mode = padding_mode.lower() if isinstance(padding_mode, str) else padding_mode
        own = ("reflect", "replicate") if placement == "before" else ()
        option("padding_mode", mode, (*PADDING_MODES, *own))
        super().__init__(
            num_spatial_dims,
            in_channels,
            out_channels,
            kernel,
            padding="SAME",
            dilation=dilations,
            groups=groups,
            use_bias=use_bias,
            padding_mode=padding_mode,
            dtype=dtype,
            key=key,
        )
        self.method, self.placement = method, placement
        check_new_convolution(in_channels, self.weight.shape, **self._options())
        self.pool = DiffStride(
            stride,
            axes=spatial_axes(num_spatial_dims, channels_last=False),
            shared=shared,
            smoothness=smoothness,
            limits=limits,
            cropping=cropping,
            multiple_of=multiple_of,
            norm=norm,
            convention=convention,
            dtype=strides_dtype("dtype", self.weight.dtype),
        )

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Convolve and downsample an array, in the order given by `placement`.

        Parameters
        ----------
        x : jax.Array, shape (..., in_channels, N_1, ..., N_d)
            Input with the dtype of weight and bias. A batch may come without `jax.vmap`.
        key : ignored
            `equinox.nn.Sequential` passes it.

        Returns
        -------
        jax.Array, shape (..., out_channels, M_1, ..., M_d)
        """
        return convolve_and_downsample(
            self.pool.plans,
            x,
            self.weight,
            self.pool.strides,
            None if self.bias is None else self.bias.reshape(-1),
            method=self.method,
            placement=self.placement,
            convolve=self._convolve,
            channels_last=False,
            **self._options(),
        )

    def _convolve(self, x: jax.Array) -> jax.Array:
        """Apply Equinox's own convolution to an array with any number of leading axes."""
        lead = x.shape[: -self.num_spatial_dims - 1]
        x = x.reshape(math.prod(lead), *x.shape[len(lead) :])
        y = jax.vmap(super().__call__)(x)
        return y.reshape(*lead, *y.shape[1:])

    def _options(self) -> dict[str, Any]:
        return {
            "dilation": self.dilation,
            "groups": self.groups,
            # If the layer comes before the convolution, Equinox pads its output.
            "padding_mode": "zeros" if self.placement == "before" else self.padding_mode.lower(),
        }


class SpectralPool(eqx.Module):
    """Spectral pooling layer with fixed strides, channels first: (C, H, W), like Equinox's layers.

    Parameters
    ----------
    stride : float or sequence of float
        Strides, at least 1: one per resized axis, or one for all axes.
    axes : int or sequence of int
        The axes to resize. By default, height and width, the last two axes.
    norm, convention
        See `spectral_pool`.

    Raises
    ------
    TypeError, ValueError
        If `spectral_pool` would refuse an argument.

    Examples
    --------
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.equinox_modules import SpectralPool
    >>> SpectralPool([2.0, 3.0])(jnp.ones((3, 32, 32))).shape
    (3, 16, 10)
    """

    settings: Settings = eqx.field(static=True)
    stride: tuple[float, ...] = eqx.field(static=True)

    def __init__(
        self,
        stride: float | Sequence[float],
        *,
        axes: int | Sequence[int] = (-2, -1),
        norm: str | None = None,
        convention: str = DEFAULT_CONVENTION,
    ) -> None:
        self.settings = make_settings(axes=axes, norm=norm, convention=convention)
        self.stride = initial_strides(stride, len(self.settings.axes), shared=False)

    def __call__(self, x: jax.Array, *, key: jax.Array | None = None) -> jax.Array:
        """Downsample an array.

        Parameters
        ----------
        x : jax.Array, shape (..., C, N_1, ..., N_d)
            Input. By default two axes are resized; `axes` may name others.
        key : ignored
            `equinox.nn.Sequential` passes it.

        Returns
        -------
        jax.Array, shape (..., C, M_1, ..., M_d)
        """
        return pool(self.settings, x, self.stride)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return plan_pool(self.settings, checked_shape(shape), self.stride).output_sizes


def replan(model: ModelT) -> ModelT:
    """Return a model with its strides read and its output sizes updated.

    Call it outside `equinox.filter_jit`, where something other than `project_strides` has changed
    strides. All strides are read in one transfer. A function compiled with the model is recompiled
    at its next call if an output size has changed, and only then.

    Parameters
    ----------
    model : pytree
        A layer, or a model that holds `DiffStride` layers.

    Raises
    ------
    ValueError
        If strides are traced, or a stride is NaN or infinite, in which case the message names the
        layer.
    """
    names, layers = _named_layers(model)
    values = read_strides(names, [layer.strides for layer in layers])
    refreshed = [
        layer.plans.refreshed(strides) for layer, strides in zip(layers, values, strict=True)
    ]
    done: ModelT = eqx.tree_at(
        lambda tree: [layer.plans for layer in _layers(tree)], model, refreshed
    )
    return done


def project_strides(model: ModelT) -> ModelT:
    """Return a model with every stride moved back within its bounds, and updated output sizes.

    Call it after each step of the optimiser, outside `equinox.filter_jit`. All strides are read in
    one transfer. The bounds are the layer's limits, and the built-in bounds of the input sizes that
    the layer has seen since the last projection. A layer that has seen none, for example because a
    compiled function was not traced again, keeps the bounds of the last projection.

    Parameters
    ----------
    model : pytree
        A model that holds `DiffStride` layers.

    Raises
    ------
    ValueError
        If a stride is traced, NaN or infinite; see `replan`.
    """
    names, layers = _named_layers(model)
    values = read_strides(names, [layer.strides for layer in layers])
    replacements = [
        part
        for layer, read in zip(layers, values, strict=True)
        for part in projected(layer.plans, layer.strides, read)
    ]
    done: ModelT = eqx.tree_at(
        lambda tree: [part for layer in _layers(tree) for part in (layer.plans, layer.strides)],
        model,
        replacements,
    )
    return done


def compilation_key(model: Any) -> CompilationKey:
    """Return a key that changes when the strides make a compiled function compile again.

    Collect the keys of all calls in a set. If the key of the next call is not in the set, the call
    will compile. The key does not cover other reasons to compile, such as another batch size.

    Parameters
    ----------
    model : pytree
        A layer, or a model that holds `DiffStride` layers. Its strides are not read: the key has
        the output sizes of the last `replan` or `project_strides`, as a compiled function has them.

    Returns
    -------
    CompilationKey
        Hashable. Two keys are equal if the same compiled function serves both calls. The output
        sizes of a layer that has seen no input are not known yet, and then any change of its
        strides changes the key.

    Examples
    --------
    >>> import equinox as eqx
    >>> import jax.numpy as jnp
    >>> from diffstride_jax.equinox_modules import DiffStride, compilation_key, replan
    >>> layer = DiffStride(2.0)
    >>> layer(jnp.ones((3, 32, 32))).shape
    (3, 16, 16)
    >>> moved = [
    ...     replan(eqx.tree_at(lambda layer: layer.strides, layer, jnp.array(strides)))
    ...     for strides in ([2.01, 1.99], [2.0, 3.0])
    ... ]
    >>> [compilation_key(other) == compilation_key(layer) for other in moved]
    [True, False]
    """
    return CompilationKey(layer.plans for layer in _layers(model))


def stride_labels(params: ModelT) -> ModelT:
    """Return the labels of a model's parameters for `optax.multi_transform`.

    Pass this function to `optax.multi_transform`, not the tree that it returns. Optax calls labels
    that are callable, and the tree is callable if the model is.

    Parameters
    ----------
    params : pytree
        Modules, such as ``eqx.filter(model, eqx.is_inexact_array)``, or their gradients.

    Returns
    -------
    pytree
        A tree of the same structure, with "strides" for the strides of `DiffStride` layers and
        "weights" for each other leaf. Names of leaves do not matter.

    Raises
    ------
    TypeError
        If the tree holds no module, for example if it is a list of arrays.

    Examples
    --------
    >>> import equinox as eqx
    >>> import jax
    >>> import optax
    >>> from diffstride_jax.equinox_modules import DiffStride, stride_labels
    >>> conv = eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))
    >>> model = eqx.nn.Sequential([conv, DiffStride(2.0)])
    >>> transforms = {"weights": optax.adamw(1e-3), "strides": optax.adam(1e-2)}
    >>> optimizer = optax.multi_transform(transforms, stride_labels)
    >>> state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))
    """
    modules = jax.tree.leaves(params, is_leaf=_is_module)
    if not any(map(_is_module, modules)):
        raise TypeError(
            "params must be an equinox.Module or a tree that holds some, such as "
            "eqx.filter(model, eqx.is_inexact_array), got a tree without one, which does not say "
            f"what is a stride: {type(params).__name__}"
        )
    labels: ModelT = jax.tree.map(_labels, params, is_leaf=_is_layer)
    return labels


def _labels(node: Any) -> Any:
    if not _is_layer(node):
        return WEIGHTS
    own = jax.tree_util.GetAttrKey("strides")
    return jax.tree_util.tree_map_with_path(
        lambda path, _: STRIDES if path[0] == own else WEIGHTS, node
    )


def _is_module(node: Any) -> bool:
    return isinstance(node, eqx.Module)


def complexity_penalty(layers: Sequence[DiffStride]) -> jax.Array:
    """Return the complexity penalty J of layers.

    Parameters
    ----------
    layers : sequence of DiffStride
        Layers in the order of the network.

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
    return penalty([layer.plans for layer in found], [layer.strides for layer in found])


def _is_layer(node: Any) -> bool:
    return isinstance(node, DiffStride)


def _named_layers(model: Any) -> tuple[list[str], list[DiffStride]]:
    found = [
        (jax.tree_util.keystr(path), node)
        for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_layer)
        if _is_layer(node)
    ]
    if not found and any(base.__module__.startswith("flax.nnx") for base in type(model).__mro__):
        raise TypeError(
            "model must be made of Equinox modules, got the Flax module "
            f"{type(model).__name__}: use diffstride_jax.nnx_modules"
        )
    return [name for name, _ in found], [layer for _, layer in found]


def _layers(model: Any) -> list[DiffStride]:
    return _named_layers(model)[1]
