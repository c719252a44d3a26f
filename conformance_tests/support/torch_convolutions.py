"""Cases for the tests of convolutions with learnt strides."""

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv1d,
    DiffStrideConv2d,
    DiffStrideConv3d,
    conv_diff_stride,
)
from support.torch_values import loss, random, strides_of
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

METHODS = ("fused", "separate")

each_method = pytest.mark.parametrize("method", METHODS)
# Of the compiler's own.
while_compiling = pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)

WINDOW = {"smoothness": 0.5}
# Input, weight, strides, and how it is convolved and resized.
CASES = {
    "2d": ((2, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "groups-dilated-circular": (
        (2, 4, 12, 15),
        (6, 2, 3, 3),
        (1.7, 2.4),
        {"groups": 2, "dilation": (1, 2), "padding_mode": "circular", "convention": "paper"},
    ),
    "depthwise": (
        (2, 3, 13, 15),
        (6, 1, 5, 1),
        (2.6, 1.3),
        {"groups": 3, "norm": "ortho", **WINDOW},
    ),
    "depthwise-circular-backward": (
        (2, 3, 12, 15),
        (3, 1, 1, 7),
        (1.7, 2.4),
        {"groups": 3, "padding_mode": "circular", "norm": "backward", **WINDOW},
    ),
    "tensorflow": (
        (2, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), {"convention": "tensorflow", "smoothness": 1.5}
    ),
    "shared": ((2, 3, 12, 14), (4, 3, 3, 3), (2.6,), WINDOW),
    "masked": ((2, 3, 9, 10), (4, 3, 3, 3), (1.6, 1.8), {"cropping": False, **WINDOW}),
    "unbounded": ((2, 3, 9, 10), (4, 3, 3, 3), (1.13, 1.9), {"limits": None, **WINDOW}),
    "enlarged": ((2, 3, 9, 10), (4, 3, 3, 3), (1.7, 1.9), {"sizes": (16, 7), **WINDOW}),
    "beyond-the-map": ((2, 3, 9, 10), (4, 3, 3, 5), (1.7, 1.9), {"dilation": (20, 4), **WINDOW}),
    "circular-as-far-as-the-map": (
        (2, 3, 9, 10),
        (4, 3, 3, 3),
        (1.7, 1.9),
        {"dilation": (9, 10), "padding_mode": "circular", **WINDOW},
    ),
    "pointwise": ((2, 3, 12, 15), (4, 3, 1, 1), (1.7, 2.4), WINDOW),
    # Where even the constant's frequency counts as on the ramp, so that the bias has a slope.
    "ramp-of-all": (
        (2, 3, 9, 10),
        (4, 3, 3, 3),
        (1.7, 1.9),
        {"convention": "paper", "smoothness": 1e6, "limits": None},
    ),
    "channels-last": (
        (2, 12, 15, 4),
        (6, 2, 3, 3),
        (1.7, 2.4),
        {"groups": 2, "channels_last": True, **WINDOW},
    ),
    "no-batch": ((3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "two-axes-of-batch": ((2, 1, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "empty-batch": ((0, 3, 12, 15), (4, 3, 3, 3), (1.7, 2.4), WINDOW),
    "1d": ((2, 3, 13), (4, 3, 5), (1.7,), {"dilation": 2, **WINDOW}),
    "1d-channels-last": (
        (13, 4), (4, 1, 3), (1.7,), {"groups": 4, "channels_last": True, **WINDOW}
    ),
    "3d": (
        (2, 4, 6, 8, 7),
        (2, 2, 3, 1, 5),
        (1.2, 1.7, 1.9),
        {"groups": 2, "dilation": (1, 3, 1), "smoothness": 1.0},
    ),
    "3d-circular": (
        (1, 2, 6, 8, 7),
        (3, 2, 1, 3, 3),
        (1.2, 1.7, 1.9),
        {"padding_mode": "circular", "smoothness": 1.0},
    ),
}  # fmt: skip


def tensors(shape, weight_shape, strides, *, dtype=torch.float64, requires_grad=True):
    """Return x, weight, strides and bias."""
    x, weight = random(*shape), random(*weight_shape, seed=1)
    bias = random(weight_shape[0], seed=2)
    made = [x.to(dtype), weight.to(dtype), strides_of(*strides), bias.to(dtype)]
    return [tensor.requires_grad_(requires_grad) for tensor in made]


def case(name, method):
    """Return the tensors of a case, and a function of them."""
    *shapes, options = CASES[name]

    def f(x, weight, s, bias=None):
        return conv_diff_stride(x, weight, s, bias=bias, method=method, **options)

    return tensors(*shapes), f


def value_and_gradients(f, *arrays):
    y = f(*arrays)
    return y, *torch.autograd.grad(loss(y), arrays)


def assert_near(actual, expected, tolerance=1e-12):
    """Compare tensors to within a fraction of the largest entry."""
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    if expected.numel():
        limit = tolerance * expected.abs().max()
        torch.testing.assert_close(actual, expected, rtol=0, atol=limit.item())


class Products(TorchDispatchMode):
    """Counts the multiply-adds of matrix products, and convolutions that are not pointwise."""

    def __init__(self):
        super().__init__()
        self.multiply_adds, self.convolutions = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.convolutions += name == "convolution" and max(args[1].shape[2:]) > 1
        if name in ("mm", "bmm", "baddbmm"):
            self.multiply_adds += result.numel() * args[-1].shape[-2]
        return result


def convolves(f):
    """Return whether a function calls a convolution of PyTorch's own."""
    with torch.no_grad(), Products() as products:
        f()
    return products.convolutions > 0


RANKS = {
    1: (nn.Conv1d, DiffStride1d, DiffStrideConv1d),
    2: (nn.Conv2d, DiffStride2d, DiffStrideConv2d),
    3: (nn.Conv3d, DiffStride3d, DiffStrideConv3d),
}
# Rank, what the convolution is made with, and what the layer behind it.
MODULES = {
    "1d": (1, {"kernel_size": 5, "dilation": 2}, {"smoothness": 0.5}),
    "2d": (2, {"kernel_size": 3}, {"convention": "paper"}),
    "groups": (
        2,
        {"kernel_size": (3, 5), "groups": 2, "dilation": (2, 1), "bias": False},
        {"shared": True, "norm": "ortho", "smoothness": 0.5},
    ),
    "circular": (
        2,
        {"kernel_size": (1, 3), "padding_mode": "circular"},
        {"limits": (None, 1.4), "cropping": False},
    ),
    "reflect": (2, {"kernel_size": 3, "padding_mode": "reflect"}, {"smoothness": 0.5}),
    "replicate": (1, {"kernel_size": 3, "padding_mode": "replicate"}, {"smoothness": 0.5}),
    "pointwise": (2, {"kernel_size": 1}, {"smoothness": 0.5}),
    "3d": (3, {"kernel_size": (3, 1, 3)}, {"smoothness": 1.0, "limits": None}),
}
each_module = pytest.mark.parametrize("name", MODULES)
SIZES = (14, 15, 10)


def pair(name, method="auto", dtype=torch.float64, placement="after"):
    """Return a convolution with strides to learn, and one and a layer in a row of equal values."""
    rank, conv_options, pool_options = MODULES[name]
    own, layer, conv = RANKS[rank]
    stride = 1.7 if "shared" in pool_options else (1.7, 2.25, 1.5)[:rank]
    options = {"dtype": dtype, **pool_options}
    torch.manual_seed(3)
    placed = {"method": method, "placement": placement}
    module = conv(4, 6, stride=stride, **placed, **conv_options, **options)
    torch.manual_seed(3)
    row = own(4, 6, padding="same", dtype=dtype, **conv_options), layer(stride, **options)
    return module, nn.Sequential(*(row if placement == "after" else reversed(row)))


def maps(name, *batch, dtype=torch.float64):
    return random(*batch, 4, *SIZES[: MODULES[name][0]], dtype=dtype)


def with_gradients(module, x):
    """Return an output, and the gradients in the input and all parameters."""
    x = x.detach().requires_grad_()
    y = module(x)
    return y, *torch.autograd.grad(loss(y), (x, *module.parameters()))


def make(**options):
    options = {"placement": "after", **options}
    torch.manual_seed(0)
    return DiffStrideConv2d(3, 4, **{"kernel_size": 3, "stride": 2.5, **options})
