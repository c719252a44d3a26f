"""Every adapter refuses the same wrong calls, with the same error in the same words."""

import re
import warnings

import numpy as np
import pytest
from diffstride_backends import registry
from diffstride_conformance.bad_input import X, all_bad_calls

from diffstride_core import NothingToCropWarning

FRAMEWORKS = ("numpy", "torch")
CALLS = all_bad_calls()


def by_name(call):
    return call.name


def refusal(call, framework, arguments, options):
    """Make the call and return the exception it raises."""
    # Where a warning is an error, it must not be what stops a wrong call.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingToCropWarning)
        try:
            result = getattr(framework.functional, call.operation)(*arguments, **options)
        except Exception as error:
            return error
    pytest.fail(f"accepted: {result}")


def snapshot(value, backend):
    """Describe a value down to the bits of its arrays."""
    if isinstance(value, list | tuple):
        return type(value), [snapshot(entry, backend) for entry in value]
    if isinstance(value, dict):
        return [(key, snapshot(entry, backend)) for key, entry in value.items()]
    if backend.is_array(value):
        value = backend.to_host(value)
    if isinstance(value, np.ndarray):
        return value.dtype, value.shape, value.tobytes()
    return repr(value)


@pytest.mark.parametrize("name", FRAMEWORKS)
@pytest.mark.parametrize("call", CALLS, ids=by_name)
def test_refused(call, name):
    framework = registry.get(name)
    arguments, options = call.build(framework)
    before = snapshot([arguments, options], framework.backend)
    error = refusal(call, framework, arguments, options)
    assert type(error) is call.error, repr(error)
    message = neutral(str(error))
    assert [text for text in call.mentions if text not in message] == [], message
    assert snapshot([arguments, options], framework.backend) == before


def neutral(message):
    """Drop the framework's own names of its dtypes and of its array."""
    return re.sub(r"\btorch\.(?!Tensor)", "", message)


@pytest.mark.parametrize("call", CALLS, ids=by_name)
def test_refused_in_the_same_words(call):
    messages = set()
    for name in FRAMEWORKS:
        framework = registry.get(name)
        arguments, options = call.build(framework)
        message = neutral(str(refusal(call, framework, arguments, options)))
        messages.add(re.sub(r"\b(numpy\.ndarray|torch\.Tensor)\b", "ARRAY", message))
    assert len(messages) == 1, messages


@pytest.mark.parametrize("name", FRAMEWORKS)
def test_the_calls_are_good_but_for_what_is_wrong_with_them(name):
    framework = registry.get(name)
    functional, backend = framework.functional, framework.backend
    x = backend.from_host(X.values, X.dtype)
    good = [2, 2.0, [2.0, 2.0], np.full(2, 2.0), np.array(2.0), np.float32(2)]
    good += [backend.from_host(np.full(2, 2.0), dtype) for dtype in ("float32", "float64")]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NothingToCropWarning)
        for strides in good:
            for convention in ("paper", "relative", "tensorflow"):
                for options in ({}, {"sizes": (6, 6)}, {"limits": (1, 3.0)}, {"cropping": False}):
                    functional.diff_stride(x, strides, convention=convention, **options)
                functional.spectral_pool(x, strides, convention=convention)
            assert len(functional.output_sizes(x.shape, strides)) == 2
            assert len(functional.authors_strides(x.shape, strides)) in (1, 2)
            functional.complexity([strides, strides])
        for sizes in ((6, 5), [np.int64(6), 5], (n for n in (6, 5))):
            assert tuple(functional.spectral_resize(x, sizes).shape) == (2, 6, 5)


def test_every_function_has_calls_to_refuse():
    assert {call.operation for call in CALLS} == {
        "diff_stride",
        "output_sizes",
        "spectral_resize",
        "spectral_pool",
        "complexity",
        "authors_strides",
    }
