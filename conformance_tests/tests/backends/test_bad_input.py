"""Every adapter refuses the same wrong calls, with the same error in the same words."""

import warnings

import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance.bad_input import BIAS, IMAGES, WEIGHT, X, all_bad_calls
from diffstride_conformance.refusals import possible_calls, refusal
from support.subjects import EAGER, subject

from diffstride_core import NothingToCropWarning

NAMES = (*EAGER, "jax")
CALLS = all_bad_calls()


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.name)
def test_refused_in_the_same_words(call):
    possible = [name for name in NAMES if call.name in names_of_possible_calls(name)]
    assert {"numpy", "torch", "jax"} <= {*possible}
    assert len({refusal(subject(name), call) for name in possible}) == 1


def names_of_possible_calls(name):
    return {call.name for call in possible_calls(subject(name))}


def test_few_calls_are_impossible():
    # Those with arrays in half precision, which the standard does not know.
    for name in NAMES:
        assert len(names_of_possible_calls(name)) > 0.97 * len(CALLS)


@pytest.mark.parametrize("name", ["numpy", "torch"])
def test_the_calls_are_good_but_for_what_is_wrong_with_them(name):
    framework = registry.get(name)
    functional, backend = framework.functional, framework.backend
    x, images, weight, bias = (
        backend.from_host(array.values, array.dtype) for array in (X, IMAGES, WEIGHT, BIAS)
    )
    good = [2, 2.0, [2.0, 2.0], np.full(2, 2.0), np.array(2.0), np.float32(2)]
    good += [backend.from_host(np.full(2, 2.0), dtype) for dtype in ("float32", "float64")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingToCropWarning)
        for strides in good:
            for convention in ("nominal", "paper", "tensorflow"):
                for options in ({}, {"sizes": (6, 6)}, {"limits": (1, 3.0)}, {"cropping": False}):
                    options = {**options, "convention": convention}
                    functional.diff_stride(x, strides, **options)
                    functional.conv_diff_stride(images, weight, strides, bias=bias, **options)
                functional.spectral_pool(x, strides, convention=convention)
            assert len(functional.output_sizes(x.shape, strides)) == 2
            assert len(functional.authors_strides(x.shape, strides)) in (1, 2)
            functional.complexity([strides, strides])
        for sizes in ((6, 5), [np.int64(6), 5], (n for n in (6, 5))):
            assert tuple(functional.spectral_resize(x, sizes).shape) == (2, 6, 5)


def test_every_function_has_calls_to_refuse():
    assert {call.operation for call in CALLS} == {
        "diff_stride",
        "conv_diff_stride",
        "output_sizes",
        "spectral_resize",
        "spectral_pool",
        "complexity",
        "authors_strides",
    }
