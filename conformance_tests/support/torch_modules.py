"""Layers and rules for the tests of the PyTorch modules."""

from functools import partial

import torch
from diffstride_conformance import oracle
from diffstride_torch import (
    DiffStride2d,
    diff_stride,
    modules,
)
from support import torch_values
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

R = 0.5

PAPER = {"convention": "paper", "smoothness": 2.0}


random = partial(torch_values.random, dtype=torch.float32)


def layer(stride=(1.7, 2.4), **options):
    return DiffStride2d(stride, **{"smoothness": R, **options})


def set_strides(module, *values):
    with torch.no_grad():
        module.strides.copy_(torch.tensor(values, dtype=torch.float64))


assert_close = torch_values.assert_close


def assert_right(module, x=None):
    """Assert that a forward pass has the size and values of the strides and leaves them alone."""
    x = random(2, 24, 20) if x is None else x
    strides, version = module.strides.detach().clone(), module.strides._version
    y = module(x)
    sizes = oracle.output_sizes(x.shape, strides.double().numpy(), smoothness=R)
    assert tuple(y.shape) == (*x.shape[:-2], *sizes)
    assert torch.equal(y, diff_stride(x, strides, smoothness=R))
    assert torch.equal(module.strides, strides)
    assert module.strides._version == version
    return y


def use_accelerator_rule(monkeypatch):
    monkeypatch.setattr(modules, "values_token", modules._Version)


class Reads:
    """Lists the operations by which values come to the host while it is entered."""

    FUNCTIONS = frozenset(
        ("tolist", "item", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__")
    )

    def __init__(self):
        self.names = []
        names, functions = self.names, self.FUNCTIONS

        class Functions(TorchFunctionMode):
            def __torch_function__(self, func, types, args=(), kwargs=None):
                if getattr(func, "__name__", None) in functions:
                    names.append(func.__name__)
                return func(*args, **(kwargs or {}))

        class Dispatched(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                if func is torch.ops.aten._local_scalar_dense.default:
                    names.append("_local_scalar_dense")
                return func(*args, **(kwargs or {}))

        self._modes = Functions(), Dispatched()

    def __enter__(self):
        for mode in self._modes:
            mode.__enter__()
        return self.names

    def __exit__(self, *exception):
        for mode in reversed(self._modes):
            mode.__exit__(*exception)


def two_layers(first, second, **options):
    return torch.nn.Sequential(layer(first, **options), layer(second, **options))
