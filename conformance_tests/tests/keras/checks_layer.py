"""The layer by itself, over whichever backend this process has; run by test_backends.py."""

import doctest
import inspect
import json

import diffstride_keras
import keras
import numpy as np
import pytest
from diffstride_keras import DiffStride2d, layers, training
from support.keras_layers import evaluated, functions, over_jax, random, to_host

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

OPTIONS = (
    {},
    {"convention": "paper"},
    {"convention": "tensorflow", "smoothness_factor": 3.0},
    {"smoothness_factor": 0.6, "shared_stride": True},
    {"cropping": False, "upper_limit_stride": 1.5},
    {"multiple_of": 8},
)


@pytest.mark.parametrize("data_format", ["channels_first", "channels_last"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_numbers_are_those_of_the_function(options, data_format):
    shape = (2, 3, 20, 24) if data_format == "channels_first" else (2, 20, 24, 3)
    strides = [2.2] if options.get("shared_stride") else [1.7, 2.2]
    layer = DiffStride2d(strides, data_format=data_format, **options)
    x = random(*shape)
    g = random(*layer.compute_output_shape(shape), seed=1)
    found = evaluated(layer, x, g)

    options = dict(options)
    options.pop("shared_stride", None)
    axes = (2, 3) if data_format == "channels_first" else (1, 2)
    function = {"axes": axes, "limits": (None, options.pop("upper_limit_stride", None))}
    function["smoothness"] = options.pop("smoothness_factor", None)
    for array, expected in zip(
        found, gradients_of_the_function(x, g, strides, **function, **options), strict=True
    ):
        np.testing.assert_allclose(array, expected, rtol=1e-5, atol=1e-6)


def gradients_of_the_function(x, g, strides, **options):
    package = functions()
    if over_jax:
        import jax
        import jax.numpy as jnp

        strides = jnp.asarray(strides, jnp.float32)
        names = ("axes", "smoothness", "limits", "cropping", "multiple_of", "convention")
        of_sizes = {name: options[name] for name in names if name in options}
        sizes = package.output_sizes(x.shape, strides, **of_sizes)
        sized = {} if options.get("cropping") is False else {"sizes": sizes}
        y, pullback = jax.vjp(
            lambda x, s: package.diff_stride(x, s, **options, **sized), jnp.asarray(x), strides
        )
        return y, *pullback(jnp.asarray(g))
    import torch

    x = torch.from_numpy(x).requires_grad_()
    strides = torch.tensor(strides, requires_grad=True)
    y = package.diff_stride(x, strides, **options)
    y.backward(torch.from_numpy(g))
    return y.detach(), x.grad, strides.grad


def test_arguments_stand_in_the_authors_order():
    layer = DiffStride2d((2.0, 2.0), 0.5, False, False, True, 1.5, 3.0, "channels_first")
    assert layer.get_config() == {
        **layer.get_config(),
        "strides": [2.0],
        "smoothness_factor": 0.5,
        "cropping": False,
        "trainable": False,
        "shared_stride": True,
        "lower_limit_stride": 1.5,
        "upper_limit_stride": 3.0,
        "data_format": "channels_first",
        "convention": "nominal",
    }
    assert layer.trainable_variables == []
    assert tuple(layer.strides.shape) == (1,)


def test_config_makes_the_same_layer():
    keras.utils.set_random_seed(0)
    for options in (*OPTIONS, {"strides_regularizer": "l2", "dtype": "mixed_bfloat16"}):
        layer = DiffStride2d((2.0, 2.0), name="pool", **options)
        config = json.loads(json.dumps(layer.get_config(), default=vars))
        other = DiffStride2d.from_config(layer.get_config())
        assert other.get_config() == layer.get_config()
        assert other.name == config["name"] == "pool"
        if "strides_regularizer" not in options:
            x = random(1, 20, 20, 1)
            np.testing.assert_array_equal(to_host(layer(x)), to_host(other(x)))
    parameters = list(inspect.signature(DiffStride2d).parameters)[:-1]
    assert set(parameters) <= set(layer.get_config())


def test_data_format_is_that_of_keras_unless_given():
    assert DiffStride2d().data_format == keras.config.image_data_format() == "channels_last"
    keras.config.set_image_data_format("channels_first")
    try:
        assert tuple(DiffStride2d()(random(1, 2, 20, 24)).shape) == (1, 2, 10, 12)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_shapes_without_arrays():
    layer = DiffStride2d((2.0, 3.0))
    assert layer.compute_output_shape((None, 32, 32, 3)) == (None, 16, 11, 3)
    assert layer.compute_output_shape((None, None, 32, 3)) == (None, None, None, 3)
    assert layer.plans.seen() == ()
    layer.strides.assign([3.0, 2.0])
    assert layer.compute_output_shape((8, 32, 32, 3)) == (8, 11, 16, 3)
    assert DiffStride2d(2.0, cropping=False).compute_output_shape((1, 9, 9, 2)) == (1, 9, 9, 2)
    first = DiffStride2d(2.0, data_format="channels_first")
    assert first.compute_output_shape((None, 3, 20, 24)) == (None, 3, 10, 12)
    spec = DiffStride2d(2.0, dtype="mixed_bfloat16")(keras.Input((32, 32, 3)))
    assert (spec.shape, spec.dtype) == ((None, 16, 16, 3), "bfloat16")


def test_functional_models_of_known_and_unknown_sizes():
    for size, found in ((20, 10), (None, None)):
        inputs = keras.Input((size, size, 2))
        outputs = keras.layers.Conv2D(3, 3, padding="same")(DiffStride2d(2.0)(inputs))
        assert outputs.shape == (None, found, found, 3)
        model = keras.Model(inputs, outputs)
        assert model.predict(random(2, 20, 20, 2), verbose=0).shape == (2, 10, 10, 3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"strides": 0.5}, ValueError, "strides must be at least 1"),
        ({"strides": (2.0, 2.0, 2.0)}, ValueError, "strides must have one entry per axis"),
        ({"strides": "2"}, TypeError, "strides must be real numbers"),
        (
            {"strides": (2.0, 3.0), "shared_stride": True},
            ValueError,
            "strides must be one number where shared_stride=True",
        ),
        ({"shared_stride": 1}, TypeError, "shared_stride must be True or False, got 1"),
        ({"smoothness_factor": 2.0}, ValueError, "smoothness_factor must be above 0 and at most 1"),
        ({"smoothness_factor": "a"}, TypeError, "smoothness_factor must be a real number"),
        ({"cropping": 1}, TypeError, "cropping must be True or False, got 1"),
        ({"trainable": "no"}, TypeError, "trainable must be True or False, got 'no'"),
        (
            {"lower_limit_stride": 3.0, "upper_limit_stride": 2.0},
            ValueError,
            r"\(lower_limit_stride, upper_limit_stride\) must have lower <= upper, got \(3.0, 2.0",
        ),
        ({"upper_limit_stride": "a"}, TypeError, "upper_limit_stride.* must be a real number"),
        ({"data_format": "NCHW"}, ValueError, "data_format must be one of 'channels_first'.*NCHW"),
        ({"convention": "papr"}, ValueError, "convention must be one of 'nominal'"),
    ],
)
def test_wrong_arguments_are_named_when_a_layer_is_made(arguments, error, message):
    with pytest.raises(error, match=message):
        DiffStride2d(**arguments)


def test_wrong_inputs_are_refused():
    with pytest.raises(ValueError, match="expected ndim=4, found ndim=3"):
        DiffStride2d()(random(20, 20, 3))
    with pytest.raises(TypeError, match=r"(?s)DiffStride2d.*must be real floating point.*int32"):
        DiffStride2d()(np.ones((1, 20, 20, 3), np.int32))
    layer = DiffStride2d(name="pool")
    layer.strides.assign([np.nan, 2.0])
    with pytest.raises(ValueError, match=r"(?s)DiffStride2d.*strides must be finite, got \(nan"):
        layer(random(1, 20, 20, 3))
    with pytest.raises(ValueError, match=r"strides of layer 'pool' must be finite, got \[nan"):
        layer.replan()


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "bfloat16", "float32"])
def test_strides_stay_in_float32(policy):
    layer = DiffStride2d(2.7, dtype=policy)
    assert layer.strides.dtype == "float32"
    x = random(2, 20, 20, 3)
    y = layer(x)
    assert keras.backend.standardize_dtype(y.dtype) == layer.compute_dtype
    x = keras.ops.cast(x, layer.compute_dtype)
    expected = DiffStride2d(2.7)(keras.ops.cast(x, "float32"))
    np.testing.assert_allclose(
        to_host(keras.ops.cast(y, "float32")), to_host(expected), rtol=1e-2, atol=1e-2
    )


def test_strides_in_double_precision():
    if over_jax:
        import jax

        jax.config.update("jax_enable_x64", True)
    try:
        layer = DiffStride2d(2.1, dtype="float64")
        assert layer.strides.dtype == "float64"
        assert to_host(layer.strides).tolist() == [2.1, 2.1]
        assert to_host(layer(random(1, 20, 20, 3))).dtype == np.float64
    finally:
        if over_jax:
            jax.config.update("jax_enable_x64", False)


def test_bounds_are_those_of_the_sizes_seen():
    layer = DiffStride2d((2.0, 2.0), convention="paper", upper_limit_stride=6.0)
    layer(random(1, 32, 24, 1))
    layer.strides.assign([0.5, 9.0])
    assert to_host(layer.strides.constraint(layer.strides)).tolist() == [
        pytest.approx(32 / 28, rel=1e-7),
        6.0,
    ]
    # No map since: they stay.
    assert to_host(layer.strides.constraint(layer.strides))[0] == pytest.approx(32 / 28, rel=1e-7)
    layer(random(1, 16, 16, 1))
    bounded = to_host(layer.strides.constraint(layer.strides))
    np.testing.assert_allclose(bounded, [16 / 12, 6.0], rtol=1e-6)


def test_doctests():
    for module in (layers, training):
        failed, attempted = doctest.testmod(module)
        assert (failed, attempted > 0) == (0, True)
    assert diffstride_keras.__version__
