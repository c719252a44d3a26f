"""Convolutions with learnt strides in Flax NNX and Equinox."""

import inspect

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from diffstride_jax import equinox_modules, nnx_modules
from flax import nnx
from support.amounts import quick_every, quick_first
from support.jax_layers import (
    LIBRARIES,
    compiled,
    laid_out,
    make_conv,
    over_libraries,
    projected,
    quick_for_equinox,
    random,
    replanned,
    strides_of,
    with_strides,
)

from diffstride_core import NothingToCropWarning

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
# What compiles for seconds is quick for one of them and slow for the other.
quick_for_nnx = pytest.mark.parametrize("library", quick_first(1, LIBRARIES))


def dtype_option(library, dtype):
    return {"param_dtype" if library is nnx_modules else "dtype": dtype}


def channels_at(library):
    return -1 if library is nnx_modules else 1


def make_pair(library, stride, *, padding_mode="zeros", pool_options, placement="after", **options):
    """Return the library's own convolution, and a `DiffStride` behind it or in front of it."""
    rank = len(options.get("kernel", (3, 3)))
    if library is nnx_modules:
        axes = range(-rank - 1, -1)
    else:
        axes = range(-rank, 0)
        options = {"padding": "SAME", **options}
    dtype = dtype_option(library, jnp.float64)
    conv = make_conv(library, padding_mode=padding_mode, **options, **dtype)
    pool = library.DiffStride(stride, axes=tuple(axes), **pool_options, **dtype)
    row = [conv, pool] if placement == "after" else [pool, conv]
    return nnx.Sequential(*row) if library is nnx_modules else eqx.nn.Sequential(row)


def parameters_and_call(library, model):
    """Return a model's arrays, and how it is called with others on a batch."""
    if library is nnx_modules:
        definition, state = nnx.split(model)
        return state, lambda state, x: nnx.merge(definition, state)(x)
    arrays, others = eqx.partition(model, eqx.is_array)
    return arrays, lambda arrays, x: jax.vmap(eqx.combine(arrays, others))(x)


def value_and_gradients(library, model, x):
    """Return the output, and the gradients in its bias, kernel, strides and input.

    Of a row, those of the layers in their order.
    """
    arrays, call = parameters_and_call(library, model)

    @jax.jit
    def evaluated(arrays, x):
        def sine(arrays, x):
            y = call(arrays, x)
            return jnp.sum(jnp.sin(y)), y

        (_, y), gradients = jax.value_and_grad(sine, (0, 1), has_aux=True)(arrays, x)
        return y, gradients

    return jax.tree.leaves(evaluated(arrays, x))


# What the convolution is made with, and what the layer behind it.
CONVOLUTIONS = (
    ({}, {}),
    (
        {"dilation": (1, 2), "groups": 2, "padding_mode": "circular"},
        {"convention": "paper", "norm": "ortho"},
    ),
    ({"kernel": (5, 1), "use_bias": False}, {"shared": True, "smoothness": 0.5}),
    ({"kernel": (3,), "groups": 2}, {"limits": (None, 1.4), "smoothness": 1.0, "cropping": False}),
    ({"kernel": (1, 1, 3), "padding_mode": "circular"}, {"limits": None, "smoothness": 0.5}),
)


@pytest.mark.parametrize(
    ("library", "options", "pool_options"),
    # The first of NNX's, and another of Equinox's.
    quick_every(6, [(library, *options) for library in LIBRARIES for options in CONVOLUTIONS]),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_convolution_is_the_librarys_own_and_a_layer(library, options, pool_options):
    rank = len(options.get("kernel", (3, 3)))
    stride = 2.25 if "shared" in pool_options else [1.5, 2.25, 2.0][:rank]
    with jax.enable_x64(True):
        x = jnp.moveaxis(random(2, 4, *(14, 15, 10)[:rank]), 1, channels_at(library))
        x = x.astype(jnp.float64)
        pair = make_pair(library, stride, pool_options=pool_options, **options)
        expected = value_and_gradients(library, pair, x)
        assert len(expected) == (4 if "use_bias" in options else 5)
        for method in ("fused", "separate"):
            dtype = dtype_option(library, jnp.float64)
            layer = make_conv(library, stride, method=method, **options, **pool_options, **dtype)
            found = value_and_gradients(library, layer, x)
            for a, b in zip(found, expected, strict=True):
                assert a.dtype == jnp.float64
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("library", "options", "pool_options"),
    quick_first(1, [(library, *options) for library in LIBRARIES for options in CONVOLUTIONS]),
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_convolution_is_a_layer_and_the_librarys_own(library, options, pool_options):
    rank = len(options.get("kernel", (3, 3)))
    stride = 2.25 if "shared" in pool_options else [1.5, 2.25, 2.0][:rank]
    with jax.enable_x64(True):
        x = jnp.moveaxis(random(2, 4, *(14, 15, 10)[:rank]), 1, channels_at(library))
        x = x.astype(jnp.float64)
        row = make_pair(library, stride, pool_options=pool_options, placement="before", **options)
        y, ds, *others = value_and_gradients(library, row, x)
        layer = make_conv(
            library, stride, **options, **pool_options, **dtype_option(library, jnp.float64)
        )
        assert layer.placement == "before"
        found = value_and_gradients(library, layer, x)
        for a, b in zip(found, (y, *others[:-1], ds, others[-1]), strict=True):
            assert a.dtype == jnp.float64
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-12)
        # A batch needs no mapping, nor do several axes of images.
        np.testing.assert_allclose(layer(x), y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(layer(x[None])[0], y, rtol=0, atol=1e-12)
        np.testing.assert_allclose(layer(x[0]), y[0], rtol=0, atol=1e-12)
        assert layer(x[:0]).shape == (0, *y.shape[1:])


@over_libraries
def test_where_the_layer_of_a_convolution_stands(library):
    for method, placement, expected in (
        ("auto", None, "before"),
        ("auto", "before", "before"),
        ("auto", "after", "after"),
        ("fused", None, "after"),
        ("fused", "after", "after"),
        ("separate", None, "after"),
        ("separate", "after", "after"),
    ):
        layer = make_conv(library, 2.0, method=method, placement=placement)
        assert layer.placement == expected
    for method in ("fused", "separate"):
        message = f"placement must be 'after' or None with method '{method}', .* got 'before'"
        with pytest.raises(ValueError, match=message):
            make_conv(library, 2.0, method=method, placement="before")
    layer = make_conv(nnx_modules, 2.0)
    layer.method = "fused"
    with pytest.raises(ValueError, match="placement must be 'after' or None with method 'fused'"):
        layer(jnp.ones((20, 24, 4)))


@over_libraries
def test_sizes_and_parameters_of_a_convolution_are_those_of_a_strided_one(library):
    for stride, size in ((1, 12), (2, 13), (3, 9), (4, 12)):
        if library is nnx_modules:
            own = nnx.Conv(4, 6, (3, 3), stride, rngs=nnx.Rngs(0))
            layer = library.DiffStrideConv(4, 6, (3, 3), stride, rngs=nnx.Rngs(0))
        else:
            own, layer = (
                make(2, 4, 6, 3, stride, 1, key=jax.random.key(0))
                for make in (eqx.nn.Conv, library.DiffStrideConv)
            )
        x = random(*laid_out(library, size, 11, 4))
        assert layer(x).shape == own(x).shape
        ours, theirs = (jax.tree.leaves(parameters_and_call(library, c)[0]) for c in (layer, own))
        for array in theirs:
            assert any(jnp.array_equal(array, other) for other in ours)
        assert len(ours) == len(theirs) + 1


@pytest.mark.parametrize(
    ("library", "given"),
    [
        (nnx_modules, {"padding": "reflect"}),
        (equinox_modules, {"padding_mode": "REFLECT"}),
        (equinox_modules, {"padding_mode": "replicate"}),
    ],
    ids=str,
)
def test_paddings_that_need_the_layer_before_the_convolution(library, given):
    layer, x = make_conv(library, 2.0, **given), random(*laid_out(library, 20, 24, 4))
    own = {} if library is nnx_modules else {"padding": "SAME"}
    given = {name: value.upper() for name, value in given.items()}
    conv = make_conv(library, **own, **given)
    assert jnp.array_equal(layer(x), conv(layer.pool(x)))
    assert not jnp.array_equal(layer(x), make_conv(library, 2.0)(x))
    with pytest.raises(ValueError, match=r"padding(_mode)? must .* got '(REFLECT|r\w+)'"):
        make_conv(library, 2.0, placement="after", **given)


@quick_for_nnx
def test_convolution_of_an_image_and_of_axes_of_images(library):
    layer = make_conv(library, [2.0, 2.6])
    x = random(2, 3, 4, 14, 15)
    x = jnp.moveaxis(x, 2, -1) if library is nnx_modules else x
    arrays, call = parameters_and_call(library, layer)
    found = layer(x)
    sizes = layer.pool.output_sizes(x.shape)
    assert found.shape == ((2, 3, *sizes, 6) if library is nnx_modules else (2, 3, 6, *sizes))
    expected = [jax.jit(call)(arrays, images) for images in x]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(layer(x[0, 1]), found[0, 1], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("method", "strides", "is_convolved"),
    [
        ("auto", (1.1, 1.1), True),
        ("auto", (16.0, 16.0), False),
        ("fused", (1.1, 1.1), False),
        ("separate", (16.0, 16.0), True),
    ],
)
@over_libraries
def test_method_decides_what_a_convolution_evaluates(library, method, strides, is_convolved):
    layer = make_conv(library, strides, kernel=(5, 5), method=method, placement="after")
    x = jnp.moveaxis(random(2, 4, 32, 32), 1, channels_at(library))
    arrays, call = parameters_and_call(library, layer)
    assert ("conv_general_dilated" in str(jax.make_jaxpr(call)(arrays, x))) is is_convolved


@quick_for_equinox
def test_parameters_of_a_convolution(library):
    for dtype in (jnp.float32, jnp.bfloat16):
        layer = make_conv(library, 2.0, groups=2, **dtype_option(library, dtype))
        own = make_conv(library, groups=2, **dtype_option(library, dtype))
        named = [("bias", layer.bias, own.bias)]
        if library is nnx_modules:
            named.append(("kernel", layer.kernel, own.kernel))
        else:
            named.append(("weight", layer.weight, own.weight))
        for name, found, expected in named:
            assert found[...].dtype == dtype, name
            np.testing.assert_array_equal(found[...], expected[...])
        assert strides_of(layer.pool).dtype == jnp.float32
        x = jnp.moveaxis(random(2, 4, 20, 24), 1, channels_at(library)).astype(dtype)
        arrays, call = parameters_and_call(library, layer)
        assert jax.eval_shape(call, arrays, x).dtype == dtype
    without = make_conv(library, 2.0, use_bias=False)
    assert without.bias is None
    assert len(jax.tree.leaves(parameters_and_call(library, without)[0])) == 2


def test_dtypes_of_an_nnx_convolution_are_promoted_as_by_nnx():
    x = random(2, 20, 24, 4)
    for dtype, array, expected in (
        (None, x, jnp.float32),
        (jnp.bfloat16, x, jnp.bfloat16),
        (None, x.astype(jnp.bfloat16), jnp.float32),
        (None, (100 * x).astype(jnp.int32), jnp.float32),
    ):
        layer, own = make_conv(nnx_modules, 2.0, dtype=dtype), make_conv(nnx_modules, dtype=dtype)
        for conv in (layer, own):
            arrays, call = parameters_and_call(nnx_modules, conv)
            assert jax.eval_shape(call, arrays, array).dtype == expected
    layer = make_conv(equinox_modules, 2.0)
    with pytest.raises(TypeError, match="weight must have the dtype of x, bfloat16"):
        layer(jnp.ones((4, 20, 24), jnp.bfloat16))


def with_pool_strides(layer, *values):
    pool = with_strides(layer.pool, *values)
    if isinstance(layer, eqx.Module):
        return eqx.tree_at(lambda layer: layer.pool, layer, pool)
    return layer


@quick_for_nnx
def test_convolution_compiles_exactly_when_a_size_changes(library):
    traced = []

    def traced_call(layer, x):
        traced.append(x.shape)
        return layer(x)

    def sizes(y):
        return jnp.moveaxis(y, channels_at(library), 1).shape[2:]

    apply = compiled(library, traced_call)
    layer = make_conv(library, [2.0, 2.0])
    x = jnp.moveaxis(random(2, 4, 32, 28), 1, channels_at(library))
    for step in range(3):
        layer = replanned(library, with_pool_strides(layer, 2.0 + 0.001 * step, 2.0))
        assert sizes(apply(layer, x)) == layer.pool.output_sizes(x.shape) == (16, 14)
    assert len(traced) == 1
    layer = with_pool_strides(layer, 2.0, 3.0)
    # Not read yet, but where it has a value.
    assert sizes(apply(layer, x)) == (16, 14)
    assert sizes(layer(x)) == (16, 10)
    assert len(traced) == 1
    layer = replanned(library, layer)
    for _ in range(2):
        assert sizes(apply(layer, x)) == (16, 10)
    assert len(traced) == 2


@quick_for_equinox
def test_strides_of_convolutions_are_projected(library):
    first = make_conv(library, 2.0, limits=(None, 5.0), convention="paper")
    model = [first, make_conv(library, 2.0, shared=True)]
    model = nnx.List(model) if library is nnx_modules else model
    x = jnp.moveaxis(random(1, 4, 32, 24), 1, channels_at(library))
    compiled(library, lambda model, x: (model[0](x), model[1](x)))(model, x)
    assert float(library.complexity_penalty([layer.pool for layer in model])) == pytest.approx(
        1 / 4 + 1 / 16
    )
    changed = [with_pool_strides(model[0], 0.5, 9.0), with_pool_strides(model[1], 100.0)]
    model = projected(library, nnx.List(changed) if library is nnx_modules else changed)
    assert strides_of(model[0].pool).tolist() == pytest.approx([32 / 28, 5.0], rel=1e-7)
    assert strides_of(model[1].pool).tolist() == [12.0]
    assert model[0].pool.plans.plan(x.shape).output_sizes == (32, 14)


@over_libraries
def test_wrong_arguments_of_a_convolution_are_refused_when_it_is_made(library):
    for options, error, message in (
        ({"kernel": (3, 4)}, ValueError, r"kernel_size must be odd.* got \(3, 4\)"),
        ({"kernel": (1,) * 4}, ValueError, "(kernel_size|num_spatial_dims) must .*1.* 3"),
        ({"dilation": (0, 1)}, ValueError, "dilation must have 1 or 2 entries of at least 1"),
        ({"groups": 4}, ValueError, "out_channels divisible by groups|feature_group_count must"),
        ({"kernel": (5, 3), "padding": 1}, ValueError, r"'SAME_LOWER'.* and \(2, 1\) do, .* got 1"),
        ({"padding": ((1, 1), (1, 2))}, ValueError, "padding must keep the size"),
        ({"padding": (1, 1, 1)}, ValueError, "padding must keep the size"),
        ({"padding": "VALID"}, ValueError, "padding must keep the size, .* got 'VALID'"),
        ({"padding": "CAUSAL"}, ValueError, "padding must keep the size, .* got 'CAUSAL'"),
        ({"padding": None}, TypeError, "padding must be an int"),
        ({"padding": ("SAME", 1)}, TypeError, "padding must be an int"),
        ({"padding": {1}}, TypeError, "padding must be a sequence, of ints or pairs of ints"),
        ({"padding": {1: 1}}, TypeError, "padding must be a sequence"),
        ({"padding": b"SAME"}, TypeError, "padding must be a sequence"),
        (dtype_option(library, jnp.float8_e5m2), TypeError, "dtype must be real .*float8_e5m2"),
        ({"method": "fast"}, ValueError, "method must be one of 'auto', 'fused', 'separate'"),
        ({"method": None}, TypeError, "method must be one of"),
        ({"placement": "behind"}, ValueError, "placement must be one of 'before', 'after', got"),
        ({"placement": 0}, TypeError, "placement must be one of 'before', 'after', got 0"),
        ({"convention": "papr"}, ValueError, "convention must be one of"),
    ):
        with pytest.raises(error, match=message):
            make_conv(library, 2.0, **options)
    name = "strides" if library is nnx_modules else "stride"
    with pytest.raises(ValueError, match=f"{name} must have one entry per axis"):
        make_conv(library, [2.0] * 3)
    if library is equinox_modules:
        with pytest.raises(ValueError, match="padding_mode must be one of 'zeros'"):
            make_conv(library, 2.0, padding_mode="REFLECT", method="separate")
        with pytest.raises(TypeError, match="padding_mode must be one of 'zeros'"):
            make_conv(library, 2.0, padding_mode=None)
        with pytest.raises(ValueError, match="num_spatial_dims must be 1, 2 or 3, got '2'"):
            equinox_modules.DiffStrideConv("2", 4, 6, 3, key=jax.random.key(0))


@over_libraries
def test_arguments_of_a_convolution_are_the_librarys_own(library):
    own = nnx.Conv if library is nnx_modules else eqx.nn.Conv
    theirs, ours = (inspect.signature(c.__init__).parameters for c in (own, library.DiffStrideConv))
    # All that may be given by position.
    places = [name for name, value in theirs.items() if value.kind is value.POSITIONAL_OR_KEYWORD]
    assert [n for n, v in ours.items() if v.kind is v.POSITIONAL_OR_KEYWORD] == places
    changed = {name: ours[name].default for name in places}
    for name in places:
        if ours[name].default == theirs[name].default:
            del changed[name]
    if library is nnx_modules:
        assert changed == {"strides": 2.0}
        assert ours["padding"].default == theirs["padding"].default == "SAME"
    else:
        assert changed == {"stride": 2.0, "padding": "SAME"}


@over_libraries
def test_paddings_that_keep_the_size_change_nothing(library):
    x = random(*laid_out(library, 20, 24, 4))
    for dilation, given in (
        ((1, 1), ("SAME", "same", "SAME_LOWER", (2, 1), [(2, 2), (1, 1)], (2, (1, 1)))),
        ((1, 2), (2, np.array(2), jnp.asarray(2), ((2, 2),), (2, 2))),
    ):
        options = {"kernel": (5, 3), "dilation": dilation}
        expected = make_conv(library, 2.0, **options)(x)
        for padding in given:
            found = make_conv(library, 2.0, padding=padding, **options)(x)
            assert jnp.array_equal(found, expected), padding
    for padding in (0, "VALID", (0, 0)):
        make_conv(library, 2.0, kernel=(1, 1), padding=padding)
    if library is nnx_modules:
        conv = make_conv(library, 2.0, padding="circular")
        assert (conv.padding, conv.padding_mode) == ("CIRCULAR", "circular")


@over_libraries
def test_wrong_inputs_of_a_convolution_are_refused(library):
    layer = make_conv(library, 2.0, kernel=(1, 7), padding_mode="circular", method="fused")
    for shape, error in (
        ((5, 20, 24), r"in_channels / groups of x, .* for 5 channels"),
        ((4, 20), "x must have channels and 2 spatial axes"),
        ((4, 20, 2), "padding_mode must be 'zeros' where the kernel reaches further"),
        ((4, 3000, 24), "method 'fused'"),
    ):
        x = jnp.ones(shape)
        with pytest.raises(ValueError, match=error):
            layer(jnp.moveaxis(x, 0, -1) if library is nnx_modules else x)
    with pytest.raises(TypeError, match="x must be real floating point"):
        layer(jnp.ones((4, 20, 24), complex))


def test_convolutions_in_the_libraries_own_sequences_and_filters():
    x = random(2, 4, 32, 32)
    layer = make_conv(equinox_modules, 2.0, padding_mode="CIRCULAR")
    sequence = eqx.nn.Sequential([layer, eqx.nn.Lambda(jax.nn.relu)])
    assert jax.vmap(sequence)(x).shape == (2, 6, 16, 16)
    layer = make_conv(nnx_modules, 2.0)
    sequence = nnx.Sequential(layer, jax.nn.relu)
    assert sequence(jnp.moveaxis(x, 1, -1)).shape == (2, 16, 16, 6)
    strides = nnx.state(sequence, nnx_modules.StrideParam)
    assert [value.shape for value in jax.tree.leaves(strides)] == [(2,)]


def test_doctests():
    import doctest

    for library in LIBRARIES:
        assert doctest.testmod(library).failed == 0
        assert doctest.testmod(library).attempted


@over_libraries
def test_plans_are_shown_by_what_they_were_made_of(library):
    layer = library.DiffStride([2.0, 3.0], axes=(-2, -1))
    assert "PlanCache(last_read=(2.0, 3.0), convention='nominal', smoothness=0.25)" in repr(layer)
    layer = library.DiffStride(2.0, axes=(-3, -2), limits=(1.0, 3.0), multiple_of=4)
    shown = "smoothness=0.25, limits=(1.0, 3.0), axes=(-3, -2), multiple_of=4)"
    assert shown in repr(layer)


def test_strides_of_another_kind_than_jax_arrays_are_refused():
    layer = equinox_modules.DiffStride(2.0)
    layer = eqx.tree_at(lambda layer: layer.strides, layer, [2.0, 2.0])
    with pytest.raises(TypeError, match=r"strides must be a jax\.Array, got list"):
        layer(jnp.ones((1, 16, 16)))


@over_libraries
def test_a_warning_names_the_place_of_the_call(library):
    x = jnp.ones(laid_out(library, 2, 3, 8, 1))
    layers = [library.DiffStride(2.0, convention="paper") for _ in range(2)]
    for call in (layers[0], jax.vmap(layers[1])):
        with pytest.warns(NothingToCropWarning) as caught:
            call(x)
        assert {warning.filename for warning in caught} == {__file__}


@pytest.mark.parametrize("options", [{}, {"placement": "after"}, {"method": "fused"}])
def test_a_convolution_is_exported_for_batches_of_any_size(options):
    conv = nnx_modules.DiffStrideConv(3, 4, (3, 3), rngs=nnx.Rngs(0), **options)
    shape = jax.export.symbolic_shape("batch, 12, 14, 3")
    program = jax.export.export(jax.jit(lambda x: conv(x)))(
        jax.ShapeDtypeStruct(shape, jnp.float32)
    )
    for batch in (1, 5):
        x = random(batch, 12, 14, 3)
        np.testing.assert_allclose(program.call(x), conv(x), atol=1e-5)


def test_sizes_along_resized_axes_must_be_known():
    conv = nnx_modules.DiffStrideConv(3, 4, (3, 3), rngs=nnx.Rngs(0))
    shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("1, height, 14, 3"), jnp.float32)
    with pytest.raises(TypeError, match=r"x must have known sizes .* got shape \(1, height, 14"):
        jax.export.export(jax.jit(lambda x: conv(x)))(shape)
