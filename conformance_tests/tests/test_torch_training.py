"""Training whole PyTorch models: state, precision, transforms, several processes, resuming.

Run as a script it is one process of the test of distributed training.
"""

import copy
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    complexity_penalty,
    param_groups,
    project_strides,
)
from diffstride_torch.models import preact_resnet18, small_resnet
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

CLASSES = 3

# Forward-mode differentiation loads PyTorch's own scripted decompositions.
forward_mode = pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")


def random(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def small(strides=(1.7, (2.4, 1.6)), **options):
    options = {"channels": (4, 6, 8), "num_classes": CLASSES, **options}
    return small_resnet(strides=strides, **options)


def fused(**options):
    model = small(placement="after", **options)
    for place in model.places:
        place.method = "fused"
    return model


def deep(strides=(1.5, None, 1.7, (1.6, 1.3), 1.5)):
    return preact_resnet18(strides=strides, channels=(4, 4, 8, 8, 8), num_classes=CLASSES)


def network(make, dtype=torch.float32, seed=0, **options):
    torch.manual_seed(seed)
    return make(**options).to(dtype)


def batch(make, size=4, dtype=torch.float32, seed=1):
    """Return images and labels for a network."""
    images = random(size, 3 if make is deep else 1, 32, 28, dtype=dtype, seed=seed)
    return images, torch.arange(size) % CLASSES


def with_group_norm(model):
    """Return the model with a normalisation that treats every image by itself."""
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, torch.nn.BatchNorm2d):
                norm = torch.nn.GroupNorm(2, child.num_features, dtype=child.weight.dtype)
                setattr(parent, name, norm)
    assert not list(model.buffers())
    return model


def layers_of(model):
    return [module for module in model.modules() if isinstance(module, DiffStride2d)]


def strides_of(model):
    return [layer.strides.detach().clone() for layer in layers_of(model)]


def stride_gradients_of(model):
    """Return the gradients of all strides as one vector."""
    assert {layer.strides.grad.dtype for layer in layers_of(model)} == {torch.float32}
    return torch.cat([layer.strides.grad for layer in layers_of(model)])


def relative_error(actual, expected):
    return ((actual.float() - expected).norm() / expected.norm()).item()


def gradients_of(model):
    return {name: parameter.grad.clone() for name, parameter in model.named_parameters()}


def sizes_of(model, images):
    """Return the spatial sizes of every layer's outputs in one forward pass."""
    sizes = []
    hooks = [
        layer.register_forward_hook(lambda _, inputs, y: sizes.append(tuple(y.shape[2:])))
        for layer in layers_of(model)
    ]
    with torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return sizes


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


each_network = pytest.mark.parametrize("make", [small, fused, deep])


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


# --- Precision and layout -----------------------------------------------------------------------

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


# --- torch.func ---------------------------------------------------------------------------------


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


# --- Averages -----------------------------------------------------------------------------------


@each_network
def test_averaged_strides_decide_the_sizes_of_the_average(make):
    model = network(make)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.8), use_buffers=True)
    average.eval()
    images, _ = batch(make)
    expected, differed = None, False
    for step in range(4):
        with torch.no_grad():
            for layer in layers_of(model):
                layer.strides += 0.15
        average.update_parameters(model)
        # The first update copies.
        own = strides_of(model)
        expected = (
            own if step == 0 else [0.8 * e + 0.2 * s for e, s in zip(expected, own, strict=True)]
        )
        for found, wanted in zip(strides_of(average), expected, strict=True):
            assert_close(found, wanted, 1e-6)
        by_hand = copy.deepcopy(model).eval()
        for layer, strides in zip(layers_of(by_hand), strides_of(average), strict=True):
            layer.strides.data.copy_(strides)
        sizes = sizes_of(average, images)
        assert sizes == sizes_of(by_hand, images)
        differed |= sizes != sizes_of(model, images)
    assert differed
    # In the place of the model's own values they give what the average gives.
    model.load_state_dict(average.module.state_dict())
    assert torch.equal(model.eval()(images), average(images))


# --- Resuming -----------------------------------------------------------------------------------


class Run:
    """A training run that draws its batches and noise from random state.

    The loss drives the first block's strides up and down again, so that the map of the second
    block, whose strides are driven up to their bound, becomes smaller and then larger.
    """

    STEPS = 24

    def __init__(self):
        self.model = small(strides=(1.5, 2.0), channels=(3, 4, 5))
        groups = param_groups(self.model, lr=0.01, stride_lr=0.2, weight_decay=0.01)
        self.optimizer = torch.optim.AdamW(groups, betas=(0.5, 0.9))
        self.scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(self.optimizer, 2 * self.STEPS)
        self.generator = torch.Generator().manual_seed(3)
        self.images, self.labels = batch(small, 12)
        self.images = self.images[..., :28, :]

    def state_dict(self):
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": torch.get_rng_state(),
            "batches": self.generator.get_state(),
        }

    def load_state_dict(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.scheduler.load_state_dict(state["scheduler"])
        torch.set_rng_state(state["random"])
        self.generator.set_state(state["batches"])

    def step(self, number):
        """Train one step; return the loss and the size of the second block's input."""
        chosen = torch.randperm(len(self.images), generator=self.generator)[:4]
        images = self.images[chosen]
        images = images + 0.1 * torch.randn(images.shape)
        first, second = layers_of(self.model)
        outward = 1 if number < self.STEPS // 2 else -1
        loss = cross_entropy(self.model(images), self.labels[chosen])
        loss = loss + 0.1 * complexity_penalty(self.model)
        loss = loss - outward * first.strides.sum() - 2 * second.strides.sum()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        project_strides(self.model)
        self.scheduler.step()
        return loss.item(), first.output_sizes(self.images.shape)


def test_a_resumed_run_is_the_same_to_the_last_bit(tmp_path):
    torch.manual_seed(7)
    whole = Run()
    records, states = [], []
    for number in range(Run.STEPS):
        torch.save(whole.state_dict(), tmp_path / f"{number}.pt")
        records.append((*whole.step(number), *map(torch.Tensor.tolist, strides_of(whole.model))))
        states.append(copy.deepcopy(whole.state_dict()))
    sizes = [size for _, size, *_ in records]
    smallest = sizes.index(min(sizes))
    # Through several sizes there and back: what the smallest was must not bind later.
    assert len(set(sizes[: smallest + 1])) > 2
    assert len(set(sizes[smallest:])) > 2

    for start in (1, smallest, smallest + 3, Run.STEPS - 2):
        torch.manual_seed(1000 + start)
        resumed = Run()
        resumed.load_state_dict(torch.load(tmp_path / f"{start}.pt", weights_only=True))
        for number in range(start, Run.STEPS):
            record = (*resumed.step(number), *map(torch.Tensor.tolist, strides_of(resumed.model)))
            assert record == records[number]
            for name, value in resumed.state_dict()["model"].items():
                assert torch.equal(value, states[number]["model"][name])
            assert torch.equal(resumed.state_dict()["random"], states[number]["random"])


# --- Several processes --------------------------------------------------------------------------

RANKS, DISTRIBUTED_STEPS, RANK_BATCH = 2, 6, 3


def distributed_run(wrap, images, labels, first_strides=None):
    """Train a model; return its strides and sizes after every step, and its last state."""
    model = with_group_norm(network(small, torch.float64))
    if first_strides is not None:
        for layer in layers_of(model):
            layer.strides.data.fill_(first_strides)
    trained = wrap(model)
    optimizer = torch.optim.SGD(param_groups(trained, lr=0.05, stride_lr=3.0), momentum=0.5)
    strides, sizes = [], []
    for part, classes in zip(images, labels, strict=True):
        optimizer.zero_grad()
        loss = cross_entropy(trained(part), classes) + 0.1 * complexity_penalty(trained)
        loss.backward()
        optimizer.step()
        project_strides(trained)
        strides.append(strides_of(model))
        sizes.append(sizes_of(model, part[:1]))
    return {"strides": strides, "sizes": sizes, "state": model.state_dict()}


def joint_batches():
    return zip(
        *(
            batch(small, RANKS * RANK_BATCH, torch.float64, seed=20 + step)
            for step in range(DISTRIBUTED_STEPS)
        ),
        strict=True,
    )


def run_rank(rank, folder):
    """Be one process of a distributed training, on every second image, and save what came out."""
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(str(folder / "store"), RANKS)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    images, labels = joint_batches()
    result = distributed_run(
        torch.nn.parallel.DistributedDataParallel,
        [part[rank::RANKS] for part in images],
        [classes[rank::RANKS] for classes in labels],
        # The wrapper hands out the first process's values.
        first_strides=None if rank == 0 else 1.1,
    )
    torch.save(result, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_distributed_data_parallel_equals_one_process_on_the_joint_batch(tmp_path):
    processes = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(RANKS)
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert [process.returncode for process in processes] == [0] * RANKS, errors
    ranks = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(RANKS)]
    alone = distributed_run(lambda model: model, *joint_batches())

    assert ranks[0]["sizes"] == ranks[1]["sizes"] == alone["sizes"]
    assert len(set(map(tuple, alone["sizes"]))) > 2
    for step in range(DISTRIBUTED_STEPS):
        one, other, single = (result["strides"][step] for result in (*ranks, alone))
        for a, b, c in zip(one, other, single, strict=True):
            assert torch.equal(a, b)
            assert_close(a, c, 1e-10)
    for name, value in alone["state"].items():
        assert torch.equal(ranks[0]["state"][name], ranks[1]["state"][name])
        assert_close(ranks[0]["state"][name], value, 1e-10)


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
