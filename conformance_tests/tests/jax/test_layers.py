"""The Flax NNX and the Equinox layers, whose sizes are static state."""

import copy
import io

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from diffstride_jax import diff_stride, equinox_modules, nnx_modules, spectral_pool, spectral_resize
from flax import nnx
from support.amounts import quick_every
from support.jax_layers import (
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

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
# Height and width, where each library has them.
AXES = {nnx_modules: (-3, -2), equinox_modules: (-2, -1)}


OPTIONS = (
    {},
    {"axes": (1, 2), "smoothness": 0.5},
    {"axes": (-2, -3), "convention": "paper"},
    {"axes": (-1,), "limits": (1.5, 2.0)},
    {"axes": (0, 1, 2), "limits": None, "norm": "ortho"},
    {"cropping": False},
    {"convention": "tensorflow"},
    {"method": "fft"},
)


@pytest.mark.parametrize("options", quick_every(3, OPTIONS), ids=str)
@over_libraries
def test_layer_is_the_function(library, options):
    x = random(12, 20, 24, 10) if "axes" in options else random(*laid_out(library, 2, 20, 24, 10))
    layer = library.DiffStride(2.25, **options)
    axes = options.get("axes", AXES[library])
    expected = diff_stride(x, jnp.float32(2.25), **{**options, "axes": axes})
    assert jnp.array_equal(layer(x), expected)
    assert layer.output_sizes(x.shape) == tuple(expected.shape[axis] for axis in axes)
    under_jit = compiled(library, lambda layer, x: layer(x))(layer, x)
    np.testing.assert_allclose(under_jit, expected, rtol=0, atol=1e-5)


def on_the_host(library, module):
    """Return a module with NumPy arrays for parameters, as some readers of checkpoints leave it."""
    if library is nnx_modules:
        graph, state = nnx.split(module)
        return nnx.merge(graph, jax.tree.map(np.asarray, state))
    return jax.tree.map(lambda leaf: np.asarray(leaf) if eqx.is_array(leaf) else leaf, module)


@over_libraries
def test_parameters_that_were_restored_on_the_host(library):
    x = random(*laid_out(library, 20, 24, 4))
    padding = {"padding": "SAME"}
    for module in (library.DiffStride(2.25), make_conv(library, 2.25, **padding)):
        restored = on_the_host(library, module)
        assert isinstance(strides_of(getattr(restored, "pool", restored)), np.ndarray)
        np.testing.assert_array_equal(restored(x), module(x))
        np.testing.assert_array_equal(projected(library, restored)(x), module(x))


@over_libraries
def test_strides_and_their_dtype(library):
    dtype = {"param_dtype" if library is nnx_modules else "dtype": jnp.float64}
    assert strides_of(library.DiffStride(2.0)).shape == (2,)
    assert strides_of(library.DiffStride(2.0)).dtype == jnp.float32
    assert strides_of(library.DiffStride([2.0, 3.0])).tolist() == [2.0, 3.0]
    assert strides_of(library.DiffStride(2.0, shared=True)).tolist() == [2.0]
    with jax.enable_x64(True):
        assert strides_of(library.DiffStride(2.1, **dtype)).tolist() == [2.1, 2.1]
    (name,) = dtype
    with pytest.raises(TypeError, match="dtype must be float32 or float64"):
        library.DiffStride(2.0, **{name: jnp.bfloat16})


@over_libraries
def test_wrong_arguments_are_refused_when_a_layer_is_made(library):
    for stride, options, message in (
        (0.5, {}, "stride must be at least 1"),
        ([2.0] * 3, {}, "stride must have one entry per axis"),
        ([2.0, 3.0], {"shared": True}, "stride must be one number where shared=True"),
        (2.0, {"convention": "papr"}, "convention must be one of"),
        (2.0, {"axes": (1, 1)}, "axes must not name an axis twice"),
    ):
        with pytest.raises(ValueError, match=message):
            library.DiffStride(stride, **options)
    with pytest.raises(ValueError, match="stride must be at least 1"):
        library.SpectralPool(0.5)
    layer = library.DiffStride(2.0)
    with pytest.raises(TypeError, match=r"x must be a jax\.Array"):
        layer(np.ones((20, 20, 3), np.float32))


@over_libraries
def test_compiles_exactly_when_a_size_changes(library):
    traced = []

    def traced_call(layer, x):
        traced.append(x.shape)
        return layer(x)

    apply = compiled(library, traced_call)

    # Never called outside: what is compiled first follows from the strides of the beginning.
    layer = library.DiffStride([2.0, 2.0])
    x, other = random(*laid_out(library, 2, 32, 32, 3)), random(*laid_out(library, 2, 64, 20, 3))
    assert apply(layer, x).shape == laid_out(library, 2, 16, 16, 3)
    for step in range(10):
        layer = replanned(library, with_strides(layer, 2.0 + 0.001 * step, 2.0))
        assert apply(layer, x).shape == laid_out(library, 2, 16, 16, 3)
    assert len(traced) == 1
    layer = replanned(library, with_strides(layer, 2.0, 3.0))
    assert apply(layer, x).shape == laid_out(library, 2, 16, 11, 3)
    assert apply(layer, x).shape == laid_out(library, 2, 16, 11, 3)
    assert len(traced) == 2
    assert apply(layer, other).shape == laid_out(library, 2, 32, 7, 3)
    assert len(traced) == 3
    # Back to sizes met before: what was compiled for them serves again.
    layer = replanned(library, with_strides(layer, 2.0, 2.0))
    assert apply(layer, x).shape == laid_out(library, 2, 16, 16, 3)
    assert len(traced) == 3


@over_libraries
def test_traced_sizes_are_those_of_the_last_replan(library):
    x = random(*laid_out(library, 2, 32, 32, 3))
    apply = compiled(library, lambda layer, x: layer(x))
    layer = library.DiffStride([2.0, 2.0])
    apply(layer, x)
    layer = with_strides(layer, 3.0, 3.0)
    assert apply(layer, x).shape == laid_out(library, 2, 16, 16, 3)
    assert layer(x).shape == laid_out(library, 2, 11, 11, 3)
    expected = diff_stride(x, jnp.asarray([3.0, 3.0]), axes=AXES[library], sizes=(16, 16))
    np.testing.assert_allclose(apply(layer, x), expected, rtol=0, atol=1e-5)
    layer = replanned(library, layer)
    assert apply(layer, x).shape == laid_out(library, 2, 11, 11, 3)


@over_libraries
def test_project_strides_and_replan_of_a_model(library):
    first = library.DiffStride([2.0, 2.0], limits=(None, 5.0), convention="paper")
    second = library.DiffStride(2.0, shared=True)
    model = nnx.List([first, second]) if library is nnx_modules else [first, second]
    x = random(*laid_out(library, 1, 32, 24, 3))
    compiled(library, lambda model, x: (model[0](x), model[1](x)))(model, x)
    changed = [with_strides(model[0], 0.5, 9.0), with_strides(model[1], 100.0)]
    model = nnx.List(changed) if library is nnx_modules else changed
    model = projected(library, model)
    assert strides_of(model[0]).tolist() == pytest.approx([32 / 28, 5.0], rel=1e-7)
    assert strides_of(model[1]).tolist() == [12.0]
    assert model[0].plans.plan(x.shape).output_sizes == model[0].output_sizes(x.shape) == (32, 14)


@over_libraries
@pytest.mark.parametrize("jitted", [True, False])
def test_an_inner_map_bounds_by_its_size_now(library, jitted):
    options = {"convention": "paper", "smoothness": 2.0}
    model = [library.DiffStride(stride, **options) for stride in (2.9, 1.7)]
    model = nnx.List(model) if library is nnx_modules else model
    x, traces = random(*laid_out(library, 1, 24, 24, 1)), []

    def forward(model, x):
        traces.append(1)
        return model[1](model[0](x))

    forward = compiled(library, forward) if jitted else forward
    # 24 - 14, then 24 - 20, which twice the size allows a greater stride.
    for strides, calls, upper in (((2.9, 2.9), 2, 7.0), ((1.7, 1.7), 3, 10.0)):
        changed = [with_strides(model[0], *strides), model[1]]
        model = nnx.List(changed) if library is nnx_modules else changed
        model = projected(library, model)
        traces.clear()
        for _ in range(calls):
            forward(model, x)
            changed = [model[0], with_strides(model[1], 50.0, 50.0)]
            model = nnx.List(changed) if library is nnx_modules else changed
            model = projected(library, model)
            # A compiled function sees no size, where it is not traced, and leaves the bounds.
            assert strides_of(model[1]).tolist() == [upper, upper]
            changed = [model[0], with_strides(model[1], 1.7, 1.7)]
            model = nnx.List(changed) if library is nnx_modules else changed
            model = replanned(library, model)
        assert len(traces) == (1 if jitted else calls)


@over_libraries
def test_strides_of_a_model_are_read_in_one_transfer(library, monkeypatch):
    reads = []

    def counted(arrays, original=jax.device_get):
        reads.append(len(arrays))
        return original(arrays)

    layers = [library.DiffStride(2.0), with_strides(library.DiffStride(2.0), 0.5, 2.0)]
    model = nnx.List(layers) if library is nnx_modules else layers
    monkeypatch.setattr(jax, "device_get", counted)
    for function in (projected, replanned):
        function(library, model)
        assert reads == [2]
        reads.clear()


@over_libraries
def test_strides_that_are_not_finite_are_named_and_nothing_changes(library):
    layers = [library.DiffStride([2.0, 2.0]), with_strides(library.DiffStride(3.0), np.nan, 3.0)]
    model = nnx.List(layers) if library is nnx_modules else layers
    model[0](random(*laid_out(library, 1, 32, 24, 3)))
    before = model[0].plans
    for function in (library.replan, library.project_strides):
        with pytest.raises(ValueError, match=r"strides of layer '.*1.*' must be finite, got \[nan"):
            function(model)
    assert model[0].plans is before


@over_libraries
def test_replan_inside_jit_is_refused(library):
    layer = library.DiffStride(2.0)
    for function in (library.replan, library.project_strides):
        with pytest.raises(
            ValueError, match=r"got traced ones: project or replan outside jax\.jit"
        ):
            compiled(library, function)(layer)


def mean_square(layer, x):
    return jnp.mean(layer(x) ** 2)


@over_libraries
def test_gradients_are_those_of_the_function(library):
    x, layer = random(*laid_out(library, 2, 32, 32, 3)), library.DiffStride([2.0, 2.6])
    if library is nnx_modules:
        found = nnx.jit(nnx.grad(mean_square))(layer, x).strides[...]
    else:
        found = eqx.filter_jit(eqx.filter_grad(mean_square))(layer, x).strides
    expected = jax.grad(
        lambda s: jnp.mean(
            diff_stride(x, s, axes=AXES[library], sizes=layer.output_sizes(x.shape)) ** 2
        )
    )(strides_of(layer))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@over_libraries
def test_complexity_penalty(library):
    layers = [library.DiffStride([2.0, 4.0]), library.DiffStride(2.5, shared=True)]
    x = random(*laid_out(library, 1, 32, 32, 3))
    for layer in layers:
        layer(x)
    model = nnx.List(layers) if library is nnx_modules else layers
    expected = 1 / 8 + 1 / 8 / 6.25
    value = library.complexity_penalty(layers)
    assert float(value) == pytest.approx(expected, rel=1e-6)
    if library is nnx_modules:
        gradients = nnx.jit(nnx.grad(lambda model: library.complexity_penalty(list(model))))(model)
        found = gradients[1].strides[...]
    else:
        gradients = eqx.filter_jit(eqx.filter_grad(library.complexity_penalty))(model)
        found = gradients[1].strides
    assert found.tolist() == pytest.approx([-2 / 2.5 / 8 / 6.25], rel=1e-6)
    with pytest.raises(ValueError, match="layers must have at least one"):
        library.complexity_penalty([])


def learn(library, steps=60):
    """Fit a layer's strides to those that made a target, with a compiled step."""
    x = random(*laid_out(library, 4, 32, 24, 1), seed=8)
    target = diff_stride(x, jnp.asarray([2.3, 1.9]), axes=AXES[library], cropping=False)
    optimizer = optax.adam(optax.exponential_decay(0.08, 20, 0.5))

    def loss(layer):
        # Interpolated back, so that outputs of all sizes can be compared.
        y = spectral_resize(layer(x), (32, 24), axes=AXES[library])
        return jnp.mean((y - target) ** 2)

    layer, traces = library.DiffStride([1.6, 2.6]), []
    if library is nnx_modules:
        state = nnx.Optimizer(layer, optimizer, wrt=nnx_modules.StrideParam)

        @nnx.jit
        def step(layer, state):
            traces.append(1)
            value, gradients = nnx.value_and_grad(loss)(layer)
            state.update(layer, gradients)
            return value
    else:
        state = optimizer.init(eqx.filter(layer, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(layer, state):
            traces.append(1)
            value, gradients = eqx.filter_value_and_grad(loss)(layer)
            updates, state = optimizer.update(gradients, state)
            return eqx.apply_updates(layer, updates), state, value

    losses, sizes = [], set()
    for _ in range(steps):
        sizes.add(layer.output_sizes(x.shape))
        if library is nnx_modules:
            value = step(layer, state)
            library.project_strides(layer)
        else:
            layer, state, value = step(layer, state)
            layer = library.project_strides(layer)
        losses.append(float(value))
    return losses, strides_of(layer), len(traces), sizes


@over_libraries
def test_several_steps_in_one_compiled_function(library):
    x, layer = random(*laid_out(library, 2, 32, 32, 1)), library.DiffStride([2.0, 2.6])
    strides, sizes = strides_of(layer), layer.output_sizes(x.shape)

    def descend(layer):
        if library is nnx_modules:
            slope = nnx.grad(mean_square)(layer, x).strides[...]
            layer.strides[...] = layer.strides[...] - 40 * slope
            return layer
        slope = eqx.filter_grad(mean_square)(layer, x).strides
        return eqx.tree_at(lambda layer: layer.strides, layer, layer.strides - 40 * slope)

    def steps(layer):
        if library is nnx_modules:
            return nnx.fori_loop(0, 5, lambda _, layer: descend(layer), layer)
        params, static = eqx.partition(layer, eqx.is_inexact_array)
        params, _ = jax.lax.scan(
            lambda params, _: (
                eqx.filter(descend(eqx.combine(params, static)), eqx.is_array),
                None,
            ),
            params,
            length=5,
        )
        return eqx.combine(params, static)

    found = projected(library, compiled(library, steps)(layer))
    slope = jax.grad(lambda s: jnp.mean(diff_stride(x, s, axes=AXES[library], sizes=sizes) ** 2))
    for _ in range(5):
        strides = strides - 40 * slope(strides)
    np.testing.assert_allclose(strides_of(found), strides, rtol=1e-5)
    assert found.output_sizes(x.shape) != sizes


@quick_for_equinox
def test_strides_are_learnt_through_changes_of_size(library):
    losses, strides, traces, sizes = learn(library)
    assert losses[-1] < 0.05 * losses[0]
    np.testing.assert_allclose(strides, [2.3, 1.9], rtol=0, atol=0.1)
    assert len(sizes) > 1
    assert traces == len(sizes)


def random_strides(steps):
    """Yield strides of two layers, of which one moves: sizes stay, change and come back."""
    random = np.random.default_rng(0)
    values = np.full((2, 2), 2.0)
    for _ in range(steps):
        values[random.integers(2), 1] = random.uniform(1.93, 2.1)
        yield values.tolist()


def in_a_model(library, layers):
    return nnx.List(layers) if library is nnx_modules else layers


@over_libraries
def test_a_key_tells_when_a_function_compiles_anew(library):
    traces = []

    def forward(model, x):
        traces.append(1)
        return model[1](model[0](x))

    forward = compiled(library, forward)
    x, other = (random(*laid_out(library, 1, size, size, 1)) for size in (32, 48))
    made = [library.DiffStride(2.0), make_conv(library, 2.0).pool]
    model, keys, foreseen = in_a_model(library, made), set(), []
    for step, values in enumerate(random_strides(24)):
        if step == 18:  # a copy has seen no size, and is served by what was compiled
            model = copy.deepcopy(model)
        changed = [with_strides(layer, *own) for layer, own in zip(model, values, strict=True)]
        model = replanned(library, in_a_model(library, changed))
        if (key := library.compilation_key(model)) not in keys:
            foreseen.append(step)
        keys.add(key)
        traces.clear()
        forward(model, x)
        assert bool(traces) == (step in foreseen)
    assert 3 <= len(foreseen) <= 10
    # What another call has seen belongs to the key too, as it does for what is compiled.
    forward(model, other)
    assert library.compilation_key(model) in keys


@over_libraries
def test_a_key_of_no_size_promises_nothing(library):
    layer = library.DiffStride(2.0)
    before = library.compilation_key(layer)
    assert library.compilation_key(replanned(library, layer)) == before
    assert library.compilation_key(library.DiffStride(2.0)) != before
    moved = replanned(library, with_strides(layer, 2.0, 2.001))
    assert library.compilation_key(moved) != before
    assert before != "key"
    assert "last_read=(2.0, 2.0)" in repr(before)


class OwnNnx(nnx.Module):
    """A user's layer with a parameter that is only named as strides are."""

    def __init__(self, layer):
        self.strides = nnx.Param(jnp.full(2, 2.0))
        self.layer = layer

    def __call__(self, x):
        return self.layer(x) * self.strides.sum()


class OwnEquinox(eqx.Module):
    """The same in Equinox."""

    strides: jax.Array
    layer: equinox_modules.DiffStride

    def __init__(self, layer):
        self.strides = jnp.full(2, 2.0)
        self.layer = layer

    def __call__(self, x):
        return self.layer(x) * self.strides.sum()


@over_libraries
def test_labels_give_strides_a_rate_of_their_own_and_no_decay(library):
    layer = library.DiffStride([2.0, 2.6])
    x = random(*laid_out(library, 2, 32, 32, 1))
    transforms = {"weights": optax.add_decayed_weights(1.0), "strides": optax.sgd(1.0)}
    if library is nnx_modules:
        model = OwnNnx(layer)
        labels = library.stride_labels(nnx.state(model, nnx.Param))
        assert jax.tree.leaves(labels) == ["strides", "weights"]
        optimizer = nnx.Optimizer(model, optax.multi_transform(transforms, labels), wrt=nnx.Param)

        @nnx.jit
        def step(model, optimizer):
            gradients = nnx.grad(mean_square)(model, x)
            optimizer.update(model, gradients)
            return gradients

        own, strides = model.strides[...], layer.strides[...]
        gradients = step(model, optimizer)
        changes = model.strides[...] - own, model.layer.strides[...] - strides
        slopes = gradients.strides[...], gradients.layer.strides[...]
    else:
        model = OwnEquinox(layer)
        labels = library.stride_labels(eqx.filter(model, eqx.is_inexact_array))
        assert jax.tree.leaves(labels) == ["weights", "strides"]
        assert labels.layer.strides == "strides"
        optimizer = optax.multi_transform(transforms, library.stride_labels)
        state = optimizer.init(eqx.filter(model, eqx.is_inexact_array))

        @eqx.filter_jit
        def step(model, state):
            gradients = eqx.filter_grad(mean_square)(model, x)
            params = eqx.filter(model, eqx.is_inexact_array)
            updates, _ = optimizer.update(gradients, state, params)
            return gradients, updates

        gradients, updates = step(model, state)
        own, changes = model.strides, (updates.strides, updates.layer.strides)
        slopes = gradients.strides, gradients.layer.strides
    np.testing.assert_allclose(changes[0], slopes[0] + own, rtol=1e-6)
    np.testing.assert_allclose(changes[1], -slopes[1], rtol=1e-3, atol=1e-6)
    assert np.all(slopes[1] != 0)


def test_labels_of_a_model_without_strides_are_all_weights():
    model = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    labels = nnx_modules.stride_labels(nnx.state(model, nnx.Param))
    assert jax.tree.leaves(labels) == ["weights"] * 2
    labels = equinox_modules.stride_labels([eqx.nn.Linear(2, 3, key=jax.random.key(0))])
    assert jax.tree.leaves(labels) == ["weights"] * 2


def test_labels_are_refused_where_nothing_says_what_is_a_stride():
    layer = nnx_modules.DiffStride(2.0)
    with pytest.raises(TypeError, match=r"params must be the state of a model.*got the module Dif"):
        nnx_modules.stride_labels(layer)
    pure = nnx.as_pure(nnx.state(layer, nnx.Param))
    with pytest.raises(TypeError, match=r"params must hold variables.*plain ArrayImpl.*the tree"):
        nnx_modules.stride_labels(pure)
    # What happens to those who give Optax the function.
    both = {"weights": optax.sgd(1.0), "strides": optax.sgd(1.0)}
    optimizer = nnx.Optimizer(
        layer, optax.multi_transform(both, nnx_modules.stride_labels), wrt=nnx.Param
    )
    with pytest.raises(TypeError, match="give Optax the tree"):
        optimizer.update(layer, nnx.grad(mean_square)(layer, random(2, 16, 16, 1)))
    arrays = jax.tree.leaves(eqx.filter(equinox_modules.DiffStride(2.0), eqx.is_inexact_array))
    with pytest.raises(TypeError, match=r"params must be an equinox\.Module or a tree.*: list"):
        equinox_modules.stride_labels(arrays)


def test_optimisers_can_tell_strides_apart():
    layer = nnx_modules.DiffStride(2.0)
    model = nnx.List([nnx.Linear(2, 3, rngs=nnx.Rngs(0)), layer])
    strides = nnx.state(model, nnx_modules.StrideParam)
    assert [value.shape for value in jax.tree.leaves(strides)] == [(2,)]


@over_libraries
def test_vmap_over_layers_and_over_the_batch(library):
    x, layer = random(*laid_out(library, 5, 32, 32, 3)), library.DiffStride([2.0, 2.6])
    expected = layer(x)
    if library is nnx_modules:
        found = nnx.vmap(lambda layer, x: layer(x), in_axes=(None, 0))(layer, x)
    else:
        found = eqx.filter_vmap(lambda layer, x: layer(x), in_axes=(None, 0))(layer, x)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@over_libraries
def test_by_default_the_channels_of_the_library_stay(library):
    x = random(*laid_out(library, 24, 20, 3))
    for layer in (library.DiffStride(2.0), library.SpectralPool(2.0)):
        sizes = layer.output_sizes(x.shape)
        assert layer(x).shape == laid_out(library, *sizes, 3)
        assert (sizes[0] < 24, sizes[1] < 20) == (True, True)
    conv, x = make_conv(library, 2.0), random(*laid_out(library, 24, 20, 4))
    assert conv(x).shape == laid_out(library, *conv.pool.output_sizes(x.shape), 6)
    for layer in (library.DiffStride, library.SpectralPool, library.DiffStrideConv):
        place = "last" if library is nnx_modules else "first"
        assert f"channels {place}" in layer.__doc__.splitlines()[0]


def test_layer_in_the_libraries_own_sequences():
    x = random(2, 3, 32, 32)
    convolution = eqx.nn.Conv2d(3, 4, 3, key=jax.random.key(0))
    layer = equinox_modules.DiffStride(2.0)
    sequence = eqx.nn.Sequential([convolution, layer])
    assert jax.vmap(sequence)(x).shape == (2, 4, 15, 15)
    x = jnp.moveaxis(x, 1, -1)
    layer = nnx_modules.DiffStride(2.0)
    sequence = nnx.Sequential(nnx.Conv(3, 4, (3, 3), rngs=nnx.Rngs(0)), layer)
    assert sequence(x).shape == (2, 16, 16, 4)


@over_libraries
def test_copies_and_restored_strides(library):
    x, layer = random(*laid_out(library, 2, 32, 32, 3)), library.DiffStride([3.0, 2.6])
    other = copy.deepcopy(layer)
    apply = compiled(library, lambda layer, x: layer(x))
    np.testing.assert_array_equal(apply(other, x), apply(layer, x))
    fresh = library.DiffStride(1.5)
    if library is nnx_modules:
        nnx.update(fresh, nnx.state(layer))
    else:
        stored = io.BytesIO()
        eqx.tree_serialise_leaves(stored, layer)
        stored.seek(0)
        fresh = eqx.tree_deserialise_leaves(stored, fresh)
    np.testing.assert_array_equal(fresh(x), layer(x))
    np.testing.assert_array_equal(apply(replanned(library, fresh), x), apply(layer, x))


@over_libraries
def test_spectral_pool(library):
    x = random(*laid_out(library, 2, 32, 20, 3))
    layer = library.SpectralPool([2.0, 3.0], norm="ortho")
    expected = spectral_pool(x, [2.0, 3.0], axes=AXES[library], norm="ortho")
    assert jnp.array_equal(layer(x), expected)
    assert layer.output_sizes(x.shape) == tuple(expected.shape[axis] for axis in AXES[library])
    assert layer.output_sizes(x.shape) == (16, 6)
    apply = compiled(library, lambda layer, x: layer(x))
    np.testing.assert_allclose(apply(layer, x), expected, rtol=0, atol=1e-5)


def test_nnx_names_models_and_strides_of_the_wrong_kind():
    with pytest.raises(TypeError, match="model must be a Flax NNX module, got DiffStride"):
        nnx_modules.project_strides(equinox_modules.DiffStride(2.0))
    layer = nnx_modules.DiffStride(2.0)
    layer.strides = jnp.asarray([3.0, 3.0])
    for call in (nnx_modules.replan, nnx_modules.project_strides, nnx_modules.compilation_key):
        with pytest.raises(TypeError, match=r"must be a parameter, got .*layer.strides\[...\] ="):
            call(layer)
