"""DiffStride and spectral pooling as Flax NNX modules: channels last, as all of Flax."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.nnx.nn.linear import default_bias_init, default_kernel_init

from diffstride_core.arguments import Limits, checked_shape, in_order, initial_strides
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

ParamsT = TypeVar("ParamsT")


class StrideParam(nnx.Param[Any]):
    """The strides of a layer: a parameter that an optimiser can tell from others.

    Weight decay, for example, would pull strides towards 0, outside their bounds.
    """


class DiffStride(nnx.Module):
    """Downsampling with learnt strides, channels last: (..., H, W, C), as Flax's own layers.

    Parameters
    ----------
    stride : float or sequence of float
        Initial strides, at least 1: one per resized axis or one for all.
    axes : int or sequence of int
        The axes to resize; by default height and width, which are in front of the channels.
    shared : bool
        Learn one stride for all axes instead of one per axis.
    smoothness, limits, cropping, multiple_of, norm, convention, method
        See `diff_stride`.
    size_offset : int or sequence of int
        Added to the output size that follows from a stride, within 1 to N: one per axis or one for
        all.
    param_dtype : dtype
        Of the strides, float32 or float64.

    Attributes
    ----------
    strides : StrideParam, shape (d,) or (1,)
        The stride parameters. A call bounds them without changing them; `project_strides` does
        after an optimiser's step.
    plans : PlanCache
        Static state: the output sizes that follow from the strides as they were read last, when the
        layer was made and by `replan` or `project_strides` since. `nnx.jit` recompiles exactly
        when one of them differs.

    Raises
    ------
    TypeError, ValueError
        As for `diff_stride`, and for a stride below 1.

    Notes
    -----
    Outside `jax.jit` and other transformations of the module, where strides have concrete values,
    the output's size follows from these. Strides that are restored into a module need a `replan`.

    The state that `nnx.state` returns and a checkpoint holds has the strides' values, not the
    convention and smoothness they were learnt with: in a model made with others they mean something
    else, and nothing says so. Save what the model is made with, such as `to_dict`, beside them.

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
            By default with two resized axes; `axes` may name others.

        Returns
        -------
        jax.Array, shape (..., M_1, ..., M_d, C)
        """
        return downsample(self.plans, x, self.strides[...])

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return current_plan(self.plans, shape, self.strides[...]).output_sizes

    def replan(self) -> None:
        """Let the output sizes follow the strides; call it outside `nnx.jit`, see `replan`."""
        replan(self)

    def to_dict(self) -> dict[str, Any]:
        """Return the layer's arguments with its strides as they are now, as plain values.

        They can be written as JSON and make the same layer in every framework:
        ``DiffStride(**layer.to_dict())``. Strides below 1, which count as 1, are given as 1.
        """
        return self.plans.settings.layer_arguments(self.strides[...].tolist())


class DiffStrideConv(nnx.Conv):
    """An `nnx.Conv` with learnt strides, channels last, in place of a strided one.

    It takes the arguments of `nnx.Conv` that are listed here, in their order. Two of them differ:
    `strides` holds the initial strides, any numbers from 1 on, and is 2.0 by default; `padding`
    must keep the size of the input. Where the layer stands is the `placement`: "before" (the
    default) resizes the input and convolves the smaller map, "after" convolves the input and
    resizes the result.

    It is an `nnx.Conv` of stride 1 itself, so that its parameters have the same names and shapes,
    in both placements.

    Parameters
    ----------
    in_features, out_features : int
    kernel_size : int or sequence of int
        Odd; an int for one spatial axis, as `nnx.Conv` has it.
    strides : float or sequence of float
        Initial strides, at least 1: one per spatial axis or one for all.
    padding : str, int, sequence of int or of pairs of ints
        "SAME", "SAME_LOWER", "CIRCULAR" (beyond the border is the other end of the map that is
        convolved), before the convolution also "REFLECT" (its mirror image), or half of
        ``kernel_dilation * (kernel_size - 1)`` on either side, which for a kernel of one tap is 0,
        or "VALID".
    kernel_dilation, feature_group_count, use_bias
        See `nnx.Conv`.
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
    dtype, kernel_init, bias_init
        See `nnx.Conv`.
    param_dtype : dtype
        Of all parameters, but strides are never in half precision.
    rngs : nnx.Rngs

    Attributes
    ----------
    kernel : nnx.Param, shape (k_1, ..., k_d, in_features / feature_group_count, out_features)
    bias : nnx.Param, shape (out_features,), or None
    pool : DiffStride
        The layer, with the strides.

    Raises
    ------
    TypeError, ValueError
        As for `DiffStride`, for a kernel that is even or does not fit the features, for another
        padding, and for the placement "before" with the method "fused" or "separate".

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
        """Convolve and downsample an array, in the order that `placement` says.

        Parameters
        ----------
        x : jax.Array, shape (..., N_1, ..., N_d, in_features)
            Promoted together with the parameters, or to `dtype`, as by `nnx.Conv`.

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
            # Flax pads what a layer before the convolution gives.
            "padding_mode": "zeros" if self.placement == "before" else self.padding_mode,
        }


class SpectralPool(nnx.Module):
    """Spectral pooling with fixed strides, channels last: (..., H, W, C), as Flax's own layers.

    Parameters
    ----------
    stride : float or sequence of float
        At least 1: one per resized axis or one for all.
    axes : int or sequence of int
        The axes to resize; by default height and width, which are in front of the channels.
    norm, convention
        See `spectral_pool`.

    Raises
    ------
    TypeError, ValueError
        As for `spectral_pool`.
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
            By default with two resized axes; `axes` may name others.

        Returns
        -------
        jax.Array, shape (..., M_1, ..., M_d, C)
        """
        return pool(self.settings, x, self.stride)

    def output_sizes(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Return the sizes along the resized axes for an input of the given shape."""
        return plan_pool(self.settings, checked_shape(shape), self.stride).output_sizes


def replan(model: nnx.Module) -> None:
    """Let the output sizes of a model's layers follow their strides; call it outside `nnx.jit`.

    All strides are read in one transfer. A function compiled with the model is recompiled at its
    next call if an output size has changed, and only then.

    Parameters
    ----------
    model : nnx.Module
        Or a layer itself.

    Raises
    ------
    ValueError
        If a stride is traced, NaN or infinite, naming the layer; nothing is changed then.
    """
    layers = _named_layers(model)
    values = read_strides(layers, [layer.strides[...] for layer in layers.values()])
    for layer, strides in zip(layers.values(), values, strict=True):
        layer.plans = layer.plans.refreshed(strides)


def project_strides(model: nnx.Module) -> None:
    """Put every stride of a model back within its bounds, and `replan`, in one transfer.

    Call it after the optimiser's step, outside `nnx.jit`. The bounds are the layer's limits and the
    built-in ones for the input sizes that it has seen since they were projected last; where it has
    seen none, as by a compiled function that is not traced again, those of that projection.

    Parameters
    ----------
    model : nnx.Module

    Raises
    ------
    ValueError
        As for `replan`.
    """
    layers = _named_layers(model)
    values = read_strides(layers, [layer.strides[...] for layer in layers.values()])
    for layer, strides in zip(layers.values(), values, strict=True):
        layer.plans, layer.strides[...] = projected(layer.plans, layer.strides[...], strides)


def compilation_key(model: nnx.Module) -> CompilationKey:
    """Return what tells, before a call, whether strides make a compiled function compile anew.

    Collect the keys of all calls: the next one compiles anew if its key is not among them. Other
    reasons to compile, such as another batch size, are not in the key.

    Parameters
    ----------
    model : nnx.Module
        Or a layer itself. Its strides are not read: sizes are those of the last `replan` or
        `project_strides`, as they are in a compiled function.

    Returns
    -------
    CompilationKey
        Hashable, and equal to that of another call while the same compiled function serves both.
        While a layer has seen no input nothing is known of its sizes, and any other strides count
        as another size.

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
    """Return a tree that says which parameters are strides, for `optax.multi_transform`.

    Give `optax.multi_transform` the tree, not this function: `nnx.Optimizer` hands plain arrays to
    Optax in its updates, and those do not say what they are.

    Parameters
    ----------
    params : nnx.State
        Variables, as ``nnx.state(model, nnx.Param)`` returns them.

    Returns
    -------
    nnx.State
        In the place of each variable "strides" for a `StrideParam`, "weights" for any other,
        whatever its name is. Where there is no layer with strides all are "weights".

    Raises
    ------
    TypeError
        For a module, and for anything in the tree that is no variable.

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
        In the order of the network, which a model does not keep under `nnx.jit`.

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
    return penalty([layer.plans for layer in layers], [layer.strides[...] for layer in layers])


def _named_layers(model: nnx.Module) -> dict[str, DiffStride]:
    return {
        ".".join(map(str, path)): module
        for path, module in nnx.iter_modules(model)
        if isinstance(module, DiffStride)
    }
