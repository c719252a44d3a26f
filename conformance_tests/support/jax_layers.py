"""Layers of both libraries for their tests."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffstride_jax import equinox_modules, nnx_modules
from flax import nnx
from support.amounts import quick_first

LIBRARIES = (nnx_modules, equinox_modules)
over_libraries = pytest.mark.parametrize("library", LIBRARIES, ids=["nnx", "equinox"])
quick_for_equinox = pytest.mark.parametrize("library", quick_first(1, LIBRARIES[::-1]))


def laid_out(library, *shape):
    """Return a shape of channels last in the library's order."""
    return shape if library is nnx_modules else (*shape[:-3], shape[-1], *shape[-3:-1])


def random(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), jnp.float32)


def strides_of(layer):
    return layer.strides if isinstance(layer, eqx.Module) else layer.strides[...]


def with_strides(layer, *values):
    """Return the layer with other strides, and nothing else changed."""
    array = jnp.asarray(values, strides_of(layer).dtype)
    if isinstance(layer, eqx.Module):
        return eqx.tree_at(lambda layer: layer.strides, layer, array)
    layer.strides[...] = array
    return layer


def replanned(library, model):
    result = library.replan(model)
    return model if result is None else result


def projected(library, model):
    result = library.project_strides(model)
    return model if result is None else result


def compiled(library, function):
    return nnx.jit(function) if library is nnx_modules else eqx.filter_jit(function)


def make_conv(library, *stride, kernel=(3, 3), dilation=1, groups=1, **options):
    """Return a convolution of 4 channels to 6: the library's own, or with strides to learn."""
    if library is nnx_modules:
        make = library.DiffStrideConv if stride else nnx.Conv
        options = {"kernel_dilation": dilation, "feature_group_count": groups, **options}
        if options.pop("padding_mode", "zeros") == "circular":
            options["padding"] = "CIRCULAR"
        return make(
            4, 6, kernel, *stride, bias_init=nnx.initializers.normal(), rngs=nnx.Rngs(3), **options
        )
    make = library.DiffStrideConv if stride else eqx.nn.Conv
    options = {"dilation": dilation, "groups": groups, "key": jax.random.key(3), **options}
    return make(len(kernel), 4, 6, kernel, *stride, **options)
