"""The PyTorch functions: half precision, autocast, operations in place."""

import math
from contextlib import nullcontext

import pytest
import torch
from diffstride_backends import registry
from diffstride_conformance.cases import all_cases
from diffstride_conformance.problems import is_posed
from diffstride_conformance.run import run_case
from diffstride_torch import (
    complexity,
    diff_stride,
    plain_autodiff,
)
from support.torch_functions import each_engine
from support.torch_values import assert_close, loss, random, strides_of

from diffstride_core.testing import block_elements

HALF_CASES = [
    case for case in all_cases() if math.prod(case.shape) < 20000 and is_posed(case, "bfloat16")
]
HALF_CASES = HALF_CASES[:: len(HALF_CASES) // 40]


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("case", HALF_CASES, ids=lambda case: case.name)
def test_half_precision(case, dtype):
    assert run_case(registry.get("torch"), case, dtype)


@pytest.mark.parametrize("backward_inside", [True, False])
@each_engine
@pytest.mark.parametrize("plain", [True, False])
def test_autocast_changes_nothing(method, backward_inside, plain):
    def run(enabled):
        x = random(2, 3, 24, 21, dtype=torch.float32, requires_grad=True)
        s = strides_of(1.7, 2.4, dtype=torch.float32, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            if plain:
                with plain_autodiff():
                    y = diff_stride(x, s, method=method)
            else:
                y = diff_stride(x, s, method=method)
            assert torch.is_autocast_enabled("cpu") == enabled
            if backward_inside and not plain:
                loss(y).backward()
        if not (backward_inside and not plain):
            loss(y).backward()
        return y.detach(), x.grad, s.grad

    for inside, outside in zip(run(True), run(False), strict=True):
        assert inside.dtype == torch.float32
        assert torch.equal(inside, outside)


def test_float32_reaches_float64_accuracy_in_the_operator():
    # A bfloat16 or TF32 product anywhere would be off by 1e-3.
    x = random(4, 64, 64, dtype=torch.float32)
    y = diff_stride(x, [2.3, 1.7])
    reference = diff_stride(x.double(), [2.3, 1.7])
    assert (y - reference).abs().max() < 5e-6 * reference.abs().max()


def shifted_in_place(y):
    y += y.new_ones(y.shape[-1:])
    return y.relu_()


@each_engine
@pytest.mark.parametrize("layout", ["contiguous", "channels_last", "in blocks", "no batch"])
@pytest.mark.parametrize("strides", [(1.7, 2.4), (1.0, 1.0)])
def test_operations_in_place(layout, strides, method):
    x, s = random(2, 3, 12, 15), strides_of(*strides, requires_grad=True)
    if layout == "channels_last":
        x = x.to(memory_format=torch.channels_last)
    x = (x[0, 0] if layout == "no batch" else x).requires_grad_()

    def f():
        # At strides of 1, the identity.
        return diff_stride(x, s, limits=None, convention="paper", method=method)

    with block_elements(1) if layout == "in blocks" else nullcontext():
        y, expected = shifted_in_place(f()), (f() + 1).relu()
    assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(loss(y), (x, s)),
        torch.autograd.grad(loss(expected), (x, s)),
        strict=True,
    ):
        assert_close(a, b)


@each_engine
def test_an_output_without_gradients_takes_one_in_place(method):
    x, weight = random(2, 3, 12, 15), torch.ones(1, dtype=torch.float64, requires_grad=True)
    with torch.no_grad():
        y = diff_stride(x, 1.7, method=method)
    total = y.sum()
    y *= weight
    assert_close(torch.autograd.grad(y.sum(), weight), (total[None],))


@each_engine
def test_operations_in_place_within_transforms(method):
    x, s = random(2, 3, 12, 15), strides_of(1.7, 2.4)

    def f(x, s):
        return diff_stride(x, s, sizes=(10, 9), method=method)

    def values(change):
        f_of_s = torch.func.grad(lambda x, s: loss(change(f(x, s))), 1)
        return torch.vmap(change_of(change), (0, None))(x, s), torch.vmap(f_of_s, (0, None))(x, s)

    def change_of(change):
        return lambda x, s: change(f(x, s))

    for a, b in zip(values(torch.relu_), values(torch.relu), strict=True):
        assert_close(a, b)


def test_a_penalty_is_scaled_in_place():
    for layers in ([strides_of(1.7)], [strides_of(1.7, 2.4), strides_of(1.3)]):
        leaves = [layer.requires_grad_() for layer in layers]
        penalty = complexity(leaves)
        penalty *= 0.5
        expected = torch.autograd.grad(0.5 * complexity(leaves), leaves)
        assert_close(torch.autograd.grad(penalty, leaves), expected)
