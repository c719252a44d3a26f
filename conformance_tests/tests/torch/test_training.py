"""Training whole PyTorch models: state, precision, parts, transforms."""

import copy
import pickle

import pytest
import torch
from diffstride_torch import (
    param_groups,
    project_strides,
)
from support.torch_training import (
    assert_close,
    batch,
    each_network,
    layers_of,
    network,
    random,
    sizes_of,
    small,
    strides_of,
    with_group_norm,
)
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

# Forward-mode differentiation loads PyTorch's own scripted decompositions.
forward_mode = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")


def stride_gradients_of(model):
    """Return the gradients of all strides as one vector."""
    assert {layer.strides.grad.dtype for layer in layers_of(model)} == {torch.float32}
    return torch.cat([layer.strides.grad for layer in layers_of(model)])


def relative_error(actual, expected):
    return ((actual.float() - expected).norm() / expected.norm()).item()


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def train(model, make, steps, stride_lr=0.3):
    """Train until strides have moved and running statistics are no longer the initial ones."""
    dtype = next(model.parameters()).dtype
    optimizer = torch.optim.SGD(param_groups(model, lr=0.02, stride_lr=stride_lr))
    for step in range(steps):
        images, labels = batch(make, dtype=dtype, seed=10 + step)
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        optimizer.step()
        project_strides(model)
    return model


# --- State and copies ---------------------------------------------------------------------------


@each_network
def test_state_goes_through_a_file(make, tmp_path):
    source = train(network(make), make, 3).eval()
    images, _ = batch(make, seed=9)
    target = network(make, seed=5)
    for layer in layers_of(target):
        layer.strides.data.fill_(1.2)
    target.eval()
    assert sizes_of(target, images) != sizes_of(source, images)

    torch.save(source.state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    target.load_state_dict(state, strict=True)
    assert sizes_of(target, images) == sizes_of(source, images)
    assert torch.equal(target(images), source(images))
    for loaded, kept in zip(strides_of(target), strides_of(source), strict=True):
        assert torch.equal(loaded, kept)

    name = next(name for name in state if name.endswith("strides"))
    value = state.pop(name)
    with pytest.raises(RuntimeError, match=rf'Missing key.*"{name}"'):
        target.load_state_dict(state, strict=True)
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"strides"'):
        target.load_state_dict({**state, name: value, "strides": value}, strict=True)


@each_network
@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))],
    ids=["deepcopy", "pickle"],
)
def test_copies_train_alike_and_apart(make, copied):
    model = train(network(make), make, 2)
    twin, before = copied(model), copy.deepcopy(model.state_dict())
    images, _ = batch(make, seed=9)
    assert torch.equal(copied(model).eval()(images), copy.deepcopy(model).eval()(images))
    train(twin, make, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    train(model, make, 2)
    for name, value in model.state_dict().items():
        assert torch.equal(value, twin.state_dict()[name])
    assert any(not torch.equal(a, before[name]) for name, a in model.state_dict().items())


NEAR = {torch.float16: 0.005, torch.bfloat16: 0.02}
"""Relative error of logits."""

# Maps that were rounded switch some units on or off, and a stride's gradient is a sum that cancels.
NEAR_GRADIENTS = {torch.float16: 0.25, torch.bfloat16: 0.6}


@each_network
def test_conversion_to_double_precision(make):
    model = train(network(make), make, 2).eval()
    images, _ = batch(make)
    single, sizes = model(images), sizes_of(model, images)
    strides = strides_of(model)
    model.to(torch.float64)
    double = model(images.double())
    assert double.dtype == torch.float64
    assert sizes_of(model, images.double()) == sizes
    assert_close(single.double(), double, 1e-5)
    for converted, before in zip(strides_of(model), strides, strict=True):
        assert torch.equal(converted, before.double())


@each_network
@pytest.mark.parametrize(
    ("convert", "dtype"),
    [(torch.nn.Module.half, torch.float16), (torch.nn.Module.bfloat16, torch.bfloat16)],
)
def test_conversion_to_half_precision(make, convert, dtype):
    model = train(network(make), make, 2).eval()
    images, labels = batch(make)
    model.zero_grad()
    expected, sizes, strides = model(images), sizes_of(model, images), strides_of(model)
    cross_entropy(expected, labels).backward()
    gradients = stride_gradients_of(model)
    model.zero_grad()

    convert(model)
    assert {p.dtype for p in model.parameters()} == {dtype, torch.float32}
    logits = model(images.to(dtype))
    assert logits.dtype == dtype
    assert sizes_of(model, images.to(dtype)) == sizes
    assert logits.isfinite().all()
    assert relative_error(logits, expected) < NEAR[dtype]
    cross_entropy(logits.float(), labels).backward()
    assert relative_error(stride_gradients_of(model), gradients) < NEAR_GRADIENTS[dtype]
    for after, before in zip(strides_of(model), strides, strict=True):
        assert torch.equal(after, before)


@each_network
@pytest.mark.parametrize("training", [True, False])
def test_channels_last_goes_through_the_network(make, training):
    model = network(make, torch.float64).train(training)
    images, labels = batch(make, dtype=torch.float64)
    expected = model(images)
    cross_entropy(expected, labels).backward()
    gradients = gradients_of(model)
    model.zero_grad()

    model.to(memory_format=torch.channels_last)
    maps = []
    watched = [*model.blocks, *layers_of(model)]
    for module in watched:
        module.register_forward_hook(lambda _, inputs, y: maps.append(y))
    logits = model(images.to(memory_format=torch.channels_last))
    cross_entropy(logits, labels).backward()
    assert len(maps) >= len(watched)  # A layer serves two branches.
    for each in maps:
        assert each.is_contiguous(memory_format=torch.channels_last)
        assert not each.is_contiguous()
    assert_close(logits, expected)
    for name, gradient in gradients_of(model).items():
        assert_close(gradient, gradients[name], 1e-11)


@each_network
@pytest.mark.parametrize("dtype", NEAR)
def test_autocast(make, dtype):
    images, labels = batch(make)
    model, reference = network(make), network(make)
    expected = reference(images)
    cross_entropy(expected, labels).backward()

    of_maps, of_convolved = set(), set()

    def note(_, inputs, y):
        x, *conv = inputs
        (of_convolved if conv else of_maps).add((x.dtype, y.dtype))

    for layer in layers_of(model):
        layer.register_forward_hook(note)
    # float16 needs its loss scaled; bfloat16 has the range of float32.
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    optimizer = torch.optim.SGD(param_groups(model, lr=0.02, stride_lr=0.3))
    with torch.autocast("cpu", dtype):
        logits = model(images)
        loss = cross_entropy(logits, labels)
    assert logits.dtype == dtype
    # What a convolution makes of a map is of autocast's dtype, wherever it is resized.
    assert {of_output for _, of_output in of_convolved} <= {dtype}
    # All layers of the small network are in front of the convolutions.
    assert bool(of_convolved) == (make is not small)
    assert of_maps
    assert all(of_input == of_output for of_input, of_output in of_maps)
    assert relative_error(logits, expected) < NEAR[dtype]
    scaler.scale(loss).backward()
    scaled = stride_gradients_of(model)
    scaler.unscale_(optimizer)
    gradients = stride_gradients_of(model)
    assert_close(gradients * scaler.get_scale(), scaled, 1e-6)
    assert relative_error(gradients, stride_gradients_of(reference)) < NEAR_GRADIENTS[dtype]
    strides = strides_of(model)
    scaler.step(optimizer)
    scaler.update()
    project_strides(model)
    for after, before in zip(strides_of(model), strides, strict=True):
        assert after.dtype == torch.float32
        assert not torch.equal(after, before)


def test_a_scaled_step_that_overflows_is_skipped_and_projected():
    model = network(small)
    optimizer = torch.optim.SGD(param_groups(model, lr=0.02))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**127)
    images, labels = batch(small)
    before = copy.deepcopy(list(model.parameters()))
    with torch.autocast("cpu", torch.float16):
        loss = cross_entropy(model(images), labels)
    scaler.scale(loss * 1e4).backward()
    assert not all(parameter.grad.isfinite().all() for parameter in model.parameters())
    scaler.step(optimizer)
    scaler.update()
    project_strides(model)
    assert scaler.get_scale() == 2.0**126
    for parameter, value in zip(model.parameters(), before, strict=True):
        assert torch.equal(parameter, value)


# --- Gradients in parts -------------------------------------------------------------------------


@each_network
@pytest.mark.parametrize("norm", ["group", "fixed-statistics"])
def test_accumulated_gradients_are_those_of_the_large_batch(make, norm):
    images, labels = batch(make, 6, torch.float64)
    model = network(make, torch.float64)
    # Batch statistics would differ between the batch and its parts.
    model = with_group_norm(model) if norm == "group" else model.eval()
    cross_entropy(model(images), labels).backward()
    expected = gradients_of(model)
    model.zero_grad()
    for part, classes in zip(images.split(2), labels.split(2), strict=True):
        (cross_entropy(model(part), classes) / 3).backward()
    for name, gradient in gradients_of(model).items():
        assert_close(gradient, expected[name])
    assert min(expected[name].norm() for name in expected if name.endswith("strides")) > 1e-4


class Checkpointed(torch.nn.Module):
    """A module that is computed again in the backward pass."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return checkpoint(self.module, x, use_reentrant=False)


@each_network
def test_checkpointed_gradients_are_the_same_bits(make):
    images, labels = batch(make)
    model = network(make)
    twin = copy.deepcopy(model)
    loss = cross_entropy(model(images), labels)
    loss.backward()

    passes = []
    for i, block in enumerate(twin.blocks):
        block.register_forward_pre_hook(lambda *_: passes.append(1))  # The second pass stops early.
        twin.blocks[i] = Checkpointed(block)
    again = cross_entropy(twin(images), labels)
    assert len(passes) == len(twin.blocks)
    again.backward()
    assert len(passes) == 2 * len(twin.blocks)
    assert torch.equal(again, loss)
    found = gradients_of(twin)
    for name, gradient in gradients_of(model).items():
        index = name.replace("blocks.", "").split(".")[0]
        renamed = name.replace(f"blocks.{index}.", f"blocks.{index}.module.")
        assert torch.equal(found[renamed], gradient), name


def functional_loss(model):
    """Return the loss as a function of parameters, images and labels."""

    def loss(parameters, images, labels):
        logits = torch.func.functional_call(model, parameters, (images,))
        return cross_entropy(logits, labels)

    return loss, {name: p.detach().clone() for name, p in model.named_parameters()}


@each_network
def test_functional_gradients(make):
    images, labels = batch(make, dtype=torch.float64)
    model = with_group_norm(network(make, torch.float64))
    loss, parameters = functional_loss(model)
    value = cross_entropy(model(images), labels)
    value.backward()
    found, functional_value = torch.func.grad_and_value(loss)(parameters, images, labels)
    assert_close(functional_value, value.detach())
    for name, gradient in gradients_of(model).items():
        assert_close(found[name], gradient)
    # Other strides in the same model: other sizes, whatever the model's own are.
    for name in parameters:
        if name.endswith("strides"):
            parameters[name] += 0.7
    torch.nn.utils.vector_to_parameters(
        torch.nn.utils.parameters_to_vector(parameters.values()), model.parameters()
    )
    assert_close(loss(parameters, images, labels), cross_entropy(model(images), labels).detach())


@each_network
def test_per_sample_gradients(make):
    images, labels = batch(make, 3, torch.float64)
    loss, parameters = functional_loss(with_group_norm(network(make, torch.float64)))

    def of_one(parameters, image, label):
        return loss(parameters, image[None], label[None])

    found = torch.vmap(torch.func.grad(of_one), in_dims=(None, 0, 0))(parameters, images, labels)
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        for name, gradient in torch.func.grad(of_one)(parameters, image, label).items():
            assert_close(found[name][i], gradient)
    for name in parameters:
        if name.endswith("strides"):
            assert not torch.equal(found[name][0], found[name][1])


@forward_mode
@each_network
def test_forward_mode(make):
    images, labels = batch(make, 2, torch.float64)
    loss, parameters = functional_loss(with_group_norm(network(make, torch.float64)))
    tangents = {
        name: random(*p.shape, dtype=torch.float64, seed=i)
        for i, (name, p) in enumerate(parameters.items())
    }

    def of_parameters(parameters):
        return loss(parameters, images, labels)

    value, directional = torch.func.jvp(of_parameters, (parameters,), (tangents,))
    gradients = torch.func.grad(of_parameters)(parameters)
    assert_close(value, of_parameters(parameters))
    expected = sum((gradients[name] * tangents[name]).sum() for name in parameters)
    assert_close(directional, expected, 1e-11)
    # Of the strides alone, so that no other parameter hides a missing derivative.
    strides = [name for name in parameters if name.endswith("strides")]
    only = {name: tangent * (name in strides) for name, tangent in tangents.items()}
    _, directional = torch.func.jvp(of_parameters, (parameters,), (only,))
    expected = sum((gradients[name] * tangents[name]).sum() for name in strides)
    assert_close(directional, expected, 1e-11)
    assert expected.abs() > 1e-3
