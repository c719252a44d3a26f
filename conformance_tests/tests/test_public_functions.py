"""The functions of every adapter, as objects: their names, their copies, their pickles."""

import copy
import importlib
import inspect
import pickle

import numpy as np
import pytest
import torch
from diffstride_backends import functional, registry
from diffstride_torch import SpectralPool2d, diff_stride, freeze

FUNCTIONS = (
    "diff_stride",
    "conv_diff_stride",
    "spectral_resize",
    "spectral_pool",
    "complexity",
    "output_sizes",
    "authors_strides",
)
NAMES = [(adapter, name) for adapter in ("numpy", "torch", "jax") for name in FUNCTIONS]
NAMES += [("numpy", f"{name}_with_pullback") for name in FUNCTIONS[:-2]]


def public(adapter, name):
    return getattr(importlib.import_module(f"diffstride_{adapter}"), name)


def names_of(function):
    return function.__module__, function.__qualname__, function.__name__


@pytest.mark.parametrize(("adapter", "name"), NAMES)
def test_a_function_is_copied_and_pickled_by_its_name(adapter, name):
    function = public(adapter, name)
    assert names_of(function) == (f"diffstride_{adapter}.functional", name, name)
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(function, protocol)) is function
    assert copy.copy(function) is copy.deepcopy(function) is function


@pytest.mark.parametrize(("adapter", "name"), NAMES)
def test_a_function_has_the_signature_of_its_method(adapter, name):
    method = getattr(registry.get(adapter).functional, name.removesuffix("_with_pullback"))
    assert inspect.signature(public(adapter, name)) == inspect.signature(method)


def test_a_function_with_a_pullback_says_so():
    method = functional.Functional.diff_stride
    assert "pullback(g)" in public("numpy", "diff_stride_with_pullback").__doc__
    assert public("numpy", "diff_stride").__doc__ == method.__doc__


@pytest.mark.parametrize("adapter", ["torch", "jax"])
def test_the_switch_is_copied_and_pickled_by_its_name(adapter):
    switch = public(adapter, "plain_autodiff")
    assert pickle.loads(pickle.dumps(switch)) is copy.deepcopy(switch) is switch
    with switch():
        assert registry.get(adapter).plain_autodiff.enabled


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.pool = SpectralPool2d(2.0)
        self.resize = diff_stride

    def forward(self, x):
        return self.resize(self.pool(x), 2.3)


def test_a_module_that_holds_a_function_is_copied_averaged_and_frozen():
    network, x = Network(), torch.sin(torch.arange(1024.0)).reshape(1, 1, 32, 32)
    copies = [copy.deepcopy(network), pickle.loads(pickle.dumps(network))]
    copies += [torch.optim.swa_utils.AveragedModel(network), freeze(network, x)]
    for made in copies:
        torch.testing.assert_close(made(x), network(x))


def test_a_layer_is_copied_after_a_forward_pass():
    layer, x = public("numpy", "DiffStride")(2.3), np.sin(np.arange(256.0)).reshape(16, 16)
    y = layer.forward(x)
    for made in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        with pytest.raises(RuntimeError, match="before forward"):
            made.backward(y)
        np.testing.assert_array_equal(made.forward(x), y)
    layer.backward(y)
