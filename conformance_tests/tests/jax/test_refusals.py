"""Mistakes that users of the modules make, and what they are told."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffstride_jax import diff_stride, equinox_modules, nnx_modules
from flax import nnx
from support.jax_layers import make_conv, over_libraries


def ensemble(library):
    keys = jax.random.split(jax.random.key(0), 3)
    if library is nnx_modules:
        return nnx.vmap(lambda key: library.DiffStrideConv(3, 4, (3, 3), rngs=nnx.Rngs(key)))(keys)
    return eqx.filter_vmap(lambda key: library.DiffStrideConv(2, 3, 4, 3, key=key))(keys)


@over_libraries
def test_the_members_of_an_ensemble_cannot_be_projected(library):
    model = ensemble(library)
    for function in (library.project_strides, library.replan):
        with pytest.raises(ValueError, match=r"strides of layer '\.?pool' .* shape \(3, 2\).*list"):
            function(model)


@over_libraries
def test_the_penalty_takes_layers_of_its_library(library):
    if library is nnx_modules:
        conv = library.DiffStrideConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    else:
        conv = library.DiffStrideConv(2, 3, 4, 3, key=jax.random.key(0))
    with pytest.raises(TypeError, match="got DiffStrideConv; the layer of a convolution is its po"):
        library.complexity_penalty([conv])
    with pytest.raises(TypeError, match="layers must be DiffStride layers, got int"):
        library.complexity_penalty([2])


def test_equinox_names_models_of_flax():
    for model in (nnx_modules.DiffStride(2.0), make_conv(nnx_modules)):
        for function in (
            equinox_modules.project_strides,
            equinox_modules.replan,
            equinox_modules.compilation_key,
        ):
            with pytest.raises(TypeError, match=r"Flax module .*use diffstride_jax\.nnx_modules"):
                function(model)


def test_arrays_of_numpy_are_refused_with_the_remedy():
    x = np.ones((1, 8, 8), np.float32)
    for call in (lambda: diff_stride(x, 2.0), lambda: equinox_modules.DiffStride(2.0)(x)):
        with pytest.raises(TypeError, match=r"must be a jax\.Array, got ndarray; jax\.numpy\.asa"):
            call()


def test_strides_in_half_precision_are_refused_with_the_remedy():
    layer = equinox_modules.DiffStride(2.0)
    half = jax.tree.map(lambda a: a.astype(jnp.bfloat16), eqx.filter(layer, eqx.is_array))
    with pytest.raises(TypeError, match="got dtype bfloat16; a model in half precision keeps"):
        eqx.combine(half, layer)(jnp.ones((1, 8, 8)))


@over_libraries
def test_a_layer_alone_has_no_name(library):
    layer = library.DiffStride(2.0)
    if library is nnx_modules:
        layer.strides[...] = jnp.array([jnp.nan, 1.0])
    else:
        layer = eqx.tree_at(lambda layer: layer.strides, layer, jnp.array([jnp.nan, 1.0]))
    with pytest.raises(ValueError, match=r"^strides must be finite, got"):
        library.project_strides(layer)
