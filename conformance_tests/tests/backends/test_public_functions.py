"""The functions of every adapter, as objects: their names, their copies, their pickles."""

import copy
import importlib
import inspect
import pickle

import numpy as np
import pytest
import torch
from diffstride_backends import registry
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


ARRAYS = {"numpy": "HostArray", "torch": "torch.Tensor", "jax": "jax.Array"}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_adapters_have_one_signature_with_their_own_arrays(name):
    signatures = {
        adapter: str(inspect.signature(public(adapter, name))).replace(array, "Array")
        for adapter, array in ARRAYS.items()
    }
    assert len(set(signatures.values())) == 1
    if name not in ("output_sizes", "authors_strides"):
        annotation = inspect.signature(public("torch", name)).return_annotation
        assert annotation == "torch.Tensor"


@pytest.mark.parametrize("name", FUNCTIONS[:-2])
def test_a_function_with_a_pullback_takes_the_same_arguments(name):
    plain = inspect.signature(public("numpy", name)).parameters
    parameters = inspect.signature(public("numpy", f"{name}_with_pullback")).parameters
    named = {key: p.default for key, p in parameters.items() if p.kind != p.VAR_KEYWORD}
    assert named.items() <= {key: p.default for key, p in plain.items()}.items()


@pytest.mark.parametrize(("adapter", "name"), NAMES)
def test_a_docstring_says_what_this_form_returns(adapter, name):
    text = public(adapter, name).__doc__
    assert "ARRAY" not in text
    assert ("pullback : callable" in text) == name.endswith("_with_pullback")
    if name not in ("output_sizes", "authors_strides"):
        array = {"numpy": "numpy.ndarray", "torch": "torch.Tensor", "jax": "jax.Array"}[adapter]
        returned = text[text.index("Returns\n") :]
        assert array in returned.split("\n")[2]


@pytest.mark.parametrize("adapter", ARRAYS)
@pytest.mark.parametrize(
    ("name", "arguments"), [("diff_stride", (None, 2.0)), ("conv_diff_stride", (None, None, 2.0))]
)
def test_an_unknown_option_is_refused_by_the_function_that_was_called(adapter, name, arguments):
    with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword.*'smothness'"):
        public(adapter, name)(*arguments, smothness=1.0)


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
