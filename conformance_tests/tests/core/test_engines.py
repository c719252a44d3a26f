"""Both engines, and what is kept between calls."""

import copy
import dataclasses
import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import scipy.signal
from diffstride_backends import registry
from diffstride_conformance import oracle
from support.core_plans import CLEAN, FRAMEWORKS, make_plan, numpy_with_pullback

from diffstride_core import bases, byte_cache, kernels, resample
from diffstride_core.plan import steps_of
from diffstride_core.planning import (
    fft_from_size,
    is_smooth,
    plan_resize,
)
from diffstride_core.testing import cache_info, cache_limit, clear_caches

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


@pytest.mark.parametrize("convention", CLEAN)
def test_engines_agree(convention):
    rng = np.random.default_rng(6)
    for _ in range(60):
        rank = int(rng.integers(1, 5))
        shape = rng.integers(1, 30 if rank < 4 else 8, size=rank).tolist()
        strides = rng.uniform(1, 5, size=rank)
        options = {"axes": tuple(rng.permutation(rank).tolist()), "convention": convention}
        if rng.random() < 0.3:
            options["sizes"] = rng.integers(1, 40, size=rank).tolist()
        x = rng.standard_normal(shape)
        results = []
        for method in ("matmul", "fft"):
            y, pullback = numpy_with_pullback.diff_stride(x, strides, method=method, **options)
            g = np.cos(np.arange(y.size)).reshape(y.shape)
            results.append((y, *pullback(g)))
        for by_matrix, by_fft in zip(*results, strict=True):
            scale = max(1e-3, np.max(np.abs(by_matrix)))
            np.testing.assert_allclose(by_fft, by_matrix, rtol=0, atol=1e-12 * scale)


@pytest.mark.parametrize("use_fft", [False, True])
@pytest.mark.parametrize("name", FRAMEWORKS)
def test_spectral_resize_against_scipy(name, use_fft):
    framework = registry.get(name)
    rng = np.random.default_rng(7)
    for size in range(1, 21):
        x = rng.standard_normal((2, size, 3))
        array = framework.backend.from_host(x, "float64")
        for target in range(1, 21):
            plan = plan_resize((-2,), (size,), (target,))
            axes = (dataclasses.replace(plan.axes[0], use_fft=use_fft),)
            y = framework.functional.resample(dataclasses.replace(plan, axes=axes), array)
            expected = scipy.signal.resample(x, target, axis=1)
            np.testing.assert_allclose(framework.backend.to_host(y), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_spectral_resize_of_two_axes_by_ffts(name):
    framework = registry.get(name)
    x = np.random.default_rng(8).standard_normal((2, 8, 9))
    array = framework.backend.from_host(x, "float64")
    for targets in itertools.product((1, 2, 5, 6, 8, 9, 12, 13), repeat=2):
        plan = plan_resize((-2, -1), (8, 9), targets)
        axes = tuple(dataclasses.replace(axis, use_fft=True) for axis in plan.axes)
        plan = dataclasses.replace(plan, axes=axes, steps=steps_of(axes))
        expected = x
        for axis, target in zip((1, 2), targets, strict=True):
            expected = scipy.signal.resample(expected, target, axis=axis)
        y = framework.backend.to_host(framework.functional.resample(plan, array))
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("convention", CLEAN)
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_gradient_of_a_single_frequency_in_float32(convention, method):
    """The worst case: the terms of all sums have one sign, and a single row averages nothing."""
    rng = np.random.default_rng(9)
    options = {"axes": (-1,), "convention": convention}
    worst = 0.0
    for stride in rng.uniform(1.5, 4.0, 30):
        size = int(rng.integers(64, 512))
        edge = size / (2 * stride)
        k = int(edge + rng.uniform(0, 4) if convention == "paper" else edge * rng.uniform(0.8, 1))
        phase = rng.uniform(0, 2 * np.pi)
        m = registry.get("numpy").functional.output_sizes(size, stride, **options)[0]
        x, g = (
            np.cos(2 * np.pi * k * np.arange(n) / n + phase)[None].astype(np.float32)
            for n in (size, m)
        )
        _, pullback = numpy_with_pullback.diff_stride(x, stride, method=method, **options)
        exact = oracle.diff_stride(x.astype(np.float64), stride, g.astype(np.float64), **options)
        error = abs(float(pullback(g)[1]) - exact.dstrides) / exact.bound
        worst = max(worst, float(np.max(error)))
    assert worst <= 1e-6


def test_auto_chooses_the_engine_by_the_longer_side_of_each_axis():
    height, width = fft_from_size(-2), fft_from_size(-1)
    for sizes, expected in (
        ((height, width - 1), [True, False]),
        ((height - 1, width), [False, True]),
    ):
        plan = make_plan(sizes, (2.0, 2.0))
        assert [axis.use_fft for axis in plan.axes] == expected
        plan = plan_resize((-2, -1), (10, 10), sizes)
        assert [axis.use_fft for axis in plan.axes] == expected
    for method, expected in (("matmul", False), ("fft", True)):
        plan = make_plan((height, 8), (2.0, 2.0), method=method)
        assert {axis.use_fft for axis in plan.axes} == {expected}
    plan = make_plan((height, width), (2.0, 2.0), convention="tensorflow")
    assert not any(axis.use_fft for axis in plan.axes)


def test_auto_multiplies_sizes_that_transform_slowly():
    for size, expected in ((509, False), (512, True), (646, False), (715, True), (1021, False)):
        (axis,) = make_plan((size,), (2.0,)).axes
        assert axis.use_fft == expected, size
    assert make_plan((1031,), (2.0,)).axes[0].use_fft
    smooth = [size for size in range(1, 200) if is_smooth(size)]
    assert smooth == [size for size in range(1, 200) if max(prime_factors(size)) <= 13]


def prime_factors(size):
    factors, p = [1], 2
    while size > 1:
        while size % p == 0:
            factors.append(p)
            size //= p
        p += 1
    return factors


def test_long_axes_are_resized_in_one_step():
    plan = make_plan((600, 8, 700), (2.0, 2.0, 2.0))
    assert [[plan.axes[i].axis for i in step] for step in plan.steps] == [[-2], [-3, -1]]
    plan = make_plan((8, 8, 8, 8), (2.0,) * 4, method="fft")
    assert [len(step) for step in plan.steps] == [4]
    assert len(plan.by_matrices.steps) == 4


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize(
    ("shape", "options", "expected"),
    [
        ((2, 21, 18), {"method": "fft"}, set()),
        ((2, 21, 18), {"method": "matmul"}, {21, 18}),
        ((fft_from_size(-2), 18), {}, {18}),
        ((fft_from_size(-2), fft_from_size(-1)), {}, set()),
    ],
)
def test_fft_axes_build_no_table(monkeypatch, name, shape, options, expected):
    framework = registry.get(name)
    asked = set()

    def recorded(basis, original=bases.tables):
        asked.add(basis.size)
        return original(basis)

    monkeypatch.setattr(bases, "tables", recorded)
    clear_caches()
    x = framework.backend.from_host(np.ones(shape), "float64")
    y, pullback = framework.with_pullback.diff_stride(x, (2.0, 2.0), **options)
    pullback(y)
    assert asked == expected


@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_a_single_image_is_resized_in_blocks_of_its_channels(monkeypatch, method):
    x, strides = np.random.default_rng(3).standard_normal((1, 1, 6, 8, 9)), np.array([1.7, 2.2])

    def results():
        y, pullback = numpy_with_pullback.diff_stride(x, strides, method=method)
        return (y, *pullback(np.cos(y)))

    expected, blocks = results(), []

    def recorded(ops, function, shape, arrays, original=resample.in_blocks):
        blocks.append(arrays[0].shape)
        return original(ops, function, shape, arrays)

    monkeypatch.setattr(resample, "in_blocks", recorded)
    monkeypatch.setattr(kernels, "BLOCK_ELEMENTS", 144)
    for found, wanted in zip(results(), expected, strict=True):
        assert found.shape == wanted.shape
        np.testing.assert_allclose(found, wanted, rtol=0, atol=1e-13)
    assert blocks == [(6, 8, 9)] * 2


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_operators_are_made_anew_only_for_new_strides(name):
    framework = registry.get(name)
    clear_caches()
    before = cache_info()["host.factors"].misses

    def made():
        return cache_info()["host.factors"].misses - before

    x = framework.backend.from_host(np.ones((3, 40, 36)), "float64")
    strides = framework.backend.from_host(np.array([2.0, 1.5]), "float64")
    for _ in range(3):
        y, pullback = framework.with_pullback.diff_stride(x, strides)
        pullback(y)
    assert made() == 2  # the matrices of all axes, and their ramps
    framework.with_pullback.diff_stride(x, strides * 1.001)
    assert made() == 3


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_operators_are_kept_within_bytes(name):
    functional, backend = registry.get(name).functional, registry.get(name).backend
    x, weight = (backend.from_host(np.ones(s), "float32") for s in ((1, 1, 1000), (1, 1, 3)))
    clear_caches()
    caches = ["host.factors", *(["torch_backend.factors"] if name == "torch" else [])]
    with ExitStack() as stack:
        for cache in caches:
            assert cache_info()[cache].most_bytes <= 2**26
            stack.enter_context(cache_limit(cache, 2**24))
        for step in range(5):
            functional.conv_diff_stride(x, weight, 2 + 1e-4 * step, method="fused")
            for cache in caches:
                assert 2**22 < cache_info()[cache].nbytes < 2**24
    assert cache_info()["host.factors"].entries < 5


def test_tables_are_kept_but_not_for_ever():
    basis = bases.AxisBasis(13, 6, bases.half_spectrum)
    assert bases.tables(basis)[0] is bases.tables(dataclasses.replace(basis))[0]

    clear_caches()
    backends = [registry.get(name).backend for name in ("torch", "jax")]
    likes = [backend.from_host(np.ones(1), "float32") for backend in backends]
    caches = ("bases.tables", "torch_backend.tables", "jax_backend.tables")
    most = max(cache_info()[cache].most_entries for cache in caches)
    for size in range(1, 2 * most):
        for backend, like in zip(backends, likes, strict=True):
            backend.tables(bases.AxisBasis(size, 1, first_bin), like)
    for cache in caches:
        info = cache_info()[cache]
        assert info.most_bytes <= 2**26
        assert info.entries == info.most_entries
    clear_caches()
    assert all(cache_info()[cache].entries == 0 for cache in caches)


def first_bin(size, output_size):
    zero = np.zeros(1, np.int64)
    return zero, zero, np.ones(1)


def counted_cache(**limits):
    calls = []

    def function(size, name="a"):
        calls.append((size, name))
        return np.zeros(size, np.uint8), (np.zeros(size, np.uint8),)

    return byte_cache.ByteBoundCache(function, **limits), calls


def test_a_cache_keeps_what_was_used_last_within_its_bytes():
    cache, calls = counted_cache(most_bytes=100)
    first = cache(20)
    assert cache(20) is first
    assert cache(20, "b") is not first
    assert (len(cache), cache.nbytes) == (2, 80)
    cache(20)
    cache(10)
    assert (len(cache), cache.nbytes) == (3, 100)
    cache(11)  # in place of (20, "b"), used least recently
    assert (len(cache), cache.nbytes) == (3, 82)
    assert cache(20) is first
    assert calls == [(20, "a"), (20, "b"), (10, "a"), (11, "a")]


def test_a_cache_keeps_nothing_that_is_larger_than_all_it_may():
    cache, calls = counted_cache(most_bytes=100)
    kept = cache(50)
    assert cache(51) is not cache(51)
    assert cache(50) is kept
    assert calls == [(50, "a"), (51, "a"), (51, "a")]
    assert cache.nbytes == 100


def test_a_cache_bounds_its_entries_and_can_be_cleared():
    cache, calls = counted_cache(most_entries=3)
    for size in range(5):
        cache(size)
    assert len(cache) == 3
    cache.clear()
    assert (len(cache), cache.nbytes) == (0, 0)
    cache(4)
    assert len(calls) == 6


def test_a_cache_counts_arrays_once_and_all_of_what_a_view_keeps():
    array = np.zeros(30, np.uint8)
    cache = byte_cache.ByteBoundCache(lambda: (array, array, (array[:3], array[3:][::2])))
    cache()
    assert cache.nbytes == 30


def test_a_function_with_a_cache_is_copied_and_pickled_by_its_name():
    assert pickle.loads(pickle.dumps(bases.tables)) is copy.deepcopy(bases.tables) is bases.tables


def test_a_cache_in_threads():
    cache, _ = counted_cache(most_bytes=400)

    def work(seed):
        for size in np.random.default_rng(seed).integers(1, 40, 300).tolist():
            assert len(cache(size)[0]) == size

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))
    assert cache.nbytes == sum(size for _, _, size in cache._entries.values()) <= 400
