"""Backends are found by name or by an array, and imported only then."""

import numpy as np
import pytest
import torch
from diffstride_backends import registry


def test_framework_of_an_array():
    assert registry.framework_of(np.ones(2)).name == "numpy"
    assert registry.framework_of(torch.ones(2)).name == "torch"
    with pytest.raises(TypeError, match="array must belong to one of numpy, torch, jax"):
        registry.framework_of([1.0])


def test_names():
    assert registry.names() == ("numpy", "torch", "jax", "cupy")
    assert registry.is_installed("numpy")
    with pytest.raises(
        ValueError, match="name must be one of numpy, torch, jax, cupy, got 'tensorly'"
    ):
        registry.get("tensorly")
