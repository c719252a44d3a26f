"""The implementations that tests are parametrised over, and what happens where one is missing."""

import os
from functools import cache

import pytest
from diffstride_conformance import frameworks
from diffstride_conformance.implementation import load

EAGER = ("numpy", "torch", "array-api-strict")
"""Those that take no time to compile a case."""

CONVOLVING = ("torch", "jax")
"""Those with a convolution of their own, which alone offer the method "separate"."""


def skip(name, reason):
    """Skip a test for want of a backend, or fail it where the environment requires the backend."""
    required = os.environ.get("DIFFSTRIDE_REQUIRE_BACKENDS", "").replace(",", " ").split()
    (pytest.fail if name in required else pytest.skip)(f"{name}: {reason}")


@cache
def subject(name):
    """Return an implementation; skip the test, or fail it if CI requires it, where it is absent."""
    if name == "dask":
        pytest.importorskip("dask.array")
        return load("diffstride_conformance.examples.dask_arrays:Backend")
    reason = frameworks.unavailable(name)
    if reason is not None:
        skip(name, reason)
    return frameworks.get(name)
