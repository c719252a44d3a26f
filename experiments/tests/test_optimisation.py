import math

import pytest
import torch
from diffstride_experiments.config import Optimizer
from diffstride_experiments.optimisation import build_optimizer, build_schedule
from diffstride_torch import DiffStride2d

STEPS_PER_EPOCH, EPOCHS = 4, 3


@pytest.fixture
def network():
    return torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3), DiffStride2d(2.0))


def factors(network, options):
    """Return the learning-rate factors of all steps, which agree for weights and strides."""
    optimizer = build_optimizer(network, options)
    schedule = build_schedule(optimizer, options, STEPS_PER_EPOCH, EPOCHS)
    found = []
    for _ in range(STEPS_PER_EPOCH * EPOCHS):
        weights, strides = (group["lr"] for group in optimizer.param_groups)
        assert strides / options.stride_learning_rate == pytest.approx(
            weights / options.learning_rate
        )
        found.append(weights / options.learning_rate)
        optimizer.step()
        schedule.step()
    return found


@pytest.mark.parametrize(("name", "kind"), [("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)])
def test_strides_have_their_own_rate_and_no_decay(network, name, kind):
    options = Optimizer(name=name, stride_learning_rate=0.3, weight_decay=0.2, momentum=0.7)
    optimizer = build_optimizer(network, options)
    assert type(optimizer) is kind
    weights, strides = optimizer.param_groups
    assert strides["params"] == [network[1].strides]
    assert (weights["lr"], strides["lr"]) == (options.learning_rate, 0.3)
    assert (weights["weight_decay"], strides["weight_decay"]) == (0.2, 0.0)
    if name == "sgd":
        assert weights["momentum"] == strides["momentum"] == 0.7


def test_constant(network):
    assert factors(network, Optimizer(schedule="constant")) == [1.0] * 12


def test_steps_in_steps(network):
    options = Optimizer(schedule="steps", boundaries=(2, 7), factors=(0.1, 1.0, 0.5))
    assert factors(network, options) == pytest.approx([0.1] * 2 + [1.0] * 5 + [0.5] * 5)


def test_steps_in_epochs(network):
    options = Optimizer(
        schedule="steps", boundaries=(1, 2), boundary_unit="epochs", factors=(1.0, 0.1, 0.01)
    )
    assert factors(network, options) == pytest.approx([1.0] * 4 + [0.1] * 4 + [0.01] * 4)


def test_cosine_ends_just_above_zero(network):
    expected = [(1 + math.cos(math.pi * step / 12)) / 2 for step in range(12)]
    assert factors(network, Optimizer(schedule="cosine")) == pytest.approx(expected)


def test_warmup_rises_to_what_follows(network):
    options = Optimizer(schedule="cosine", warmup_epochs=1.0)
    cosine = [(1 + math.cos(math.pi * step / 8)) / 2 for step in range(8)]
    assert factors(network, options) == pytest.approx([0.2, 0.4, 0.6, 0.8, *cosine])


def test_one_cycle_rises_and_falls(network):
    found = factors(network, Optimizer())
    top = found.index(max(found))
    assert found[top] == pytest.approx(1.0, abs=0.1)
    assert 0 < top < 6
    assert found == sorted(found[:top]) + sorted(found[top:], reverse=True)
