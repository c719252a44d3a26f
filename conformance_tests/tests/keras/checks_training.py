"""Training, sizes that change in it, saving; run by test_backends.py over each backend."""

import warnings

import keras
import numpy as np
import pytest
from diffstride_keras import DiffStride2d, UpdateSizes, replan, stride_variables
from support.keras_layers import TracedLayer, over_jax, random, small_model, to_host

SIZES = {2.0: (10, 10), 2.3: (9, 9), 2.6: (8, 8)}
"""Of maps of 20 x 20 at some strides."""


@pytest.fixture(autouse=True)
def _seeded():
    keras.utils.set_random_seed(0)


def data(count=24):
    labels = np.random.default_rng(1).integers(0, 3, count)
    return random(count, 20, 20, 1) + labels[:, None, None, None], labels


def compiled_model(*layers, optimizer="sgd", **options):
    model = small_model(*layers)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(optimizer, loss, **options)
    return model


class Move(keras.callbacks.Callback):
    """Gives a layer other strides after each batch, and holds on to what trained it."""

    def __init__(self, layer, strides):
        super().__init__()
        self.layer, self.values, self.held = layer, iter(strides), []

    def on_train_batch_end(self, batch, logs=None):
        self.held.append(self.model.train_function)  # the model, so that variables have values
        self.layer.strides.assign([next(self.values)] * 2)


def frozen():
    return keras.optimizers.SGD(0.0)


def test_compiled_sizes_follow_the_strides():
    layer = TracedLayer(2.0)
    model = compiled_model(layer, optimizer=frozen())
    x, y = data()
    move = Move(layer, (2.0, 2.3, 2.25, 2.0, 2.6, 2.3, 2.05, 2.6))
    model.fit(x, y, batch_size=6, epochs=2, verbose=0, callbacks=[move, UpdateSizes()])
    if over_jax:
        # Each size once, though functions that are equal for JAX are still there.
        assert layer.traces["sizes"] == [SIZES[2.0], SIZES[2.3], SIZES[2.6]]
        assert len(set(map(id, move.held))) == 3
    assert layer.compute_output_shape((1, 20, 20, 1)) == (1, *SIZES[2.6], 1)
    # What evaluates and predicts has the sizes of now.
    layer.traces["sizes"].clear()
    model.evaluate(x, y, verbose=0)
    model.predict(x, verbose=0)
    if over_jax:
        assert set(layer.traces["sizes"]) == {SIZES[2.6]}
    np.testing.assert_allclose(model.predict(x, verbose=0), to_host(model(x)), atol=1e-5)


def test_validation_during_training_has_the_sizes_of_the_strides():
    layer = TracedLayer(2.0)
    model = compiled_model(layer, optimizer=frozen())
    x, y = data(6)
    history = model.fit(
        x,
        y,
        batch_size=6,
        epochs=3,
        verbose=0,
        validation_data=(x, y),
        callbacks=[Move(layer, (2.0, 2.6, 2.0)), UpdateSizes()],
    ).history
    losses = []
    for stride in (2.0, 2.6, 2.0):
        layer.strides.assign([stride] * 2)
        losses.append(to_host(model.loss(y, model(x))))
    assert losses[0] != losses[1]
    np.testing.assert_allclose(history["val_loss"], losses, rtol=1e-5)


def test_sizes_without_the_callback():
    layer = TracedLayer(2.0)
    model = compiled_model(layer, optimizer=frozen())
    x, y = data()
    model.fit(x, y, batch_size=6, verbose=0, callbacks=[Move(layer, (2.3, 2.0, 2.6, 2.6))])
    layer.strides.assign([2.6, 2.6])
    found, eager = model.predict(x, verbose=0), to_host(model(x))
    if over_jax:
        assert set(layer.traces["sizes"]) == {SIZES[2.0]}
        # The window follows the strides all the same.
        layer.strides.assign([2.0, 2.0])
        assert np.abs(found - model.predict(x, verbose=0)).max() > 1e-4
    else:
        np.testing.assert_allclose(found, eager, atol=1e-5)


def test_strides_are_learnt_and_compiled_or_not_is_the_same():
    histories, strides = [], []
    x, y = data()
    for options in ({}, {"run_eagerly": True}, {"jit_compile": False}):
        keras.utils.set_random_seed(0)
        layer = DiffStride2d((2.0, 2.2))
        model = compiled_model(layer, optimizer=keras.optimizers.Adam(0.05), **options)
        callbacks = [UpdateSizes()] if not options else []
        fitted = model.fit(x, y, batch_size=8, epochs=3, verbose=0, callbacks=callbacks)
        histories.append(fitted.history["loss"])
        strides.append(to_host(layer.strides))
    np.testing.assert_allclose(histories[1:], histories[:1] * 2, rtol=1e-4)
    np.testing.assert_allclose(strides[1:], strides[:1] * 2, rtol=1e-3)
    assert np.abs(strides[0] - (2.0, 2.2)).min() > 0.01


def test_optimisers_keep_strides_within_their_bounds():
    class Apart(keras.regularizers.Regularizer):
        def __call__(self, strides):
            return 10 * strides[0] - 10 * strides[1]

    layer = DiffStride2d(
        2.0, lower_limit_stride=1.9, upper_limit_stride=2.1, strides_regularizer=Apart()
    )
    model = compiled_model(layer, optimizer=keras.optimizers.SGD(1.0))
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[UpdateSizes()])
    np.testing.assert_allclose(to_host(layer.strides), [1.9, 2.1], rtol=1e-6)


def test_regularizers_see_the_strides():
    layer = DiffStride2d((2.0, 3.0), strides_regularizer=keras.regularizers.L1(0.1))
    layer(random(1, 20, 20, 1))
    np.testing.assert_allclose(to_host(layer.losses[0]), 0.5, rtol=1e-6)


def test_layers_that_are_not_trainable_stay():
    layer = DiffStride2d((2.0, 2.2), trainable=False)
    model = compiled_model(layer, optimizer=keras.optimizers.Adam(0.1))
    assert len(model.trainable_variables) == len(model.variables) - 1
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[UpdateSizes()])
    np.testing.assert_array_equal(to_host(layer.strides), np.float32([2.0, 2.2]))


def test_no_weight_decay_on_strides():
    class Sub(keras.Model):
        """A model in a model, whose layer is called twice."""

        def __init__(self):
            super().__init__()
            self.pool = DiffStride2d(2.0)

        def call(self, x):
            return self.pool(self.pool(x))

    model = compiled_model(DiffStride2d(2.0), Sub(), DiffStride2d(1.5, shared_stride=True))
    model(random(1, 20, 20, 1))
    assert [tuple(strides.shape) for strides in stride_variables(model)] == [(2,), (2,), (1,)]
    optimizer = keras.optimizers.AdamW(1e-9, weight_decay=1e7)
    optimizer.exclude_from_weight_decay(var_list=stride_variables(model))
    model.compile(optimizer, model.loss)
    before = [to_host(variable).copy() for variable in model.trainable_variables]
    x, y = data(4)
    model.fit(x, y, verbose=0, callbacks=[UpdateSizes()])
    for variable, values in zip(model.trainable_variables, before, strict=True):
        if variable.name == "strides":
            np.testing.assert_allclose(to_host(variable), values, rtol=1e-6)
        elif variable.name == "kernel":
            assert np.abs(to_host(variable)).max() < 0.995 * np.abs(values).max()


def test_what_another_callback_restores_decides_the_sizes():
    class Restore(keras.callbacks.Callback):
        def on_train_end(self, logs=None):
            self.model.set_weights(weights)

    layer = DiffStride2d(2.6)
    model = compiled_model(layer, optimizer=frozen())
    weights, (x, y) = model.get_weights(), data(6)
    callbacks = [Move(layer, (2.3, 2.0)), Restore(), UpdateSizes()]
    model.fit(x, y, batch_size=6, epochs=2, verbose=0, callbacks=callbacks)
    np.testing.assert_allclose(to_host(layer.strides), 2.6)
    np.testing.assert_allclose(model.predict(x, verbose=0), to_host(model(x)), atol=1e-5)


def test_weights_that_are_set_need_a_replan():
    layer = DiffStride2d(2.0, name="pool")
    model = compiled_model(layer)
    x, _ = data(4)
    model.predict(x, verbose=0)
    changed = [
        np.float32([2.6, 2.6]) if array.shape == (2,) else array for array in model.get_weights()
    ]
    model.set_weights(changed)
    replan(model)
    np.testing.assert_allclose(model.predict(x, verbose=0), to_host(model(x)), atol=1e-5)
    replan(layer)
    layer.strides.assign([np.inf, 2.0])
    with pytest.raises(ValueError, match=r"strides of layer 'pool' must be finite"):
        replan(model)


def learnt_model():
    model = small_model(DiffStride2d((2.6, 1.4), convention="paper"), DiffStride2d(1.5))
    for strides in stride_variables(model):
        strides.assign([2.2, 1.7])
    return model


@pytest.mark.parametrize("predicted", [True, False])
def test_saving_a_model(tmp_path, predicted):
    model, (x, _) = learnt_model(), data(4)
    if predicted:
        replan(model)
        expected = model.predict(x, verbose=0)
    else:
        expected = to_host(model(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_allclose(loaded.predict(x, verbose=0), expected, atol=1e-5)
    np.testing.assert_allclose(to_host(loaded(x)), expected, atol=1e-5)
    layers = [layer for layer in loaded.layers if isinstance(layer, DiffStride2d)]
    assert [layer.plans.settings.convention.name for layer in layers] == ["paper", "nominal"]
    model.save_weights(tmp_path / "model.weights.h5")
    other = small_model(DiffStride2d((2.6, 1.4), convention="paper"), DiffStride2d(1.5))
    other.load_weights(tmp_path / "model.weights.h5")
    np.testing.assert_allclose(other.predict(x, verbose=0), expected, atol=1e-5)


@pytest.mark.filterwarnings("ignore")  # of Keras and of the exporter that it calls
def test_a_model_is_exported_for_batches_of_any_size(tmp_path):
    model = small_model(DiffStride2d((2.3, 1.7)))
    images, path = random(3, 20, 20, 1), str(tmp_path / "model.onnx")
    expected = to_host(model(images))
    if over_jax:
        import jax

        shape = jax.ShapeDtypeStruct(jax.export.symbolic_shape("batch, 20, 20, 1"), "float32")
        found = jax.export.export(jax.jit(lambda x: model(x)))(shape).call(images)
    else:
        import onnxruntime

        model.export(path, format="onnx", verbose=False)
        session = onnxruntime.InferenceSession(path)
        (found,) = session.run(None, {session.get_inputs()[0].name: images})
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(("update_freq", "sizes"), [(1, 3), (2, 2)])
def test_sizes_are_updated_every_few_batches(update_freq, sizes):
    layer = TracedLayer(2.0)
    model = compiled_model(layer, optimizer=frozen())
    move = Move(layer, [2.3, 2.0, 2.3, 2.6, 2.6, 2.6])
    model.fit(*data(), batch_size=4, verbose=0, callbacks=[move, UpdateSizes(update_freq)])
    assert len({id(held) for held in move.held}) == (sizes if over_jax else 1)
    assert layer.plans.plan((1, 20, 20, 1)).output_sizes == SIZES[2.6]


def test_validation_has_the_sizes_of_the_last_batch():
    layer = TracedLayer(2.0)
    model = compiled_model(layer, optimizer=frozen())
    x, y = data(12)
    callbacks = [Move(layer, [2.0, 2.0, 2.6]), UpdateSizes(update_freq=2)]
    fit = model.fit(x, y, batch_size=4, verbose=0, validation_data=(x, y), callbacks=callbacks)
    (found,) = fit.history["val_loss"]
    np.testing.assert_allclose(found, model.evaluate(x, y, verbose=0), rtol=1e-5)


def test_the_update_frequency_is_checked():
    with pytest.raises(ValueError, match="update_freq must be at least 1, got 0"):
        UpdateSizes(0)
    with pytest.raises(TypeError, match=r"update_freq must be an int, got 1\.5"):
        UpdateSizes(1.5)


@pytest.mark.slow
def test_training_goes_on_from_a_file(tmp_path):
    x, y = data()
    model = compiled_model(DiffStride2d((2.0, 2.2)), optimizer=keras.optimizers.Adam(0.05))
    model.fit(x, y, batch_size=8, epochs=2, shuffle=False, verbose=0, callbacks=[UpdateSizes()])
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    options = {"batch_size": 8, "shuffle": False, "verbose": 0}
    histories = [
        each.fit(x, y, **options, callbacks=[UpdateSizes()]).history["loss"]
        for each in (model, loaded)
    ]
    np.testing.assert_allclose(*histories, rtol=1e-5)


def test_saving_with_sizes_that_are_behind_warns(tmp_path):
    layer = DiffStride2d(2.0, name="pool")
    model = compiled_model(layer, optimizer=frozen())
    x, y = data(6)
    model.fit(x, y, verbose=0, callbacks=[Move(layer, (2.6,))])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        model.save(tmp_path / "model.keras")
    messages = [str(each.message) for each in caught if "layer 'pool'" in str(each.message)]
    assert len(messages) == over_jax
    replan(model)
    model.save(tmp_path / "model.keras")


def test_strides_that_are_not_finite_end_training():
    layer = DiffStride2d(2.0, name="pool")
    model = compiled_model(layer, optimizer=keras.optimizers.SGD(1.0))
    x, y = data(6)
    x[0, 0, 0, 0] = np.nan
    with pytest.raises(ValueError, match=r"strides of layer 'pool' must be finite, got \[nan"):
        model.fit(x, y, verbose=0, callbacks=[UpdateSizes()])


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_mixed_precision(policy):
    keras.config.set_dtype_policy(policy)
    try:
        layer = DiffStride2d((2.0, 2.2))
        model = compiled_model(layer, optimizer=keras.optimizers.Adam(0.05))
        x, y = data()
        losses = model.fit(
            x, y, batch_size=8, epochs=2, verbose=0, callbacks=[UpdateSizes()]
        ).history["loss"]
    finally:
        keras.config.set_dtype_policy("float32")
    assert np.isfinite(losses).all()
    assert layer.strides.dtype == "float32"
    assert np.abs(to_host(layer.strides) - (2.0, 2.2)).min() > 1e-3


def test_models_that_subclass_are_built_by_their_first_batch():
    class Network(keras.Model):
        def __init__(self):
            super().__init__()
            self.first = keras.layers.Conv2D(4, 3, activation="relu")
            self.pool = DiffStride2d(2.0)
            self.second = keras.layers.Conv2D(4, 3, activation="relu")
            self.classifier = keras.layers.Dense(3)

        def call(self, x):
            y = self.second(self.pool(self.first(x)))
            return self.classifier(keras.ops.mean(y, (1, 2)))

    model = Network()
    model.compile("adam", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    x, y = data()
    model.fit(x, y, batch_size=8, verbose=0, callbacks=[UpdateSizes()])
    np.testing.assert_allclose(model.predict(x, verbose=0), to_host(model(x)), atol=1e-5)
