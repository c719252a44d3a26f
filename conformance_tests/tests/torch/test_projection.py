"""project_strides, param_groups and complexity_penalty."""

import copy
import math
from collections import OrderedDict

import numpy as np
import pytest
import torch
from diffstride_conformance import oracle
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    complexity_penalty,
    param_groups,
    project_strides,
)
from support.torch_modules import (
    PAPER,
    Reads,
    assert_close,
    assert_right,
    layer,
    random,
    set_strides,
    two_layers,
)

"""A smoothness other than the default."""
"""Strides with floors above 1, and a ramp that leaves small maps something to crop."""


# --- project_strides ----------------------------------------------------------------------------


def test_projection_keeps_the_bounds_of_all_sizes_seen_since_the_last_one(rule):
    module = layer(dtype=torch.float64, **PAPER)
    set_strides(module, 0.3, 100.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 100.0]  # No size is known yet.
    # The tightest bounds of the height are those of the second size, of the width of the first.
    module(random(1, 24, 12, dtype=torch.float64))
    module(random(1, 16, 40, dtype=torch.float64))
    project_strides(module)
    assert module.strides.tolist() == [16 / 14, 6.0]
    set_strides(module, 50.0, 1.0)
    project_strides(module)
    assert module.strides.tolist() == [8.0, 12 / 10]  # No size has been seen since.
    module(random(1, 24, 40, dtype=torch.float64))
    set_strides(module, 50.0, 1.0)
    project_strides(module)
    assert module.strides.tolist() == [12.0, 40 / 38]


def test_an_inner_map_bounds_by_its_size_now(rule):
    model = two_layers(2.9, 1.7, dtype=torch.float64, **PAPER)
    x = random(1, 24, 24, dtype=torch.float64)
    for stride, size in ((2.9, 14), (1.7, 20), (2.9, 14)):
        set_strides(model[0], stride, stride)
        assert model[0].output_sizes(x.shape) == (size, size)
        model(x)
        set_strides(model[1], 50.0, 0.1)
        penalty = complexity_penalty(model)
        project_strides(model)
        assert model[1].strides.tolist() == [size / 2, size / (size - 2)]
        first = stride**-2
        assert_close(penalty.item(), first + first * 2 * (size - 2) / size**2)
        assert_close(complexity_penalty(model).item(), penalty.item())


@pytest.mark.parametrize("stride", [0.3, 2.0, 9.0])
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_the_upper_bound_wins(stride):
    # At N = 5, R = 4 the floor is 5, above N/2.
    module = DiffStride1d(2.0, convention="paper", dtype=torch.float64)
    module(torch.zeros(5, dtype=torch.float64))
    set_strides(module, stride)
    project_strides(module)
    assert module.strides.tolist() == [2.5]


def test_projection_keeps_the_limits():
    module = layer((1.2, 2.0), limits=(1.5, 1.8), dtype=torch.float64)
    project_strides(module)
    assert module.strides.tolist() == [1.5, 1.8]


def test_projection_of_a_shared_stride():
    module = layer(2.0, shared=True, dtype=torch.float64, **PAPER)
    module(random(1, 24, 14, dtype=torch.float64))
    for value, expected in ((0.3, 14 / 12), (100.0, 7.0), (3.0, 3.0)):
        set_strides(module, value)
        project_strides(module)
        assert module.strides.tolist() == [expected]


def test_projection_without_bounds_keeps_strides_at_one():
    module = layer(limits=None, dtype=torch.float64)
    module(random(1, 24, 14, dtype=torch.float64))
    set_strides(module, 0.3, 100.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 100.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_idempotent(dtype):
    # Floors such as 24/22 are no float32.
    module = layer(dtype=dtype, **PAPER)
    module(random(1, 24, 17, dtype=dtype))
    set_strides(module, 0.3, 0.4)
    project_strides(module)
    values, version = module.strides.detach().clone(), module.strides._version
    project_strides(module)
    assert torch.equal(module.strides, values)
    assert module.strides._version == version
    assert module.strides.requires_grad
    assert module.strides.is_leaf
    assert module.strides.grad_fn is None


def test_projection_changes_no_output(rule):
    module, x = layer(), random(1, 24, 17)
    set_strides(module, 0.3, 99.0)
    before = module(x)
    project_strides(module)
    assert module.strides.tolist() != [np.float32(0.3), 99.0]
    assert_close(module(x), before, 1e-6)


def test_projection_reads_all_strides_in_one_transfer(accelerator, plans):
    model = torch.nn.Sequential(
        layer(), layer(1.9, shared=True), torch.nn.Sequential(layer((1.4, 2.0)))
    )
    x = random(1, 60, 50)
    model(x)
    set_strides(model[0], 0.2, 1.5)
    plans.clear()
    with Reads() as reads:
        project_strides(model)
        assert reads.count("cpu") == 1
        assert not {"tolist", "item", "_local_scalar_dense", "__bool__"} & set(reads)
        reads.clear()
        made = len(plans)
        y = model(x)
        assert reads == []
    assert len(plans) >= made  # Later layers may see new sizes.
    for module in (model[0], model[1], model[2][0]):
        x = assert_right(module, x)
    assert torch.equal(x, y)
    assert dict(model.named_parameters()).keys() == {"0.strides", "1.strides", "2.0.strides"}


def test_projection_reads_once_per_dtype(accelerator):
    model = torch.nn.Sequential(layer(), layer(dtype=torch.float64), layer(), layer())
    with Reads() as reads:
        project_strides(model)
    assert reads.count("cpu") == 2


def test_projection_after_every_step(rule):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), layer())
    optimizer = torch.optim.SGD(param_groups(model, stride_lr=2.0, lr=0.1))
    x, shapes = random(2, 1, 24, 20), set()
    for step in range(6):
        optimizer.zero_grad()
        y = model(x)
        shapes.add(tuple(y.shape))
        sign = 1 if step < 3 else -1
        (sign * (y**2).mean() * 5).backward()
        optimizer.step()
        project_strides(model)
        assert (model[1].strides >= 1).all()
        assert (model[1].strides <= torch.tensor([12.0, 10.0])).all()
        assert_right(model[1])
    assert len(shapes) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_projection_of_strides_that_are_not_finite(value, rule):
    model = torch.nn.Sequential(OrderedDict(first=layer(), second=layer(2.0), third=layer()))
    model(random(1, 60, 50))
    for module in model:
        set_strides(module, 0.3, 1.4)
    set_strides(model.second, value, 1.4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"strides of layer 'second' must be finite.*{value}"):
        project_strides(model)
    for name, strides in model.state_dict().items():
        torch.testing.assert_close(strides, before[name], equal_nan=True, rtol=0, atol=0)


def test_projection_of_a_model_without_strides_does_nothing():
    project_strides(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_projection_reaches_frozen_strides_and_a_layer_by_itself():
    module = layer(trainable=False)
    set_strides(module, 0.3, 2.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 2.0]


def small_model():
    used_twice = layer()
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1),
        used_twice,
        torch.nn.Conv2d(2, 2, 3, padding=1),
        used_twice,
        layer(trainable=False),
    )


@pytest.mark.parametrize("stride_lr", [None, 0.5])
def test_parameter_groups(stride_lr):
    model = small_model()
    model[2].bias.requires_grad_(False)
    others, strides = param_groups(model, stride_lr=stride_lr, lr=0.1, weight_decay=0.01)
    assert [id(p) for p in strides["params"]] == [id(model[1].strides)]
    assert [id(p) for p in others["params"]] == [
        id(p) for p in (model[0].weight, model[0].bias, model[2].weight)
    ]
    assert strides["weight_decay"] == 0
    assert others["weight_decay"] == 0.01
    assert others["lr"] == 0.1
    assert strides["lr"] == (0.1 if stride_lr is None else stride_lr)


def test_parameter_groups_refuse_a_misspelt_rate_of_the_strides():
    with pytest.raises(TypeError, match=r"unknown option 'lr_stride'.* is stride_lr"):
        param_groups(torch.nn.Linear(2, 2), lr=0.1, lr_stride=1.0)
    with pytest.raises(TypeError, match=r"unknown option 'strides_lr'.* is stride_lr"):
        param_groups(layer(), lr=0.1, strides_lr=0.5)


def test_parameter_groups_without_learnt_strides():
    (group,) = param_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), layer(trainable=False)))
    assert len(group["params"]) == 2


def test_parameter_groups_of_a_stride_owned_by_two_layers():
    model = torch.nn.Sequential(layer(), layer())
    model[1].strides = model[0].strides
    _, strides = param_groups(model, lr=0.1)
    assert len(strides["params"]) == 1


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups: torch.optim.SGD(groups, momentum=0.9),
        torch.optim.AdamW,
        lambda groups: torch.optim.AdamW(groups, fused=True),
    ],
    ids=["sgd", "adamw", "adamw-fused"],
)
def test_weight_decay_spares_the_strides(optimizer):
    torch.manual_seed(0)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = optimizer(param_groups(model, stride_lr=0.1, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])
    for name in ("1.strides", "4.strides"):
        assert torch.equal(after[name], before[name])


def test_stride_learning_rate():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), layer())
    optimizer = torch.optim.SGD(param_groups(model, stride_lr=0.5, lr=0.1))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_close(model[0].weight.detach(), before["0.weight"] - 0.1, 1e-6)
    assert_close(model[1].strides.detach(), before["1.strides"] - 0.5, 1e-6)


def test_parameter_groups_of_a_layer_by_itself():
    module = layer()
    optimizer = torch.optim.SGD(param_groups(module, lr=0.1))
    module.strides.grad = torch.ones(2)
    optimizer.step()
    assert_close(module.strides.detach(), torch.tensor([1.6, 2.3]), 1e-6)


# --- complexity_penalty -------------------------------------------------------------------------


def test_complexity_of_bounded_strides_straight_through(rule):
    model = torch.nn.Sequential(
        layer((1.3, 2.0), dtype=torch.float64, **PAPER),
        torch.nn.ReLU(),
        torch.nn.Sequential(layer(1.7, shared=True, dtype=torch.float64)),
        layer((2.0, 3.0), limits=(None, 2.5), dtype=torch.float64),
    )
    model(random(1, 60, 50, dtype=torch.float64))
    first, second, third = model[0], model[2][0], model[3]
    set_strides(first, 0.3, 1000.0)
    # Floor 60/58 and upper bound 25; the shared one; the user's limit.
    used = [(60 / 58, 25.0), (1.7, 1.7), (2.0, 2.5)]
    value, gradients = oracle.complexity(used)
    penalty = complexity_penalty(model)
    assert penalty.shape == ()
    assert_close(penalty.item(), value)
    penalty.backward()
    assert_close(first.strides.grad, torch.from_numpy(gradients[0]))
    assert_close(second.strides.grad, torch.from_numpy(gradients[1].sum(keepdims=True)))
    assert_close(third.strides.grad, torch.from_numpy(gradients[2]))
    assert first.strides.tolist() == [0.3, 1000.0]


def test_complexity_before_any_forward_pass():
    model = torch.nn.Sequential(layer((2.0, 3.0)), layer(2.0, shared=True))
    set_strides(model[0], 0.5, 3.0)
    value, _ = oracle.complexity([(1.0, 3.0), (2.0, 2.0)])
    penalty = complexity_penalty(model)
    assert penalty.dtype == torch.float32
    assert_close(penalty.item(), value, 1e-6)


def test_complexity_reads_nothing(accelerator):
    model = torch.nn.Sequential(layer(), layer())
    model(random(1, 60, 50))
    with Reads() as reads:
        complexity_penalty(model).backward()
    assert reads == []


def test_complexity_skips_frozen_strides():
    model = torch.nn.Sequential(layer(), layer(trainable=False))
    complexity_penalty(model).backward()
    assert model[0].strides.grad is not None
    assert model[1].strides.grad is None
    assert not complexity_penalty(model[1]).requires_grad


def test_complexity_follows_the_order_of_the_layers_given():
    first, second = DiffStride2d((2.0, 3.0)), DiffStride2d((1.5, 2.5))
    backwards = torch.nn.ModuleList([second, first])
    expected = 1 / 6 + 1 / (6 * 3.75)
    assert complexity_penalty([first, second]).item() == pytest.approx(expected)
    assert complexity_penalty(backwards).item() == pytest.approx(1 / 3.75 + 1 / (6 * 3.75))
    with pytest.raises(TypeError, match="sequence of DiffStride layers, got one with Linear"):
        complexity_penalty([first, torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="got list with none"):
        complexity_penalty([])


def test_complexity_of_a_model_without_layers():
    with pytest.raises(ValueError, match="model must have a DiffStride layer, got Sequential"):
        complexity_penalty(torch.nn.Sequential(torch.nn.Linear(2, 2)))


@pytest.mark.parametrize("function", [project_strides, param_groups])
def test_what_is_no_module_is_refused(function):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got generator"):
        function(DiffStride2d(2.0).parameters())


def test_a_star_import_has_the_tools_for_networks():
    names = {}
    exec("from diffstride_torch import *", names)
    assert {"DiffStride2d", "replace_downsampling", "FlopsBudget"} <= names.keys()
    assert "modules" not in names
