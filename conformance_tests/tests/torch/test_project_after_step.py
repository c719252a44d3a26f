"""project_after_step: strides projected by the optimiser, in whatever loop steps it."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from diffstride_torch import DiffStride1d, param_groups, project_after_step, project_strides
from support.torch_modules import Reads, layer, set_strides
from support.torch_training import batch, layers_of, network, small, strides_of
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.functional import cross_entropy
from torch.optim.swa_utils import AveragedModel
from torch.utils.hooks import RemovableHandle

LIMITS = (1.5, 2.0)
"""Limits that a step or two of a large rate leaves."""


def model_and_optimizer(make=torch.optim.SGD, **options):
    model = network(small, limits=LIMITS)
    return model, make(param_groups(model, lr=0.01, stride_lr=2.0), **options)


def train_step(model, optimizer, data, *, closure=False):
    images, labels = data

    def loss():
        optimizer.zero_grad()
        value = cross_entropy(model(images), labels)
        value.backward()
        return value

    if closure:
        optimizer.step(loss)
    else:
        loss()
        optimizer.step()


def within(strides):
    return all(((LIMITS[0] <= own) & (own <= LIMITS[1])).all() for own in strides)


def push(optimizer, model):
    """Let the next step of a gradient descent take every stride far out of its limits."""
    for own in layers_of(model):
        own.strides.grad = torch.full_like(own.strides, 9.0)
    optimizer.step()


def lbfgs(groups, **options):
    return torch.optim.LBFGS(
        [p for group in groups for p in group["params"]], lr=0.5, max_iter=3, **options
    )


OPTIMIZERS = {
    "sgd-foreach": (torch.optim.SGD, {"foreach": True, "momentum": 0.9}),
    "adamw-fused": (torch.optim.AdamW, {"fused": True}),
    "adam-loops": (torch.optim.Adam, {"foreach": False}),
    "lbfgs": (lbfgs, {}),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_is_what_a_projection_after_every_step_is(kind, rule):
    make, options = OPTIMIZERS[kind]
    data = batch(small)
    results = []
    for hooked in (True, False):
        model, optimizer = model_and_optimizer(make, **options)
        if hooked:
            project_after_step(optimizer, model)
        for _ in range(3):
            train_step(model, optimizer, data, closure=kind == "lbfgs")
            if not hooked:
                project_strides(model)
        assert within(strides_of(model))
        results.append(model.state_dict())
    with_hook, by_hand = results
    assert all(torch.equal(value, by_hand[name]) for name, value in with_hook.items())


def test_without_it_strides_leave_their_limits():
    model, optimizer = model_and_optimizer()
    push(optimizer, model)
    assert not within(strides_of(model))


def test_no_stride_is_read_after_the_step(accelerator):
    model, (images, labels) = network(small, limits=LIMITS), batch(small)
    optimizer = torch.optim.AdamW(param_groups(model, lr=0.01, stride_lr=2.0), fused=True)
    project_after_step(optimizer, model)
    project_after_step(optimizer, model)  # Nor where two hooks have counted the step.
    for _ in range(2):
        loss = cross_entropy(model(images), labels)
        loss.backward()
        with Reads() as reads:
            optimizer.step()
            assert reads.count("cpu") == 2
            reads.clear()
            model(images)
            assert reads == []


def test_a_step_of_another_optimizer_is_seen(accelerator):
    module, other = layer(2.0), torch.nn.Parameter(torch.ones(2))
    hooked = torch.optim.SGD([other, module.strides], lr=0.0)
    project_after_step(hooked, module)
    unhooked = torch.optim.Adam([module.strides], lr=1.0, fused=True)
    x = torch.zeros(1, 24, 24)
    module.strides.grad = torch.full((2,), -1.0)
    hooked.step()
    assert module(x).shape[-1] == 12
    unhooked.step()
    assert module(x).shape[-1] == 8


@pytest.mark.parametrize("after", [True, False])
def test_schedulers_that_wrap_the_step(after):
    model, optimizer = model_and_optimizer()
    if after:
        project_after_step(optimizer, model)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 4)
    if not after:
        project_after_step(optimizer, model)
    for _ in range(3):
        push(optimizer, model)
        scheduler.step()
        assert within(strides_of(model))


def test_a_scaler_that_skips_a_step():
    model, optimizer = model_and_optimizer()
    project_after_step(optimizer, model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    before = strides_of(model)
    for gradient, moved in ((float("inf"), False), (9.0, True)):
        for own in layers_of(model):
            own.strides.grad = torch.full_like(own.strides, gradient)
        scaler.scale(torch.ones(()))
        scaler.step(optimizer)
        scaler.update()
        unmoved = map(torch.equal, strides_of(model), before)
        assert all(unmoved) is not moved
    assert within(strides_of(model))


def test_averages_are_taken_of_projected_strides():
    model, optimizer = model_and_optimizer()
    project_after_step(optimizer, model)
    average, data = AveragedModel(model), batch(small)
    for _ in range(3):
        train_step(model, optimizer, data)
        average.update_parameters(model)
        assert within(strides_of(average))


def test_several_optimizers_of_one_model():
    model = torch.nn.Sequential(layer(limits=LIMITS), layer(limits=LIMITS))
    optimizers = [torch.optim.SGD([module.strides], lr=1.0) for module in model]
    for optimizer in optimizers:
        project_after_step(optimizer, model)
    for module, optimizer in zip(model, optimizers, strict=True):
        push(optimizer, module)
        assert within(strides_of(model))


def wrap_and_train(wrap, optimizer, model):
    wrapped, data = wrap(model), batch(small)
    project_after_step(optimizer, wrapped)
    del wrapped
    gc.collect()
    train_step(model, optimizer, data)
    push(optimizer, model)
    assert within(strides_of(model))


def test_a_compiled_model():
    model, optimizer = model_and_optimizer()
    wrap_and_train(lambda inner: torch.compile(inner, backend="eager"), optimizer, model)


@pytest.fixture
def one_process():
    torch.distributed.init_process_group(
        "gloo", store=torch.distributed.HashStore(), rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def test_a_model_of_several_processes(one_process):
    model, optimizer = model_and_optimizer()
    wrap_and_train(torch.nn.parallel.DistributedDataParallel, optimizer, model)


def test_a_distributed_model(one_process):
    model = network(small, limits=LIMITS)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.SGD(param_groups(model, lr=0.01, stride_lr=1e3))
    project_after_step(optimizer, model)
    train_step(model, optimizer, batch(small))
    assert within(own.full_tensor() for own in strides_of(model))


def test_a_compiled_step(rule):
    model, optimizer = model_and_optimizer(torch.optim.AdamW)
    project_after_step(optimizer, model)
    data, step = batch(small), torch.compile(optimizer.step, backend="eager")
    for _ in range(3):
        images, labels = data
        optimizer.zero_grad()
        cross_entropy(model(images), labels).backward()
        step()
        assert within(strides_of(model))


def test_copies_pickles_and_states_of_an_optimizer(tmp_path):
    model, optimizer = model_and_optimizer(torch.optim.SGD, momentum=0.5)
    project_after_step(optimizer, model)
    push(optimizer, model)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    optimizer.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    push(optimizer, model)
    assert within(strides_of(model))  # The hook stays.
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        strides = copied.param_groups[1]["params"]
        for own in strides:
            own.grad = torch.full_like(own, 9.0)
        copied.step()
        assert not within(strides)  # A copy has none, as the docstring says.
    assert within(strides_of(model))


def test_the_handle_ends_it():
    model, optimizer = model_and_optimizer()
    handle = project_after_step(optimizer, model)
    assert isinstance(handle, RemovableHandle)
    push(optimizer, model)
    assert within(strides_of(model))
    handle.remove()
    push(optimizer, model)
    assert not within(strides_of(model))


def test_the_model_lives_no_longer_than_the_optimizer():
    model, optimizer = model_and_optimizer()
    handle = project_after_step(optimizer, model)
    push(optimizer, model)
    train_step(model, optimizer, batch(small), closure=True)
    alive = weakref.ref(model)
    del model, optimizer
    gc.collect()
    assert alive() is None
    handle.remove()


def test_a_model_without_layers_trains_as_it_did():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    project_after_step(optimizer, model)
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()


def test_strides_that_are_held_need_no_optimizer():
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), layer(trainable=False))
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1))
    set_strides(model[1], 0.3, 2.0)
    project_after_step(optimizer, model)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    assert model[1].strides.tolist() == [1.0, 2.0]


def test_strides_that_are_not_finite_are_the_steps_error():
    model, optimizer = model_and_optimizer()
    project_after_step(optimizer, model)
    set_strides(layers_of(model)[1], float("nan"), 1.0)
    with pytest.raises(ValueError, match=r"strides of layer 'blocks\.1\.pool' must be finite"):
        optimizer.step()


class Accelerated(torch.optim.Optimizer):
    """A wrapper as Accelerate's: an optimiser by its class alone."""

    def __init__(self, optimizer):
        self.optimizer = optimizer

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    def step(self, closure=None):
        self.optimizer.step(closure)


def test_a_wrapped_optimizer():
    model, optimizer = model_and_optimizer()
    wrapper = Accelerated(Accelerated(optimizer))
    project_after_step(wrapper, model)
    push(wrapper, model)
    assert within(strides_of(model))


class Unhooked(torch.optim.Optimizer):
    """A wrapper as timm's Lookahead, that takes hooks and never calls them."""

    def __init__(self, optimizer):
        self._base, self.param_groups = optimizer, optimizer.param_groups
        self._optimizer_step_post_hooks = {}

    def step(self, closure=None):
        self._base.step(closure)


def test_what_is_refused():
    model, optimizer = model_and_optimizer()
    with pytest.raises(TypeError, match=r"optimizer must be a torch\.optim\.Optimizer, got list"):
        project_after_step(list(model.parameters()), model)
    with pytest.raises(TypeError, match=r"optimizer must be a .*, got PreActResNet"):
        project_after_step(model, optimizer)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got generator"):
        project_after_step(optimizer, model.parameters())
    with pytest.raises(TypeError, match=r"hooks after its steps, got a Unhooked, which never does"):
        project_after_step(Unhooked(optimizer), model)
    with pytest.raises(
        ValueError,
        match=r"optimizer must hold strides of the model, got one of class SGD that holds none of "
        r"blocks\.0\.pool\.strides, blocks\.1\.pool\.strides; .*param_groups",
    ):
        project_after_step(optimizer, network(small))
    with pytest.raises(ValueError, match=r"holds none of strides;"):
        project_after_step(optimizer, DiffStride1d(2.0))
    assert not optimizer._optimizer_step_post_hooks
