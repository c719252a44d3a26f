"""The Keras layer for its tests, over the backend that this process has."""

from functools import partial

import keras
import numpy as np
from diffstride_conformance.frameworks import FrameworkImplementation
from diffstride_keras import DiffStride2d
from diffstride_keras.framework import FRAMEWORK, NAME

from diffstride_core.conventions import CONVENTIONS

if NAME == "jax":
    import jax
else:
    import torch

over_jax = NAME == "jax"


def to_host(array):
    return FRAMEWORK.backend.to_host(keras.ops.convert_to_tensor(array))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def value_and_pullback(layer, x):
    """Return what a layer gives for an array, and what maps a cotangent to (dx, dstrides)."""
    strides = layer.strides.value
    if over_jax:

        def call(x, strides):
            return layer.stateless_call([strides], [], x)[0]

        return jax.vjp(call, x, strides)
    x = x.detach().requires_grad_()
    y = layer(x)
    return y, partial(torch.autograd.grad, y, (x, strides))


def evaluated(layer, x, g):
    """Return a layer's output and both gradients as host arrays."""
    y, pullback = value_and_pullback(layer, keras.ops.convert_to_tensor(x))
    return tuple(map(to_host, (y, *pullback(keras.ops.convert_to_tensor(g)))))


def functions():
    """Return the package of the backend's functions, to compare with."""
    if over_jax:
        import diffstride_jax

        return diffstride_jax
    import diffstride_torch

    return diffstride_torch


class TracedLayer(DiffStride2d):
    """A layer that notes the output sizes that its traces are made for."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.traces = {"sizes": []}

    def call(self, inputs):
        y = super().call(inputs)
        if FRAMEWORK.backend.host_values(self.strides.value) is None:
            self.traces["sizes"].append(tuple(y.shape[1:3]))
        return y


def small_model(*layers, classes=3):
    """Return a model with a nonlinear layer behind the last one, so that all strides matter."""
    model = [
        keras.Input((20, 20, 1)),
        keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
        *layers,
        keras.layers.Conv2D(4, 3, padding="same", activation="relu"),
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(classes),
    ]
    return keras.Sequential(model)


class LayerImplementation(FrameworkImplementation):
    """The layer as an implementation of `diff_stride`, for the kit's cases in two dimensions."""

    def __init__(self):
        super().__init__(FRAMEWORK)
        self.diff_stride = through_the_layer
        self.conv_diff_stride = self.spectral_resize = self.spectral_pool = None
        self.complexity = self.output_sizes = self.authors_strides = None


def can_run(case):
    """Return whether a case asks for nothing that the layer does not have."""
    options = case.options
    return (
        case.operation == "diff_stride"
        and case.axes in ((-2, -1), (-3, -2))
        and len(case.shape) <= 4
        and options.get("norm") in (None, CONVENTIONS[options["convention"]].default_norm)
        and options.get("limits", ()) is not None
        and "sizes" not in options
    )


def through_the_layer(x, strides, *, axes=(-2, -1), limits=(None, None), **options):
    """Return what a layer gives, and its pullback; the layer chooses the method itself."""
    options.pop("norm", None)
    options.pop("method", None)
    smoothness = options.pop("smoothness", None)
    layer = DiffStride2d(
        1.0,
        smoothness_factor=smoothness,
        shared_stride=int(np.prod(strides.shape)) == 1,
        lower_limit_stride=limits[0],
        upper_limit_stride=limits[1],
        data_format="channels_first" if axes == (-2, -1) else "channels_last",
        **options,
    )
    layer.strides.assign(keras.ops.reshape(strides, layer.strides.shape))
    layer.replan()
    # A batch of images, as which an array of fewer dimensions is a batch of one.
    images = x.reshape((1,) * (4 - x.ndim) + tuple(x.shape))
    y, pullback = value_and_pullback(layer, images)

    def of_array(g):
        dx, dstrides = pullback(g.reshape(y.shape))
        return dx.reshape(x.shape), dstrides.reshape(strides.shape)

    return y.reshape(y.shape[4 - x.ndim :]), of_array
