"""The PyTorch layers: bounds, plans and when they are made, options."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from diffstride_conformance import oracle
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv2d,
    diff_stride,
    modules,
    output_sizes,
    project_strides,
    spectral_resize,
)
from support.torch_modules import (
    PAPER,
    R,
    Reads,
    assert_close,
    assert_right,
    layer,
    random,
    set_strides,
)
from torch import nn

from diffstride_core import NothingToCropWarning

"""A smoothness other than the default."""
"""Strides with floors above 1, and a ramp that leaves small maps something to crop."""


# --- Bounds in the forward pass -----------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("values", [(0.3, -1.0), (100.0, 1e9), (-1e9, 2.0), (0.0, 1.0)])
def test_a_drifted_parameter_is_bounded_straight_through(values, training, rule):
    module = layer(dtype=torch.float64).train(training)
    set_strides(module, *values)
    x = random(2, 24, 20, dtype=torch.float64)
    y = module(x)
    g = random(*y.shape, dtype=torch.float64, seed=1)
    y.backward(g)
    assert module.strides.tolist() == list(values)

    used = oracle.used_strides((24, 20), values, smoothness=R)
    assert used != values
    reference = oracle.diff_stride(x.numpy(), used, g.numpy(), smoothness=R, limits=None)
    assert tuple(y.shape) == reference.output.shape
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(module.strides.grad, torch.from_numpy(reference.dstrides))
    bounded = torch.tensor(used, dtype=torch.float64)
    assert torch.equal(y, diff_stride(x, bounded, smoothness=R))
    # Neither bound stops the gradient.
    assert np.count_nonzero(reference.dstrides) == 2


def test_a_drifted_parameter_comes_back():
    module, x = layer(1.7, shared=True), random(2, 24, 20)
    set_strides(module, 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(5):
        optimizer.zero_grad()
        y = module(x)
        (y**2).sum().div(x.numel()).backward()
        optimizer.step()
        assert torch.isfinite(module.strides).all()
    assert module.strides.item() > 0.5


def steps_towards(target, x, start, steps=16):
    """Return the strides and losses of a descent on what a layer makes of a signal."""
    module = DiffStride1d(start, norm="forward", dtype=torch.float64)
    # With momentum: at N/S between 3 and 3.25, say, no bin that the output holds is on the ramp.
    optimizer = torch.optim.SGD(module.parameters(), lr=300.0, momentum=0.9)
    strides, losses = [module.strides.item()], []
    for _ in range(steps):
        optimizer.zero_grad()
        # Interpolated back, so that outputs of all sizes can be compared.
        loss = (spectral_resize(module(x), x.shape[-1], axes=-1) - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_value_(module.parameters(), 1e-3)
        optimizer.step()
        project_strides(module)
        strides.append(module.strides.item())
        losses.append(loss.item())
    return strides, losses


def test_a_stride_at_its_upper_bound_comes_down_when_the_loss_asks_for_it():
    x = random(64, 32, dtype=torch.float64)
    strides, losses = steps_towards(x, x, 16.0)
    assert strides[0] == 16.0
    assert strides[1] < 16.0
    assert strides[-1] < 4.0
    assert losses[-1] < 0.5 * losses[0]


def test_a_stride_of_one_goes_up_when_the_loss_asks_for_it():
    x = random(64, 32, dtype=torch.float64)
    target = spectral_resize(spectral_resize(x, 8, axes=-1), 32, axes=-1)
    strides, losses = steps_towards(target, x, 1.0)
    assert strides[0] == 1.0
    assert strides[1] > 1.0
    assert strides[-1] > 2.0
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("used_before", [True, False])
def test_strides_that_are_not_finite_are_an_error_at_the_next_forward(value, used_before, rule):
    module, x = layer(), random(2, 24, 20)
    if used_before:
        module(x)
    set_strides(module, 1.7, value)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"strides must be finite.*{value}"):
            module(x)
        with pytest.raises(ValueError, match="strides must be finite"):
            module.output_sizes((24, 20))
    torch.testing.assert_close(
        module.strides.detach(), torch.tensor([1.7, value]), equal_nan=True, rtol=0, atol=0
    )
    set_strides(module, 1.7, 1.4)
    assert_right(module)


# --- Plans --------------------------------------------------------------------------------------


def test_a_plan_is_made_once_per_size_and_change(plans, rule):
    module, x, other = layer(), random(2, 24, 20), random(1, 3, 30, 16)
    for _ in range(3):
        module(x)
        module(other)
        module(x[:1])
        module.output_sizes(x.shape)
    assert len(plans) == 2
    set_strides(module, 2.9, 1.4)
    module(x)
    assert len(plans) == 4  # Both sizes are planned anew, from one reading of the strides.
    for _ in range(3):
        module(x)
        module(other)
    assert len(plans) == 4
    assert {tuple(np.float32(strides)) for strides in plans[2:]} == {
        (np.float32(2.9), np.float32(1.4))
    }


def test_on_a_cpu_only_new_values_make_a_plan(plans):
    module, x = layer(), random(2, 24, 20)
    module(x)
    set_strides(module, *module.strides.tolist())
    module.strides = torch.nn.Parameter(module.strides.detach().clone())
    module(x)
    assert len(plans) == 1


def test_on_an_accelerator_strides_are_read_once_per_change(accelerator):
    module, x = layer(), random(2, 24, 20)
    with Reads() as reads:
        module(x)  # The strides were read when the module was made.
        for shape in ((2, 24, 20), (1, 30, 16), (4, 3, 24, 20)):
            module(random(*shape)).sum().backward()
            module.output_sizes(shape)
        assert reads == []
        for stride in (2.9, 3.3):
            set_strides(module, stride, 1.4)
            for _ in range(3):
                module(x).sum().backward()
            assert reads == ["tolist"]
            reads.clear()


def test_an_optimizer_step_costs_one_reading(accelerator):
    module, x = layer(), random(2, 24, 20)
    frozen = layer(trainable=False)
    for fused in (False, True):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01, fused=fused)
        frozen(x)
        for _ in range(2):
            module(x).sum().backward()
            optimizer.step()
            with Reads() as reads:
                module(x)
                module(x)
                frozen(x)
            assert reads == ["tolist"]


def test_version_of_a_tensor():
    tensor = torch.nn.Parameter(torch.tensor([1.7, 2.4]))
    version = modules._Version(tensor)
    assert version == modules._Version(tensor)
    assert hash(version) == hash(modules._Version(tensor))
    assert version != (tensor._version, tensor.data_ptr())
    assert version != modules._Version(torch.nn.Parameter(tensor.detach().clone()))
    frozen = tensor.detach()
    assert modules._Version(frozen) == modules._Version(frozen)
    assert modules._Version(frozen) != modules._Version(frozen.detach())
    with torch.no_grad():
        tensor.add_(0.0)
    assert version != modules._Version(tensor)
    version = modules._Version(tensor)
    assert version == modules._Version(tensor)
    kept = tensor.data
    tensor.data = kept.clone()
    assert version != modules._Version(tensor)


def test_version_outlives_its_tensor():
    # Memory and ids are used again as soon as a tensor is freed.
    old = modules._Version(torch.tensor([1.7, 2.4]))
    for _ in range(20):
        assert old != modules._Version(torch.tensor([1.7, 2.4]))


def test_version_counts_optimizer_steps():
    tensor, frozen = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    versions = modules._Version(tensor), modules._Version(frozen)
    optimizer = torch.optim.Adam([tensor], fused=True)
    tensor.grad = torch.ones(2)
    optimizer.step()
    assert versions[0] != modules._Version(tensor)
    assert versions[1] == modules._Version(frozen)


def test_many_sizes(rule):
    module = layer()
    for size in (*range(16, 40), 16, 17):
        assert_right(module, random(1, size, 50 - size))
    set_strides(module, 2.9, 1.4)
    for size in (16, 30, 39):
        assert_right(module, random(1, size, 50 - size))


def test_one_module_serves_two_branches(rule):
    module = layer((1.7, 2.4), dtype=torch.float64)
    x, z = random(2, 24, 20, dtype=torch.float64), random(3, 18, 33, dtype=torch.float64, seed=1)
    a, b = module(x), module(z)
    (a.square().sum() + b.square().sum()).backward()
    s = module.strides.detach().clone().requires_grad_()
    c, d = diff_stride(x, s, smoothness=R), diff_stride(z, s, smoothness=R)
    (c.square().sum() + d.square().sum()).backward()
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert_close(module.strides.grad, s.grad)


OPTIONS = {
    "default": {"smoothness": None},
    "paper": {"smoothness": None, "convention": "paper"},
    "tensorflow": {"smoothness": None, "convention": "tensorflow"},
    "ortho": {"norm": "ortho"},
    "backward": {"norm": "backward"},
    "limits": {"limits": (1.9, 2.1)},
    "no-limits": {"limits": None},
    "uncropped": {"cropping": False},
    "fft": {"method": "fft"},
    "matmul": {"method": "matmul"},
    "channels-last": {"axes": (1, 2)},
    "transposed": {"axes": (-1, 2)},
}


@pytest.mark.parametrize("stride", [(1.7, 2.4), 2.2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_the_function(options, stride):
    x = random(2, 24, 20, 22)
    module = layer(stride, **options)
    options = {"smoothness": R, **options}
    y = module(x)
    assert torch.equal(y, diff_stride(x, module.strides.detach(), **options))
    axes = options.get("axes", (-2, -1))
    assert module.output_sizes(x.shape) == tuple(y.shape[axis] for axis in axes)
    for key in ("norm", "method"):
        options.pop(key, None)
    assert module.output_sizes(x.shape) == output_sizes(x.shape, module.strides, **options)


@pytest.mark.parametrize(("cls", "rank"), [(DiffStride1d, 1), (DiffStride2d, 2), (DiffStride3d, 3)])
def test_every_rank(cls, rank):
    module = cls(2.2, smoothness=1.0, dtype=torch.float64)
    assert module.strides.tolist() == [2.2] * rank
    x = random(2, 3, *(14, 12, 16)[:rank], dtype=torch.float64)
    y = module(x)
    y.backward(torch.ones_like(y))
    reference = oracle.diff_stride(
        x.numpy(), [2.2] * rank, np.ones(y.shape), axes=range(-rank, 0), smoothness=1.0
    )
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(module.strides.grad, torch.from_numpy(reference.dstrides))
    assert y.shape[2:] == module.output_sizes(x.shape)
    assert all(m < n for m, n in zip(y.shape[2:], x.shape[2:], strict=True))


def test_rank_one_takes_any_axis():
    module, x = DiffStride1d(2.2, axes=1, smoothness=R), random(2, 24, 3)
    expected = diff_stride(x, module.strides.detach(), axes=1, smoothness=R)
    assert torch.equal(module(x), expected)


def test_a_shared_stride_is_one_parameter_with_the_sum_of_the_gradients(rule):
    x = random(2, 24, 20, dtype=torch.float64)
    shared = layer(1.9, shared=True, dtype=torch.float64)
    separate = layer(1.9, dtype=torch.float64)
    assert shared.strides.shape == (1,)
    assert layer([1.9, 1.9], shared=True).strides.shape == (1,)
    a, b = shared(x), separate(x)
    assert_close(a, b)
    (a**3).sum().backward()
    (b**3).sum().backward()
    assert_close(shared.strides.grad, separate.strides.grad.sum()[None])


def test_a_shared_stride_is_bounded_by_all_axes():
    # Floors 24/22 and 14/12, upper bounds 12 and 7.
    x = random(2, 24, 14, dtype=torch.float64)
    module = layer(2.0, shared=True, dtype=torch.float64, **PAPER)
    for value, used in ((1.0, 14 / 12), (50.0, 7.0)):
        set_strides(module, value)
        expected = diff_stride(x, [used, used], **PAPER)
        assert_close(module(x), expected)


def test_frozen_strides():
    module, x = layer(trainable=False), random(2, 24, 20, requires_grad=True)
    assert not module.strides.requires_grad
    assert list(module.state_dict()) == ["strides", "_extra_state"]
    module(x).sum().backward()
    assert module.strides.grad is None
    assert x.grad is not None
    assert not layer(trainable=False)(x.detach()).requires_grad
    module.strides.requires_grad_()
    module(x).sum().backward()
    assert module.strides.grad is not None


def test_limits_hold_in_the_forward_pass():
    x = random(2, 24, 20)
    module = layer((1.2, 5.0), limits=(1.5, 2.5))
    assert_close(module(x), diff_stride(x, [1.5, 2.5], smoothness=R).to(x), 1e-6)
    # Without bounds, a stride of 1 is the identity in the paper's convention.
    assert_close(layer(1.0, limits=None, **PAPER)(x), x, 1e-5)
    assert (layer(1.0, **PAPER)(x) - x).abs().max() > 1e-2


def test_an_axis_that_can_never_be_cropped_warns():
    with pytest.warns(NothingToCropWarning, match="axis -2 of size 8 can never be cropped"):
        y = DiffStride2d(2.0, convention="paper")(random(1, 8, 24))
    assert y.shape[1] == 8


def test_a_warning_names_the_place_of_the_call():
    x, options = random(1, 1, 8, 24), {"convention": "paper"}
    for call in (
        partial(diff_stride, strides=2.0, **options),
        nn.Sequential(nn.Identity(), nn.Sequential(DiffStride2d(2.0, **options))),
        nn.Sequential(DiffStrideConv2d(1, 1, 3, **options)).to(x.dtype),
    ):
        with pytest.warns(NothingToCropWarning) as caught:
            call(x)
        assert [warning.filename for warning in caught] == [__file__]


def test_extra_repr():
    assert layer().extra_repr() == "strides=[1.7, 2.4], convention='nominal', smoothness=0.5"
    module = layer(
        1.23456,
        convention="paper",
        smoothness=2.5,
        shared=True,
        limits=(None, 3.0),
        cropping=False,
        trainable=False,
        norm="ortho",
        method="fft",
        axes=(1, 2),
    )
    text = module.extra_repr()
    for part in (
        "strides=[1.235]",
        "convention='paper'",
        "smoothness=2.5",
        "shared=True",
        "limits=(None, 3.0)",
        "cropping=False",
        "trainable=False",
        "norm='ortho'",
        "method='fft'",
        "axes=(1, 2)",
    ):
        assert part in text
    assert repr(module) == f"DiffStride2d({text})"
    assert "norm" not in layer(smoothness=4.0, convention="tensorflow").extra_repr()
    set_strides(module, 2.5)
    assert "strides=[2.5]" in repr(module)
