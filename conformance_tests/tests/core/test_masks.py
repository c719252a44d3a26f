"""Masks and their derivatives, and what the operators leave as it is."""

import itertools

import numpy as np
import pytest
from diffstride_backends import registry, torch_backend
from diffstride_conformance import oracle
from support.core_plans import CLEAN, FRAMEWORKS, SMOOTHNESS, axis_mask, numpy, numpy_with_pullback

from diffstride_core.conventions import CONVENTIONS
from diffstride_core.plan import AxisPlan

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


MASK_CASES = [
    (convention, smoothness, size, is_last)
    for convention in CLEAN
    for smoothness in SMOOTHNESS[convention][:4]
    for size in (4, 9, 16, 33)
    for is_last in (False, True)
]


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(("convention", "smoothness", "size", "is_last"), MASK_CASES)
def test_mask_against_the_oracle(convention, smoothness, size, is_last, name):
    ops = registry.get(name).backend
    for stride in (1.0, 1.37, 2.0, 2.9, 4.0, 8.0):
        value, slope = axis_mask(convention, size, stride, smoothness, is_last=is_last, ops=ops)
        mu, dmu = oracle.mask(
            size, stride, smoothness=smoothness, last=is_last, convention=convention
        )
        np.testing.assert_allclose(value, mu, rtol=0, atol=1e-14)
        np.testing.assert_allclose(slope, dmu, rtol=1e-13, atol=0)


@pytest.mark.parametrize(("convention", "smoothness", "size", "is_last"), MASK_CASES)
def test_mask_derivative_against_central_differences(convention, smoothness, size, is_last):
    step, compared, in_ramp = 1e-6, 0, 0
    for stride in np.random.default_rng(3).uniform(1.05, 5, size=25).tolist():
        if convention == "nominal" and abs(smoothness * size / (2 * stride) - 1) < 1e-3:
            continue
        v, _ = oracle.ramp(size, stride, smoothness=smoothness, last=is_last, convention=convention)
        away = (np.abs(v) > 3 * oracle.TIE) & (np.abs(v - 1) > 3 * oracle.TIE)
        _, slope = axis_mask(convention, size, stride, smoothness, is_last=is_last)
        there, back = (
            axis_mask(convention, size, stride + change, smoothness, is_last=is_last)[0]
            for change in (step, -step)
        )
        estimate = (there - back) / (2 * step)
        np.testing.assert_allclose(slope[away], estimate[away], rtol=1e-6, atol=1e-8)
        compared += np.sum(away)
        in_ramp += np.sum(slope[away] < 0)
    assert compared >= 25
    assert in_ramp > 0


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("convention", CLEAN)
def test_mask_derivative_at_ties_is_the_right_hand_one(convention, name):
    ops, step, ties = registry.get(name).backend, 1e-6, 0
    for size in range(1, 65):
        for stride in (1.0, 1.25, 1.6, 2.0, 2.5, 4.0, 8.0):
            for smoothness in (1.0, 4.0) if convention == "paper" else (0.25, 0.5, 0.75, 1.0):
                if size == 1 and stride > 1:
                    continue
                # There the derivative is the wide ramp's, which holds to the left.
                if convention == "nominal" and abs(smoothness * size / (2 * stride) - 1) < 1e-3:
                    continue
                value, slope = axis_mask(convention, size, stride, smoothness, ops=ops)
                ahead, _ = axis_mask(convention, size, stride + step, smoothness, ops=ops)
                estimate = (ahead - value) / step
                scale = size / (2 * stride)
                np.testing.assert_allclose(slope, estimate, rtol=0, atol=1e-4 * (1 + scale))
                v, _ = oracle.ramp(size, stride, smoothness=smoothness, convention=convention)
                ties += np.sum(np.abs(v - 1) < 1e-12)
    assert ties > 100


@pytest.mark.parametrize("value", [2.0, 1.37, 4.0, 0.5, 50.0])
@pytest.mark.parametrize("convention", CLEAN)
def test_what_autodiff_sees_of_the_mask_is_its_slope(convention, value):
    torch = torch_backend.torch
    ops = torch_backend.BACKEND
    bounds = CONVENTIONS[convention].bounds(32, 0.5, (None, None))
    axis = AxisPlan(-1, 32, 32, True, bounds)
    stride = torch.tensor(value, dtype=torch.float64, requires_grad=True)
    mask = CONVENTIONS[convention].mask(ops, axis, 0.5, stride, stride)
    for k in range(17):
        (gradient,) = torch.autograd.grad(mask.value[k], stride, retain_graph=True)
        assert gradient.item() == pytest.approx(mask.dmask[k].item(), rel=1e-12, abs=1e-15)


# --- What the operators leave as it is ---------------------------------------------------------


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_the_paper_convention_is_the_identity_at_stride_one_without_bounds(method):
    options = {"limits": None, "convention": "paper", "method": method}
    rng = np.random.default_rng(4)
    for size in range(1, 41):
        x = rng.standard_normal((2, size, 3))
        for stride in (1.0, 0.5):
            y = numpy.diff_stride(x, stride, axes=(1,), **options)
            np.testing.assert_allclose(y, x, rtol=0, atol=1e-14 * np.max(np.abs(x)) * 10)
    x = rng.standard_normal((9, 16, 7))
    y = numpy.diff_stride(x, (1.0, 1.0, 1.0), axes=(0, 2, 1), **options)
    np.testing.assert_allclose(y, x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_the_nominal_convention_filters_at_stride_one(method):
    options = {"axes": -1, "convention": "nominal", "method": method}
    np.testing.assert_allclose(
        numpy.diff_stride(np.array([1.7]), 1.0, **options), [1.7], rtol=1e-15
    )
    x = np.array([1.0, -1.0])
    np.testing.assert_allclose(numpy.diff_stride(x, 1.0, **options), x / 2, rtol=1e-15)
    # N = 32: q = 16, R = 4, mu(16) = 1/8 and mu(12) = 1.
    n = np.arange(32)
    for k, gain in ((16, 1 / 8), (15, 3 / 8), (13, 7 / 8), (12, 1.0), (3, 1.0)):
        x = np.cos(2 * np.pi * k * n / 32)
        y = numpy.diff_stride(x, 1.0, **options)
        np.testing.assert_allclose(y, gain * x, rtol=0, atol=1e-13)


@pytest.mark.parametrize("sizes", [None, 8])
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_beyond_the_last_frequency_the_nominal_convention_keeps_the_mean(method, sizes):
    # N/(2S) < 1/2: nothing but frequency 0 is alive, and it has no derivative.
    x = np.random.default_rng(4).standard_normal((3, 16))
    options = {"axes": -1, "limits": None, "convention": "nominal", "method": method}
    for stride in (17.0, 40.0, 1000.0):
        y, pullback = numpy_with_pullback.diff_stride(x, stride, sizes=sizes, **options)
        assert y.shape == (3, sizes or 1)
        mean = np.broadcast_to(np.mean(x, axis=1, keepdims=True), y.shape)
        np.testing.assert_allclose(y, mean, rtol=0, atol=1e-15)
        dx, dstride = pullback(np.ones_like(y))
        np.testing.assert_allclose(dx, np.full_like(x, y.shape[1] / 16), rtol=1e-14)
        assert dstride == 0


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("method", ["matmul", "fft"])
@pytest.mark.parametrize("convention", CLEAN)
def test_constants_stay(convention, method, name):
    framework = registry.get(name)
    options = {"convention": convention, "method": method}
    for size in range(1, 41):
        x = framework.backend.from_host(np.full((size, 2), 1.5), "float64")
        for stride in (1.3, 2.0, 2.7, 1000.0):
            y = framework.functional.diff_stride(x, stride, axes=(0,), **options)
            y = framework.backend.to_host(y)
            np.testing.assert_allclose(y, np.full(y.shape, 1.5), rtol=1e-14)
    x = framework.backend.from_host(np.full((20, 31), 1.5), "float64")
    for norm, exponent in (("forward", 0), ("ortho", 0.5), ("backward", 1)):
        y = framework.backend.to_host(
            framework.functional.diff_stride(x, (2.0, 3.1), norm=norm, **options)
        )
        ratio = 20 * 31 / y.size
        assert ratio > 1
        np.testing.assert_allclose(y, 1.5 * ratio**exponent, rtol=1e-13)


@pytest.mark.parametrize("sizes", [None, (7, 4, 9)])
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_nominal_convention_is_equivariant_under_transposition(method, sizes):
    rng = np.random.default_rng(5)
    x, strides = rng.standard_normal((12, 17, 14)), np.array([2.1, 1.4, 2.9])
    options = {"axes": (0, 1, 2), "convention": "nominal", "method": method}
    y, pullback = numpy_with_pullback.diff_stride(x, strides, sizes=sizes, **options)
    g = rng.standard_normal(y.shape)
    dx, dstrides = pullback(g)
    for order in itertools.permutations(range(3)):
        moved_sizes = sizes and tuple(sizes[i] for i in order)
        moved, moved_pullback = numpy_with_pullback.diff_stride(
            x.transpose(order), strides[list(order)], sizes=moved_sizes, **options
        )
        moved_dx, moved_dstrides = moved_pullback(np.ascontiguousarray(g.transpose(order)))
        np.testing.assert_allclose(moved, y.transpose(order), rtol=0, atol=1e-13)
        np.testing.assert_allclose(moved_dx, dx.transpose(order), rtol=0, atol=1e-13)
        np.testing.assert_allclose(moved_dstrides, dstrides[list(order)], rtol=1e-12)


def test_paper_convention_lets_the_last_axis_keep_one_frequency_more():
    # Eq. 4: the ramp of the last axis given is one frequency further out.
    x, options = np.random.default_rng(5).standard_normal((32, 32)), {"convention": "paper"}
    y = numpy.diff_stride(x, 2.0, **options)
    swapped = numpy.diff_stride(x.T, 2.0, axes=(-1, -2), **options).T
    np.testing.assert_allclose(swapped, y, rtol=0, atol=1e-14)
    assert np.max(np.abs(numpy.diff_stride(x.T, 2.0, **options).T - y)) > 1e-3


# --- Ties: the same gradient everywhere --------------------------------------------------------


@pytest.mark.parametrize("limits", [(None, None), None])
@pytest.mark.parametrize("convention", CLEAN)
def test_stride_gradients_agree_across_frameworks_at_ties(convention, limits):
    cases = [((2, size), (s,)) for size in range(1, 34) for s in (1.0, 2.0, 4.0)]
    cases += [((2, 64), (s,)) for s in (1.0, 1.6, 2.0, 4.0, 8.0)]
    cases += [((size, 16), (2.0, s)) for size in (8, 9, 32) for s in (2.0, 4.0)]
    for shape, strides in cases:
        options = {"axes": (1,) if len(strides) == 1 else (0, 1)}
        options |= {"convention": convention, "limits": limits}
        rng = np.random.default_rng(shape)
        x = rng.standard_normal(shape)
        sizes = oracle.output_sizes(shape, strides, **options)
        g = rng.standard_normal((*shape[: -len(sizes)], *sizes))
        reference = oracle.diff_stride(x, strides, g, **options)
        limit = 1e-14 * reference.bound
        for method in ("matmul", "fft"):
            found = []
            for framework in map(registry.get, FRAMEWORKS):
                arrays = [
                    framework.backend.from_host(np.array(values), "float64")
                    for values in (x, strides, g)
                ]
                _, pullback = framework.with_pullback.diff_stride(
                    *arrays[:2], method=method, **options
                )
                found.append(framework.backend.to_host(pullback(arrays[2])[1]))
            assert np.all(np.abs(found[0] - found[1]) <= limit), (shape, strides, method)
            for dstrides in found:
                error = np.abs(dstrides - reference.dstrides)
                assert np.all(error <= limit), (shape, strides, method)
