"""DiffStride and spectral pooling as Equinox modules: channels first, no batch, as all of Equinox.

A batch is mapped over by `jax.vmap`; axes in front of the channels are allowed, too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp

from diffstride_core.arguments import Limits, checked_shape, in_order, initial_strides, option
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

ModelT = TypeVar("ModelT")


class DiffStride(eqx.Module):
    """Downsampling with learnt strides, channels first: (C, H, W), as Equinox's own layers.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis or one for all.
    axes : int or sequence of int
        The axes to resize; by default height and width, which are the last. ``axes=-1`` for one
        spatial axis, ``axes=(-3, -2, -1)`` for three.
    shared : bool
        Learn one stride for all axes instead of one per axis.
    smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Added to the output size that follows from a stride, within 1 to N: one per axis or one for
        all.
    dtype : dtype
        Of the strides, float32 or float64.

    Attributes
    ----------
    strides : jax.Array, shape (d,) or (1,)
        The stride parameters. A call bounds them without changing them; `project_strides` does
        after an optimiser's step.
    plans : PlanCache
        Static state: the output sizes that follow from the strides as they were read last, when the
        layer was made and by `replan` or `project_strides` since. `equinox.filter_jit` compiles
        again exactly when one of them differs.

    Raises
    ------
    TypeError, ValueError
        As for `diff_stride`, and for a stride below 1.

    Notes
    -----
    Where strides have concrete values, outside `jax.jit` and other transformations of the module,
    the output's size follows from these. Strides that are restored into a module need a `replan`.

    What `equinox.tree_serialise_leaves` writes has the strides' values, not the convention and
    smoothness they were learnt with: in a model made with others they mean something else, and
    nothing says so. Save what the model is made with, such as `to_dict`, beside them.

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
    # A leaf that is no array: static to Equinox's transformations, and yet no part of a tree's
    # structure, which must stay that of an optimiser's state.
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
            By default with two resized axes; `axes` may name others.
        key : ignored
            So that the layer fits into `equinox.nn.Sequential`.

        Returns
        -------
        jax.Array, shape (..., C, M_1, ..., M_d)
        """
        return downsample(self.plans, x, self.strides)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return current_plan(self.plans, shape, self.strides).output_sizes

    def replan(self) -> DiffStride:
        """Return the layer with output sizes that follow its strides; see `replan`."""
        return replan(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments with its strides as they are now, as plain values.

        They can be written as JSON and make the same layer in every framework:
        ``DiffStride(**layer.to_dict())``. Strides below 1, which count as 1, are given as 1.
        """
        return self.plans.settings.layer_arguments(self.strides.tolist())


class DiffStrideConv(eqx.nn.Conv):
    """An `equinox.nn.Conv` with learnt strides, channels first, in place of a strided one.

    It takes the arguments of `equinox.nn.Conv`, in their order. Two of them differ: `stride` holds
    the initial strides, any numbers from 1 on, and is 2.0 by default; `padding` must keep the size
    of the input, and is "SAME" by default. Where the layer stands is the `placement`: "before" (the
    default) resizes the input and convolves the smaller map, "after" convolves the input and
    resizes the result.

    It is an `equinox.nn.Conv` of stride 1 itself, so that its parameters have the same names and
    shapes, in both placements.

    Parameters
    ----------
    num_spatial_dims : int
        1, 2 or 3.
    in_channels, out_channels : int
    kernel_size : int or sequence of int
        Odd.
    stride : float or sequence of float
        Initial strides, at least 1: one per spatial axis or one for all.
    padding : str, int, sequence of int or of pairs of ints
        "SAME", "SAME_LOWER" or half of ``dilation * (kernel_size - 1)`` on either side, which for a
        kernel of one tap is 0, or "VALID".
    dilation, groups, use_bias
        See `equinox.nn.Conv`.
    padding_mode : {"ZEROS", "CIRCULAR", "REFLECT", "REPLICATE"}
        What is beyond the border of the map that is convolved: zeros, its other end, or, with the
        layer before the convolution alone, its mirror image or its last value. In any case, as for
        `equinox.nn.Conv`.
    dtype : dtype, optional
        Of all parameters, but strides are never in half precision; by default as for
        `equinox.nn.Conv`.
    method : {"auto", "fused", "separate"}
        How a layer after the convolution is evaluated, see `conv_diff_stride`.
    placement : {"before", "after"}, optional
        "before": the layer, then the convolution, which runs at the resolution of the output. It
        costs about what the strided convolution costs, and in the nominal convention gives its
        output size at integer strides up to 4 (and half the axis). "after": the convolution at the
        resolution of the input, then the layer, as in the paper; ``method="auto"`` may evaluate
        that without computing anything at full resolution. Choose it to reproduce the paper, or
        where the function must be that of a convolution at full resolution, low-pass filtered. By
        default "after" where `method` is "fused" or "separate", else "before".
    shared, smoothness, limits, cropping, multiple_of, norm, convention
        See `DiffStride`.
    key : jax.Array
        For the initial weight and bias.

    Attributes
    ----------
    weight : jax.Array, shape (out_channels, in_channels / groups, k_1, ..., k_d)
    bias : jax.Array, shape (out_channels, 1, ..., 1), or None
    pool : DiffStride
        The layer, with the strides.

    Raises
    ------
    TypeError, ValueError
        As for `DiffStride` and `equinox.nn.Conv`, for an even kernel, for another padding, and for
        the placement "before" with the method "fused" or "separate".

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
        """Convolve and downsample an array, in the order that `placement` says.

        Parameters
        ----------
        x : jax.Array, shape (..., in_channels, N_1, ..., N_d)
            Of the dtype of weight and bias. A batch needs no `jax.vmap`.
        key : ignored
            So that the layer fits into `equinox.nn.Sequential`.

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
        """Return what Equinox's own convolution makes of an array of any number of maps."""
        lead = x.shape[: -self.num_spatial_dims - 1]
        x = x.reshape(math.prod(lead), *x.shape[len(lead) :])
        y = jax.vmap(super().__call__)(x)
        return y.reshape(*lead, *y.shape[1:])

    def _options(self) -> dict[str, Any]:
        return {
            "dilation": self.dilation,
            "groups": self.groups,
            # Equinox pads what a layer before the convolution gives.
            "padding_mode": "zeros" if self.placement == "before" else self.padding_mode.lower(),
        }


class SpectralPool(eqx.Module):
    """Spectral pooling with fixed strides, channels first: (C, H, W), as Equinox's own layers.

    Parameters
    ----------
    stride : float or sequence of float
        At least 1: one per resized axis or one for all.
    axes : int or sequence of int
        The axes to resize; by default height and width, which are the last.
    norm, convention
        See `spectral_pool`.

    Raises
    ------
    TypeError, ValueError
        As for `spectral_pool`.
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
            By default with two resized axes; `axes` may name others.
        key : ignored
            So that the layer fits into `equinox.nn.Sequential`.

        Returns
        -------
        jax.Array, shape (..., C, M_1, ..., M_d)
        """
        return pool(self.settings, x, self.stride)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return plan_pool(self.settings, checked_shape(shape), self.stride).output_sizes


def replan(model: ModelT) -> ModelT:
    """Return a model whose output sizes follow its strides; call it outside `equinox.filter_jit`.

    All strides are read in one transfer. A function compiled with the model is recompiled at its
    next call if an output size has changed, and only then.

    Parameters
    ----------
    model : pytree
        With `DiffStride` layers, or a layer itself.

    Raises
    ------
    ValueError
        If a stride is traced, NaN or infinite, naming the layer.
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
    """Return a model with every stride back within its bounds, and its output sizes up to date.

    All strides are read in one transfer. Call it after the optimiser's step, outside
    `equinox.filter_jit`. The bounds are the layer's limits and the built-in ones for the input
    sizes that it has seen since they were projected last; where it has seen none, as by a compiled
    function that is not traced again, those of that projection.

    Parameters
    ----------
    model : pytree
        With `DiffStride` layers.

    Raises
    ------
    ValueError
        As for `replan`.
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
    """Return what tells, before a call, whether strides make a compiled function compile anew.

    Collect the keys of all calls: the next one compiles anew if its key is not among them. Other
    reasons to compile, such as another batch size, are not in the key.

    Parameters
    ----------
    model : pytree
        With `DiffStride` layers, or a layer itself. Its strides are not read: sizes are those of
        the last `replan` or `project_strides`, as they are in a compiled function.

    Returns
    -------
    CompilationKey
        Hashable, and equal to that of another call while the same compiled function serves both.
        While a layer has seen no input nothing is known of its sizes, and any other strides count
        as another size.

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
    """Return a tree that says which parameters are strides, for `optax.multi_transform`.

    Give `optax.multi_transform` this function, not the tree: many models can be called, and Optax
    calls labels that can be.

    Parameters
    ----------
    params : pytree
        Of modules, as ``eqx.filter(model, eqx.is_inexact_array)`` or their gradients.

    Returns
    -------
    pytree
        Of the same structure, with "strides" for the strides of `DiffStride` layers and "weights"
        for any other leaf, whatever its name is. Where there is no such layer all are "weights".

    Raises
    ------
    TypeError
        For a tree without a module, as a list of arrays.

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
        In the order of the network.

    Returns
    -------
    jax.Array, shape ()
        Differentiable in the strides; see `complexity`.

    Raises
    ------
    TypeError
        Unless the layers are in a sequence: a set has no order.
    ValueError
        If there is no layer.
    """
    layers = in_order("layers", layers, "of DiffStride layers")
    return penalty([layer.plans for layer in layers], [layer.strides for layer in layers])


def _is_layer(node: Any) -> bool:
    return isinstance(node, DiffStride)


def _named_layers(model: Any) -> tuple[list[str], list[DiffStride]]:
    found = [
        (jax.tree_util.keystr(path), node)
        for path, node in jax.tree_util.tree_leaves_with_path(model, is_leaf=_is_layer)
        if _is_layer(node)
    ]
    return [name for name, _ in found], [layer for _, layer in found]


def _layers(model: Any) -> list[DiffStride]:
    return _named_layers(model)[1]
