"""`FlopsBudget` holds a cost against what a loss gains by more resolution."""

import itertools
import math

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    FlopsBudget,
    flops_penalty,
    project_strides,
)
from diffstride_torch.models import resnet18, small_resnet
from support import amounts
from torch import nn

SMALL = (1, 1, 32, 32)
LARGE = (1, 3, 224, 224)


def small(strides=2.0, **options):
    return small_resnet(strides=(strides,) * 3, **options)


def large(strides=2.0):
    # What a map of 56 and those behind it cost, with fewer channels than it usually has.
    channels = (8, 8, 16, 32, 64)
    return resnet18(strides=(strides,) * 3, stem="imagenet", channels=channels)


def set_strides(budget, value):
    with torch.no_grad():
        for layer in budget.layers:
            layer.strides.fill_(value)


def train(model, budget, optimizer, pull, steps=300):
    """Train the strides alone, towards resolution: a loss gains about `pull` per log(1/S).

    By how much differs from axis to axis, as it does in images.
    """
    weights = [0.5 + torch.rand(2) for _ in budget.layers]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        strides = [layer.strides for layer in budget.layers]
        gain = sum((w * s.log()).mean() for w, s in zip(weights, strides, strict=True))
        optimizer.zero_grad()
        (pull * gain + budget()).backward()
        optimizer.step()
        schedule.step()
        project_strides(model)


def is_within_a_size_step(budget):
    """Return whether the next size of one axis lies at the target or on its other side."""
    now = budget.multiply_adds()
    towards = 1 if now > budget.target else -1
    for layer in budget.layers:
        for i, value in enumerate(layer.strides.tolist()):
            after = now
            for step in range(1, 200):
                with torch.no_grad():
                    layer.strides[i] = max(1.0, value + towards * step * 0.01)
                after = budget.multiply_adds()
                if after != now:
                    break
            with torch.no_grad():
                layer.strides[i] = value
            if (after - budget.target) * towards <= 0:
                return True
    return False


OPTIMIZERS = {
    "sgd": lambda strides: torch.optim.SGD(strides, lr=0.1, momentum=0.9),
    "sgd, large rate": lambda strides: torch.optim.SGD(strides, lr=1.0, momentum=0.9),
    "adam": lambda strides: torch.optim.AdamW(strides, lr=0.03, weight_decay=0),
}


ENDS = itertools.product(
    OPTIMIZERS, (1.3, 2.0, 4.0), [(small, SMALL, 0.05), (large, LARGE, 0.03)], (0.1, 0.3)
)


# One in five goes through every optimizer, start, network and pull.
@pytest.mark.parametrize(
    ("optimizer", "start", "network", "pull"), amounts.quick_every(5, list(ENDS))
)
def test_the_cost_ends_at_the_target_from_both_sides(optimizer, start, network, pull):
    make, shape, limit = network
    torch.manual_seed(0)
    model = make()
    budget = FlopsBudget(model, torch.zeros(shape))
    set_strides(budget, start)
    optimizer = OPTIMIZERS[optimizer]([layer.strides for layer in budget.layers])
    train(model, budget, optimizer, pull)
    excess = abs(budget.multiply_adds() / budget.target - 1)
    assert excess <= limit or (shape == SMALL and is_within_a_size_step(budget)), excess


def test_value_and_gradient_are_those_of_the_equation():
    model = small().double()
    images = torch.zeros(SMALL, dtype=torch.float64)
    penalty = flops_penalty(model, images)
    for factor in (0.5, 0.96, 1.0, 1.04, 3.0):
        budget = FlopsBudget(model, images, penalty.initial * factor)
        e = math.log(1 / factor)
        value = 30 * e * e if abs(e) <= 0.05 else 3 * abs(e) - 0.075
        slope = 60 * e if abs(e) <= 0.05 else math.copysign(3, e)
        strides = [layer.strides for layer in budget.layers]
        of_cost = torch.autograd.grad(penalty(), strides)
        found = torch.autograd.grad(budget(), strides)
        assert float(budget().detach()) == pytest.approx(value, abs=1e-12)
        for ours, cost in zip(found, of_cost, strict=True):
            torch.testing.assert_close(ours, slope * cost / penalty.initial, rtol=1e-9, atol=1e-12)


def test_initial_is_the_cost_when_it_is_made():
    model = small()
    budget = FlopsBudget(model, torch.zeros(SMALL))
    before = budget.multiply_adds()
    assert budget.target == before == flops_penalty(model, torch.zeros(SMALL)).initial
    set_strides(budget, 1.0)
    assert budget.multiply_adds() > before == budget.target


def test_the_term_is_a_scalar_of_the_strides_dtype():
    for dtype in (torch.float32, torch.float64):
        model = small().to(dtype)
        term = FlopsBudget(model, torch.zeros(SMALL, dtype=dtype))()
        assert (term.shape, term.dtype, term.requires_grad) == ((), dtype, True)


@pytest.mark.parametrize(
    ("target", "error", "message"),
    [
        ("intial", ValueError, "target must be 'initial' or a number of multiply-adds, got 'int"),
        (0, ValueError, "target must be a finite number of multiply-adds above 0, got 0"),
        (-1.0, ValueError, "above 0, got -1.0"),
        (math.nan, ValueError, "above 0, got nan"),
        (math.inf, ValueError, "above 0, got inf"),
        (None, TypeError, "target must be a real number, got None"),
        ([1e6], TypeError, r"target must be a real number, got \[1000000.0\]"),
        (1.0, ValueError, r"from [\d,]+ to [\d,]+ multiply-adds per image, got 1\.0$"),
        (1e12, ValueError, r"from [\d,]+ to [\d,]+ multiply-adds per image, got 1,000,000,000,000"),
    ],
)
def test_wrong_targets_are_refused(target, error, message):
    with pytest.raises(error, match=message):
        FlopsBudget(small(), torch.zeros(SMALL), target)


def test_targets_at_the_ends_of_the_range_are_accepted():
    model = small(limits=(1.5, 3.0))
    images = torch.zeros(SMALL)
    ends = flops_penalty(model, images).multiply_adds_range()
    for value, end in zip((3.0, 1.5), ends, strict=True):
        budget = FlopsBudget(model, images, end)
        set_strides(budget, value)
        assert budget.multiply_adds() == budget.target
        with pytest.raises(ValueError, match="what the strides can reach"):
            FlopsBudget(model, images, end * (0.99 if value == 3.0 else 1.01))


@pytest.mark.parametrize("inner", [nn.Conv2d(4, 4, 3), nn.MaxPool2d(3), nn.ZeroPad2d(-3)])
def test_the_range_ends_where_a_window_no_longer_fits(inner):
    model = nn.Sequential(
        DiffStride2d(2.0), nn.Conv2d(1, 4, 3), inner, DiffStride2d(1.5), nn.Conv2d(4, 4, 3)
    )
    images = torch.zeros(1, 1, 48, 48)
    initial = flops_penalty(model, images).initial
    assert FlopsBudget(model, images, initial * 1.5).multiply_adds() == initial
    with pytest.raises(ValueError, match="what the strides can reach"):
        FlopsBudget(model, images, 1.0)


def test_strides_that_are_held_do_not_count_as_reachable():
    model = nn.Sequential(DiffStride2d(2.0), nn.Conv2d(1, 4, 3, padding=1), DiffStride2d(2.0))
    model[0].strides.requires_grad_(False)
    images = torch.zeros(SMALL)
    penalty = flops_penalty(model, images)
    least, most = penalty.multiply_adds_range()
    assert penalty.of_layer(model[0]) < least <= penalty.initial <= most
    model[2].strides.requires_grad_(False)
    assert penalty.multiply_adds_range() == (penalty.initial, penalty.initial)
    with pytest.raises(ValueError, match="what the strides can reach"):
        FlopsBudget(model, images, 2 * penalty.initial)
