"""The PyTorch modules: parameters and how they change, plans and when they are made, training."""

import copy
import io
import math
import pickle
from collections import OrderedDict
from functools import partial

import numpy as np
import pytest
import torch
from diffstride_backends.torch_backend import BACKEND, FUNCTIONAL
from diffstride_conformance import oracle
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    DiffStrideConv2d,
    SpectralPool1d,
    SpectralPool2d,
    SpectralPool3d,
    complexity_penalty,
    diff_stride,
    freeze,
    modules,
    output_sizes,
    param_groups,
    project_strides,
    spectral_resize,
)
from torch import nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from diffstride_core import NothingToCropWarning, bases, plan_cache
from diffstride_core.conventions import CONVENTIONS, Nominal
from diffstride_core.plan import AxisPlan, Bounds
from diffstride_core.window import clipped_ramp

# Dynamo's own way of tracing any autograd function, up to 2.13 at least.
COMPILER_WARNING = (
    r"ignore:<class 'torch\.autograd\.function\.Function'> should not be instantiated:"
    "DeprecationWarning"
)

R = 0.5
"""A smoothness other than the default."""

PAPER = {"convention": "paper", "smoothness": 2.0}
"""Strides with floors above 1, and a ramp that leaves small maps something to crop."""


def random(*shape, dtype=torch.float32, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=dtype, generator=generator, **options)


def layer(stride=(1.7, 2.4), **options):
    return DiffStride2d(stride, **{"smoothness": R, **options})


def set_strides(module, *values):
    with torch.no_grad():
        module.strides.copy_(torch.tensor(values, dtype=torch.float64))


def assert_close(actual, expected, tolerance=1e-12):
    torch.testing.assert_close(actual, expected, rtol=tolerance, atol=tolerance)


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


@pytest.fixture(params=["host", "accelerator"])
def rule(request, monkeypatch):
    """How a module knows that its strides have changed: that of a CPU, and that of a GPU."""
    if request.param == "accelerator":
        use_accelerator_rule(monkeypatch)
    return request.param


@pytest.fixture
def accelerator(monkeypatch):
    use_accelerator_rule(monkeypatch)


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


@pytest.fixture
def plans(monkeypatch):
    """Return the list of the strides that plans were made for."""
    made, make = [], plan_cache.plan_diff_stride

    def counted(settings, axes, sizes, strides, **options):
        made.append(strides)
        return make(settings, axes, sizes, strides, **options)

    monkeypatch.setattr(plan_cache, "plan_diff_stride", counted)
    return made


# --- The parameter and its copies ---------------------------------------------------------------


def test_the_only_parameter_is_the_strides():
    module = layer()
    assert list(module.state_dict()) == ["strides", "_extra_state"]
    assert list(dict(module.named_parameters())) == ["strides"]
    assert not list(module.buffers())
    assert module.strides.dtype == torch.float32
    assert module.strides.shape == (2,)
    module(random(2, 24, 20))
    assert list(module.state_dict()) == ["strides", "_extra_state"]


def test_state_round_trip_changes_the_output_size(rule):
    source, target = layer((3.0, 1.3)), layer()
    assert_right(target)
    result = target.load_state_dict(source.state_dict(), strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    y = assert_right(target)
    assert torch.equal(y, source(random(2, 24, 20)))
    with pytest.raises(RuntimeError, match="size mismatch for strides"):
        target.load_state_dict(layer(2.0, shared=True).state_dict())


def _with_optimizer(make):
    def change(module):
        optimizer = make(module.parameters())
        module.strides.grad = torch.tensor([-1.0, 1.0])
        optimizer.step()
        return module

    return change


def _data(module):
    module.strides.data = torch.tensor([2.9, 1.4])
    return module


def _replaced(module):
    module.strides = torch.nn.Parameter(torch.tensor([2.9, 1.4]))
    return module


def _in_place(module):
    set_strides(module, 2.9, 1.4)
    return module


def _loaded(module):
    module.load_state_dict({**module.state_dict(), "strides": torch.tensor([2.9, 1.4])})
    return module


def _assigned(module):
    state = {**module.state_dict(), "strides": torch.tensor([2.9, 1.4])}
    module.load_state_dict(state, assign=True)
    return module


def _from_vector(module):
    torch.nn.utils.vector_to_parameters(torch.tensor([2.9, 1.4]), module.parameters())
    return module


def _swapped(module):
    torch.utils.swap_tensors(module.strides, torch.nn.Parameter(torch.tensor([2.9, 1.4])))
    return module


def _cast(module):
    set_strides(module, 2.9, 1.4)
    return module.double().float()


CHANGES = {
    "copy_": _in_place,
    "data": _data,
    "new-parameter": _replaced,
    "load_state_dict": _loaded,
    "load_state_dict-assign": _assigned,
    "vector_to_parameters": _from_vector,
    "swap_tensors": _swapped,
    "cast": _cast,
    "sgd": _with_optimizer(lambda p: torch.optim.SGD(p, lr=0.9)),
    "sgd-foreach": _with_optimizer(lambda p: torch.optim.SGD(p, lr=0.9, foreach=True)),
    "sgd-fused": _with_optimizer(lambda p: torch.optim.SGD(p, lr=0.9, fused=True)),
    "adam": _with_optimizer(lambda p: torch.optim.Adam(p, lr=0.9, foreach=False)),
    "adam-foreach": _with_optimizer(lambda p: torch.optim.Adam(p, lr=0.9, foreach=True)),
    "adam-fused": _with_optimizer(lambda p: torch.optim.Adam(p, lr=0.9, fused=True)),
    "adamw-fused": _with_optimizer(lambda p: torch.optim.AdamW(p, lr=0.9, fused=True)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_forward_pass_follows_every_change(change, rule):
    module, other = layer(), random(1, 30, 16)
    with torch.no_grad():
        before = assert_right(module)
        assert_right(module, other)
        values = module.strides.detach().clone()
        module = change(module)
        assert (module.strides - values).abs().min() > 0.5
        after = assert_right(module)
        assert after.shape != before.shape
        assert_right(module, other)


def test_a_second_change_of_the_same_kind_is_followed(rule):
    module = layer()
    optimizer = torch.optim.Adam(module.parameters(), lr=0.3, fused=True)
    shapes = set()
    for _ in range(4):
        y = assert_right(module)
        shapes.add(y.shape)
        optimizer.zero_grad()
        (-module.strides.sum()).backward()
        optimizer.step()
    assert len(shapes) > 2


def test_writing_through_data_is_seen_on_a_cpu():
    module = layer()
    before = assert_right(module)
    module.strides.data.copy_(torch.tensor([2.9, 1.4]))
    assert assert_right(module).shape != before.shape
    module.strides.detach().numpy()[:] = 1.2, 3.3
    assert_right(module)


def test_writing_through_data_on_an_accelerator_is_seen_by_project_strides(accelerator):
    module = layer()
    assert_right(module)
    module.strides.data.copy_(torch.tensor([2.9, 1.4]))
    project_strides(module)
    assert_right(module)


def test_averaged_model(rule):
    model = torch.nn.Sequential(layer())
    average = torch.optim.swa_utils.AveragedModel(
        model, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    assert_right(average.module[0])
    for step, values in enumerate([(1.2, 1.4), (3.2, 4.4), (3.6, 1.2)]):
        set_strides(model[0], *values)
        average.update_parameters(model)
        assert_right(model[0])
        assert_right(average.module[0])
        assert step == 0 or not torch.equal(average.module[0].strides, model[0].strides)
    # The averages take the place of the model's own values, and back.
    own = copy.deepcopy(model.state_dict())
    model.load_state_dict(average.module.state_dict())
    y = assert_right(model[0])
    assert torch.equal(y, average(random(2, 24, 20)))
    model.load_state_dict(own)
    assert_right(model[0])


def test_functional_call(rule):
    module, x = layer(dtype=torch.float64), random(2, 24, 20, dtype=torch.float64)
    assert_right(module, x)
    strides = torch.tensor([2.9, 1.4], dtype=torch.float64)

    def loss(strides, x=x):
        return (torch.func.functional_call(module, {"strides": strides}, (x,)) ** 2).sum()

    def expected(strides, x=x):
        return (diff_stride(x, strides, smoothness=R) ** 2).sum()

    assert torch.equal(loss(strides), expected(strides))
    assert_right(module, x)
    assert_close(torch.func.grad(loss)(strides), torch.func.grad(expected)(strides))
    assert_right(module, x)
    per_sample = torch.vmap(torch.func.grad(loss), in_dims=(None, 0))(strides, x)
    looped = torch.stack([torch.func.grad(expected)(strides, part) for part in x])
    assert_close(per_sample, looped)
    second = torch.func.jacrev(torch.func.grad(loss))(strides)
    assert_close(second, torch.func.jacrev(torch.func.grad(expected))(strides))
    assert_right(module, x)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")
def test_functional_call_in_forward_mode(rule):
    module, x = layer(dtype=torch.float64), random(2, 24, 20, dtype=torch.float64)
    strides = torch.tensor([2.9, 1.4], dtype=torch.float64)

    def loss(strides):
        return (torch.func.functional_call(module, {"strides": strides}, (x,)) ** 2).sum()

    gradient = torch.func.grad(loss)(strides)
    assert_close(torch.func.jacfwd(loss)(strides), gradient)
    tangent = torch.tensor([1.0, -2.0], dtype=torch.float64)
    value, directional = torch.func.jvp(loss, (strides,), (tangent,))
    assert_close(value, loss(strides))
    assert_close(directional, gradient @ tangent)
    assert_close(
        directional, (loss(strides + 1e-6 * tangent) - loss(strides - 1e-6 * tangent)) / 2e-6, 1e-6
    )
    second = torch.func.jacrev(torch.func.grad(loss))(strides)
    assert_close(torch.func.hessian(loss)(strides), second, 1e-10)
    for recorded in (True, False):
        with torch.set_grad_enabled(recorded), forward_ad.dual_level():
            dual = forward_ad.unpack_dual(loss(forward_ad.make_dual(strides, tangent)))
        assert_close(dual.tangent, directional)
    assert_right(module, x)


@pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script.*` is deprecated")
def test_complexity_in_forward_mode(rule):
    model = two_layers((1.7, 2.4), (1.3, 3.1), dtype=torch.float64)
    model(random(1, 60, 50, dtype=torch.float64))
    strides = {name: value.detach() for name, value in model.named_parameters()}
    tangents = {name: random(2, dtype=torch.float64, seed=i) for i, name in enumerate(strides)}

    class Penalty(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self):
            return complexity_penalty(self.model)

    def penalty(strides):
        named = {f"model.{name}": value for name, value in strides.items()}
        return torch.func.functional_call(Penalty(), named, ())

    value, directional = torch.func.jvp(penalty, (strides,), (tangents,))
    assert torch.equal(value, complexity_penalty(model))
    gradients = torch.func.grad(penalty)(strides)
    assert_close(directional, sum((gradients[name] * tangents[name]).sum() for name in strides))
    ahead, behind = (
        penalty({name: strides[name] + step * tangents[name] for name in strides})
        for step in (1e-6, -1e-6)
    )
    assert_close(directional, (ahead - behind) / 2e-6, 1e-7)
    second = torch.func.jacrev(torch.func.grad(penalty))(strides)
    hessian = torch.func.hessian(penalty)(strides)
    for row in strides:
        for column in strides:
            assert_close(hessian[row][column], second[row][column], 1e-10)


def test_functional_call_with_batched_strides_is_refused(rule):
    module, x = layer(), random(2, 24, 20)

    def loss(strides):
        return torch.func.functional_call(module, {"strides": strides}, (x,)).sum()

    for f in (loss, torch.func.grad(loss)):
        with pytest.raises(ValueError, match="sizes must be given"):
            torch.vmap(f)(torch.tensor([[1.7, 2.4], [2.9, 1.4]]))
    assert_right(module)


def test_batched_strides_pass_where_nothing_is_cropped():
    module, x = layer(cropping=False), random(2, 24, 20)
    many = torch.tensor([[1.7, 2.4], [2.9, 1.4]])
    mapped = torch.vmap(lambda s: torch.func.functional_call(module, {"strides": s}, (x,)))(many)
    looped = [diff_stride(x, s, smoothness=R, cropping=False) for s in many]
    assert_close(mapped, torch.stack(looped), 1e-5)


def test_parametrized_strides(rule):
    class Shifted(torch.nn.Module):
        def forward(self, strides):
            return strides + 1

    module, x = layer(), random(2, 24, 20)
    torch.nn.utils.parametrize.register_parametrization(module, "strides", Shifted())
    for _ in range(3):
        y = module(x)
        assert torch.equal(y, diff_stride(x, module.strides.detach(), smoothness=R))
        with torch.no_grad():
            module.parametrizations.strides.original.add_(0.6)
    (y**2).sum().backward()
    assert module.parametrizations.strides.original.grad.abs().min() > 0


def _through_file(module):
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


COPIES = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda module: pickle.loads(pickle.dumps(module)),
    "torch.save": _through_file,
}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("used_before", [True, False])
def test_copies_are_equal_and_independent(copied, used_before, rule):
    module = layer(norm="ortho", limits=(1.5, 2.5))
    x = random(2, 24, 20)
    if used_before:
        module(x)
    twin = copied(module)
    assert repr(twin) == repr(module)
    assert torch.equal(twin(x), module(x))
    set_strides(twin, 2.5, 1.6)
    expected = diff_stride(x, [2.5, 1.6], smoothness=R, norm="ortho", limits=(1.5, 2.5))
    assert_close(twin(x), expected, 1e-6)
    assert twin(x).shape != module(x).shape
    assert_close(
        module(x),
        diff_stride(x, module.strides.detach(), smoothness=R, norm="ortho", limits=(1.5, 2.5)),
        1e-6,
    )


def test_a_copy_brings_no_plans(plans):
    # Its plans might be those of strides that are loaded before its first forward pass.
    module = layer()
    module(random(2, 24, 20))
    plans.clear()
    for copied in COPIES.values():
        copied(module)(random(2, 24, 20))
    assert len(plans) == len(COPIES)


# --- Precision and device -----------------------------------------------------------------------

CONVERSIONS = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "to-dtype": lambda module: module.to(torch.bfloat16),
    "to-device-and-dtype": lambda module: module.to("cpu", torch.float16),
    "type": lambda module: module.type(torch.float16),
    "to-tensor": lambda module: module.to(torch.empty(0, dtype=torch.bfloat16)),
}


@pytest.mark.parametrize("convert", CONVERSIONS.values(), ids=CONVERSIONS)
@pytest.mark.parametrize("swap", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_strides_survive_conversion_to_half_precision(convert, dtype, swap):
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), layer((1.7, 2.4001), dtype=dtype))
    before = model[1].strides.detach().clone()
    torch.__future__.set_swap_module_params_on_conversion(swap)
    try:
        model = convert(model)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(False)
    assert model[0].weight.dtype.itemsize == 2
    assert model[1].strides.dtype == dtype
    assert torch.equal(model[1].strides, before)
    assert isinstance(model[1].strides, torch.nn.Parameter)
    assert model[1].strides.requires_grad
    y = model(random(2, 1, 24, 20).to(model[0].weight.dtype))
    assert y.dtype == model[0].weight.dtype
    assert tuple(y.shape[2:]) == output_sizes((24, 20), before, smoothness=R)
    y.sum().backward()
    assert model[1].strides.grad.dtype == dtype


def test_gradients_keep_their_precision_too():
    module = layer()
    module(random(2, 24, 20)).sum().backward()
    grad = module.strides.grad.clone()
    module.half()
    assert module.strides.grad.dtype == torch.float32
    assert torch.equal(module.strides.grad, grad)


def test_double_and_float_convert_the_strides():
    module = layer()
    values = module.strides.detach().clone()
    module.double()
    assert module.strides.dtype == torch.float64
    assert torch.equal(module.strides, values.double())
    module.float()
    assert torch.equal(module.strides, values)


def test_conversion_leaves_the_other_half_precision_modules_alone():
    model = torch.nn.Sequential(layer(), torch.nn.BatchNorm2d(3)).half()
    assert model[0].strides.dtype == torch.float32
    assert model[1].weight.dtype == torch.float16
    assert model[1].running_mean.dtype == torch.float16


def test_meta_device():
    with torch.device("meta"):
        model = torch.nn.Sequential(layer())
    assert model[0].strides.is_meta
    assert "strides=[...]" in repr(model)
    model.half()
    assert model[0].strides.is_meta
    assert model[0].strides.dtype == torch.float32
    with pytest.raises(ValueError, match="strides must be on the device of x, cpu, got meta"):
        model(random(2, 24, 20))
    with pytest.raises(ValueError, match="sizes must be given"):
        model(torch.empty(2, 24, 20, device="meta"))
    model.to_empty(device="cpu")
    model[0].load_state_dict({**model[0].state_dict(), "strides": torch.tensor([1.7, 2.4])})
    assert_right(model[0])
    shapes = nn.Sequential(DiffStrideConv2d(1, 2, 3, method="fused"), DiffStride2d(2.0))
    frozen = freeze(shapes, torch.zeros(1, 1, 32, 32)).to("meta")
    assert frozen(torch.empty(2, 1, 32, 32, device="meta")).shape == (2, 2, 8, 8)
    uncropped = layer(cropping=False, device="meta")
    assert uncropped(torch.empty(2, 24, 20, device="meta")).shape == (2, 24, 20)


def test_inference_mode(rule):
    module = layer()
    with torch.inference_mode():
        assert_right(module)
        twin = copy.deepcopy(module)
        assert twin.strides.is_inference()
        x = random(2, 24, 20)
        assert torch.equal(twin(x), module(x))
        twin.strides.fill_(3.1)
        assert torch.equal(twin(x), diff_stride(x, twin.strides, smoothness=R))
    assert_right(module)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int32, torch.complex64])
def test_only_float32_and_float64_strides_can_be_asked_for(dtype):
    with pytest.raises(TypeError, match=rf"dtype must be torch.float32 or torch.float64.*{dtype}"):
        DiffStride2d(2.0, dtype=dtype)


# --- Bounds in the forward pass -----------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("values", [(0.3, -1.0), (100.0, 1e9), (-1e9, 2.0), (0.0, 1.0)])
def test_a_drifted_parameter_is_bounded_straight_through(values, training, rule):
    module = layer(dtype=torch.float64).train(training)
    set_strides(module, *values)
    x = random(2, 24, 20, dtype=torch.float64)
    y = module(x)
    g = random(*y.shape, dtype=torch.float64, seed=1)
    y.backward(g)
    assert module.strides.tolist() == list(values)

    used = oracle.used_strides((24, 20), values, smoothness=R)
    assert used != values
    reference = oracle.diff_stride(x.numpy(), used, g.numpy(), smoothness=R, limits=None)
    assert tuple(y.shape) == reference.output.shape
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(module.strides.grad, torch.from_numpy(reference.dstrides))
    bounded = torch.tensor(used, dtype=torch.float64)
    assert torch.equal(y, diff_stride(x, bounded, smoothness=R))
    # Neither bound stops the gradient.
    assert np.count_nonzero(reference.dstrides) == 2


def test_a_drifted_parameter_comes_back():
    module, x = layer(1.7, shared=True), random(2, 24, 20)
    set_strides(module, 0.5)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2)
    for _ in range(5):
        optimizer.zero_grad()
        y = module(x)
        (y**2).sum().div(x.numel()).backward()
        optimizer.step()
        assert torch.isfinite(module.strides).all()
    assert module.strides.item() > 0.5


def steps_towards(target, x, start, steps=16):
    """Return the strides and losses of a descent on what a layer makes of a signal."""
    module = DiffStride1d(start, norm="forward", dtype=torch.float64)
    # With momentum: at N/S between 3 and 3.25, say, no bin that the output holds is on the ramp.
    optimizer = torch.optim.SGD(module.parameters(), lr=300.0, momentum=0.9)
    strides, losses = [module.strides.item()], []
    for _ in range(steps):
        optimizer.zero_grad()
        # Interpolated back, so that outputs of all sizes can be compared.
        loss = (spectral_resize(module(x), x.shape[-1], axes=-1) - target).square().mean()
        loss.backward()
        nn.utils.clip_grad_value_(module.parameters(), 1e-3)
        optimizer.step()
        project_strides(module)
        strides.append(module.strides.item())
        losses.append(loss.item())
    return strides, losses


def test_a_stride_at_its_upper_bound_comes_down_when_the_loss_asks_for_it():
    x = random(64, 32, dtype=torch.float64)
    strides, losses = steps_towards(x, x, 16.0)
    assert strides[0] == 16.0
    assert strides[1] < 16.0
    assert strides[-1] < 4.0
    assert losses[-1] < 0.5 * losses[0]


def test_a_stride_of_one_goes_up_when_the_loss_asks_for_it():
    x = random(64, 32, dtype=torch.float64)
    target = spectral_resize(spectral_resize(x, 8, axes=-1), 32, axes=-1)
    strides, losses = steps_towards(target, x, 1.0)
    assert strides[0] == 1.0
    assert strides[1] > 1.0
    assert strides[-1] > 2.0
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("used_before", [True, False])
def test_strides_that_are_not_finite_are_an_error_at_the_next_forward(value, used_before, rule):
    module, x = layer(), random(2, 24, 20)
    if used_before:
        module(x)
    set_strides(module, 1.7, value)
    for _ in range(2):
        with pytest.raises(ValueError, match=rf"strides must be finite.*{value}"):
            module(x)
        with pytest.raises(ValueError, match="strides must be finite"):
            module.output_sizes((24, 20))
    torch.testing.assert_close(
        module.strides.detach(), torch.tensor([1.7, value]), equal_nan=True, rtol=0, atol=0
    )
    set_strides(module, 1.7, 1.4)
    assert_right(module)


# --- Plans --------------------------------------------------------------------------------------


def test_a_plan_is_made_once_per_size_and_change(plans, rule):
    module, x, other = layer(), random(2, 24, 20), random(1, 3, 30, 16)
    for _ in range(3):
        module(x)
        module(other)
        module(x[:1])
        module.output_sizes(x.shape)
    assert len(plans) == 2
    set_strides(module, 2.9, 1.4)
    module(x)
    assert len(plans) == 4  # Both sizes are planned anew, from one reading of the strides.
    for _ in range(3):
        module(x)
        module(other)
    assert len(plans) == 4
    assert {tuple(np.float32(strides)) for strides in plans[2:]} == {
        (np.float32(2.9), np.float32(1.4))
    }


def test_on_a_cpu_only_new_values_make_a_plan(plans):
    module, x = layer(), random(2, 24, 20)
    module(x)
    set_strides(module, *module.strides.tolist())
    module.strides = torch.nn.Parameter(module.strides.detach().clone())
    module(x)
    assert len(plans) == 1


def test_on_an_accelerator_strides_are_read_once_per_change(accelerator):
    module, x = layer(), random(2, 24, 20)
    with Reads() as reads:
        module(x)  # The strides were read when the module was made.
        for shape in ((2, 24, 20), (1, 30, 16), (4, 3, 24, 20)):
            module(random(*shape)).sum().backward()
            module.output_sizes(shape)
        assert reads == []
        for stride in (2.9, 3.3):
            set_strides(module, stride, 1.4)
            for _ in range(3):
                module(x).sum().backward()
            assert reads == ["tolist"]
            reads.clear()


def test_an_optimizer_step_costs_one_reading(accelerator):
    module, x = layer(), random(2, 24, 20)
    frozen = layer(trainable=False)
    for fused in (False, True):
        optimizer = torch.optim.Adam(module.parameters(), lr=0.01, fused=fused)
        frozen(x)
        for _ in range(2):
            module(x).sum().backward()
            optimizer.step()
            with Reads() as reads:
                module(x)
                module(x)
                frozen(x)
            assert reads == ["tolist"]


def test_version_of_a_tensor():
    tensor = torch.nn.Parameter(torch.tensor([1.7, 2.4]))
    version = modules._Version(tensor)
    assert version == modules._Version(tensor)
    assert hash(version) == hash(modules._Version(tensor))
    assert version != (tensor._version, tensor.data_ptr())
    assert version != modules._Version(torch.nn.Parameter(tensor.detach().clone()))
    frozen = tensor.detach()
    assert modules._Version(frozen) == modules._Version(frozen)
    assert modules._Version(frozen) != modules._Version(frozen.detach())
    with torch.no_grad():
        tensor.add_(0.0)
    assert version != modules._Version(tensor)
    version = modules._Version(tensor)
    assert version == modules._Version(tensor)
    kept = tensor.data
    tensor.data = kept.clone()
    assert version != modules._Version(tensor)


def test_version_outlives_its_tensor():
    # Memory and ids are used again as soon as a tensor is freed.
    old = modules._Version(torch.tensor([1.7, 2.4]))
    for _ in range(20):
        assert old != modules._Version(torch.tensor([1.7, 2.4]))


def test_version_counts_optimizer_steps():
    tensor, frozen = torch.nn.Parameter(torch.ones(2)), torch.ones(2)
    versions = modules._Version(tensor), modules._Version(frozen)
    optimizer = torch.optim.Adam([tensor], fused=True)
    tensor.grad = torch.ones(2)
    optimizer.step()
    assert versions[0] != modules._Version(tensor)
    assert versions[1] == modules._Version(frozen)


def test_many_sizes(rule):
    module = layer()
    for size in (*range(16, 40), 16, 17):
        assert_right(module, random(1, size, 50 - size))
    set_strides(module, 2.9, 1.4)
    for size in (16, 30, 39):
        assert_right(module, random(1, size, 50 - size))


def test_one_module_serves_two_branches(rule):
    module = layer((1.7, 2.4), dtype=torch.float64)
    x, z = random(2, 24, 20, dtype=torch.float64), random(3, 18, 33, dtype=torch.float64, seed=1)
    a, b = module(x), module(z)
    (a.square().sum() + b.square().sum()).backward()
    s = module.strides.detach().clone().requires_grad_()
    c, d = diff_stride(x, s, smoothness=R), diff_stride(z, s, smoothness=R)
    (c.square().sum() + d.square().sum()).backward()
    assert torch.equal(a, c)
    assert torch.equal(b, d)
    assert_close(module.strides.grad, s.grad)


# --- Options ------------------------------------------------------------------------------------

OPTIONS = {
    "default": {"smoothness": None},
    "paper": {"smoothness": None, "convention": "paper"},
    "tensorflow": {"smoothness": None, "convention": "tensorflow"},
    "ortho": {"norm": "ortho"},
    "backward": {"norm": "backward"},
    "limits": {"limits": (1.9, 2.1)},
    "no-limits": {"limits": None},
    "uncropped": {"cropping": False},
    "fft": {"method": "fft"},
    "matmul": {"method": "matmul"},
    "channels-last": {"axes": (1, 2)},
    "transposed": {"axes": (-1, 2)},
}


@pytest.mark.parametrize("stride", [(1.7, 2.4), 2.2])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_options_are_those_of_the_function(options, stride):
    x = random(2, 24, 20, 22)
    module = layer(stride, **options)
    options = {"smoothness": R, **options}
    y = module(x)
    assert torch.equal(y, diff_stride(x, module.strides.detach(), **options))
    axes = options.get("axes", (-2, -1))
    assert module.output_sizes(x.shape) == tuple(y.shape[axis] for axis in axes)
    for key in ("norm", "method"):
        options.pop(key, None)
    assert module.output_sizes(x.shape) == output_sizes(x.shape, module.strides, **options)


@pytest.mark.parametrize(("cls", "rank"), [(DiffStride1d, 1), (DiffStride2d, 2), (DiffStride3d, 3)])
def test_every_rank(cls, rank):
    module = cls(2.2, smoothness=1.0, dtype=torch.float64)
    assert module.strides.tolist() == [2.2] * rank
    x = random(2, 3, *(14, 12, 16)[:rank], dtype=torch.float64)
    y = module(x)
    y.backward(torch.ones_like(y))
    reference = oracle.diff_stride(
        x.numpy(), [2.2] * rank, np.ones(y.shape), axes=range(-rank, 0), smoothness=1.0
    )
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(module.strides.grad, torch.from_numpy(reference.dstrides))
    assert y.shape[2:] == module.output_sizes(x.shape)
    assert all(m < n for m, n in zip(y.shape[2:], x.shape[2:], strict=True))


def test_rank_one_takes_any_axis():
    module, x = DiffStride1d(2.2, axes=1, smoothness=R), random(2, 24, 3)
    expected = diff_stride(x, module.strides.detach(), axes=1, smoothness=R)
    assert torch.equal(module(x), expected)


def test_a_shared_stride_is_one_parameter_with_the_sum_of_the_gradients(rule):
    x = random(2, 24, 20, dtype=torch.float64)
    shared = layer(1.9, shared=True, dtype=torch.float64)
    separate = layer(1.9, dtype=torch.float64)
    assert shared.strides.shape == (1,)
    assert layer([1.9, 1.9], shared=True).strides.shape == (1,)
    a, b = shared(x), separate(x)
    assert_close(a, b)
    (a**3).sum().backward()
    (b**3).sum().backward()
    assert_close(shared.strides.grad, separate.strides.grad.sum()[None])


def test_a_shared_stride_is_bounded_by_all_axes():
    # Floors 24/22 and 14/12, upper bounds 12 and 7.
    x = random(2, 24, 14, dtype=torch.float64)
    module = layer(2.0, shared=True, dtype=torch.float64, **PAPER)
    for value, used in ((1.0, 14 / 12), (50.0, 7.0)):
        set_strides(module, value)
        expected = diff_stride(x, [used, used], **PAPER)
        assert_close(module(x), expected)


def test_frozen_strides():
    module, x = layer(trainable=False), random(2, 24, 20, requires_grad=True)
    assert not module.strides.requires_grad
    assert list(module.state_dict()) == ["strides", "_extra_state"]
    module(x).sum().backward()
    assert module.strides.grad is None
    assert x.grad is not None
    assert not layer(trainable=False)(x.detach()).requires_grad
    module.strides.requires_grad_()
    module(x).sum().backward()
    assert module.strides.grad is not None


def test_limits_hold_in_the_forward_pass():
    x = random(2, 24, 20)
    module = layer((1.2, 5.0), limits=(1.5, 2.5))
    assert_close(module(x), diff_stride(x, [1.5, 2.5], smoothness=R).to(x), 1e-6)
    # Without bounds, a stride of 1 is the identity in the paper's convention.
    assert_close(layer(1.0, limits=None, **PAPER)(x), x, 1e-5)
    assert (layer(1.0, **PAPER)(x) - x).abs().max() > 1e-2


def test_an_axis_that_can_never_be_cropped_warns():
    with pytest.warns(NothingToCropWarning, match="axis -2 of size 8 can never be cropped"):
        y = DiffStride2d(2.0, convention="paper")(random(1, 8, 24))
    assert y.shape[1] == 8


def test_a_warning_names_the_place_of_the_call():
    x, options = random(1, 1, 8, 24), {"convention": "paper"}
    for call in (
        partial(diff_stride, strides=2.0, **options),
        nn.Sequential(nn.Identity(), nn.Sequential(DiffStride2d(2.0, **options))),
        nn.Sequential(DiffStrideConv2d(1, 1, 3, **options)).to(x.dtype),
    ):
        with pytest.warns(NothingToCropWarning) as caught:
            call(x)
        assert [warning.filename for warning in caught] == [__file__]


def test_extra_repr():
    assert layer().extra_repr() == "strides=[1.7, 2.4], convention='nominal', smoothness=0.5"
    module = layer(
        1.23456,
        convention="paper",
        smoothness=2.5,
        shared=True,
        limits=(None, 3.0),
        cropping=False,
        trainable=False,
        norm="ortho",
        method="fft",
        axes=(1, 2),
    )
    text = module.extra_repr()
    for part in (
        "strides=[1.235]",
        "convention='paper'",
        "smoothness=2.5",
        "shared=True",
        "limits=(None, 3.0)",
        "cropping=False",
        "trainable=False",
        "norm='ortho'",
        "method='fft'",
        "axes=(1, 2)",
    ):
        assert part in text
    assert repr(module) == f"DiffStride2d({text})"
    assert "norm" not in layer(smoothness=4.0, convention="tensorflow").extra_repr()
    set_strides(module, 2.5)
    assert "strides=[2.5]" in repr(module)


# --- project_strides ----------------------------------------------------------------------------


def test_projection_keeps_the_bounds_of_all_sizes_seen_since_the_last_one(rule):
    module = layer(dtype=torch.float64, **PAPER)
    set_strides(module, 0.3, 100.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 100.0]  # No size is known yet.
    # The tightest bounds of the height are those of the second size, of the width of the first.
    module(random(1, 24, 12, dtype=torch.float64))
    module(random(1, 16, 40, dtype=torch.float64))
    project_strides(module)
    assert module.strides.tolist() == [16 / 14, 6.0]
    set_strides(module, 50.0, 1.0)
    project_strides(module)
    assert module.strides.tolist() == [8.0, 12 / 10]  # No size has been seen since.
    module(random(1, 24, 40, dtype=torch.float64))
    set_strides(module, 50.0, 1.0)
    project_strides(module)
    assert module.strides.tolist() == [12.0, 40 / 38]


def two_layers(first, second, **options):
    return torch.nn.Sequential(layer(first, **options), layer(second, **options))


def test_an_inner_map_bounds_by_its_size_now(rule):
    model = two_layers(2.9, 1.7, dtype=torch.float64, **PAPER)
    x = random(1, 24, 24, dtype=torch.float64)
    for stride, size in ((2.9, 14), (1.7, 20), (2.9, 14)):
        set_strides(model[0], stride, stride)
        assert model[0].output_sizes(x.shape) == (size, size)
        model(x)
        set_strides(model[1], 50.0, 0.1)
        penalty = complexity_penalty(model)
        project_strides(model)
        assert model[1].strides.tolist() == [size / 2, size / (size - 2)]
        first = stride**-2
        assert_close(penalty.item(), first + first * 2 * (size - 2) / size**2)
        assert_close(complexity_penalty(model).item(), penalty.item())


@pytest.mark.parametrize("stride", [0.3, 2.0, 9.0])
@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_the_upper_bound_wins(stride):
    # At N = 5, R = 4 the floor is 5, above N/2.
    module = DiffStride1d(2.0, convention="paper", dtype=torch.float64)
    module(torch.zeros(5, dtype=torch.float64))
    set_strides(module, stride)
    project_strides(module)
    assert module.strides.tolist() == [2.5]


def test_projection_keeps_the_limits():
    module = layer((1.2, 2.0), limits=(1.5, 1.8), dtype=torch.float64)
    project_strides(module)
    assert module.strides.tolist() == [1.5, 1.8]


def test_projection_of_a_shared_stride():
    module = layer(2.0, shared=True, dtype=torch.float64, **PAPER)
    module(random(1, 24, 14, dtype=torch.float64))
    for value, expected in ((0.3, 14 / 12), (100.0, 7.0), (3.0, 3.0)):
        set_strides(module, value)
        project_strides(module)
        assert module.strides.tolist() == [expected]


def test_projection_without_bounds_keeps_strides_at_one():
    module = layer(limits=None, dtype=torch.float64)
    module(random(1, 24, 14, dtype=torch.float64))
    set_strides(module, 0.3, 100.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 100.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_projection_is_idempotent(dtype):
    # Floors such as 24/22 are no float32.
    module = layer(dtype=dtype, **PAPER)
    module(random(1, 24, 17, dtype=dtype))
    set_strides(module, 0.3, 0.4)
    project_strides(module)
    values, version = module.strides.detach().clone(), module.strides._version
    project_strides(module)
    assert torch.equal(module.strides, values)
    assert module.strides._version == version
    assert module.strides.requires_grad
    assert module.strides.is_leaf
    assert module.strides.grad_fn is None


def test_projection_changes_no_output(rule):
    module, x = layer(), random(1, 24, 17)
    set_strides(module, 0.3, 99.0)
    before = module(x)
    project_strides(module)
    assert module.strides.tolist() != [np.float32(0.3), 99.0]
    assert_close(module(x), before, 1e-6)


def test_projection_reads_all_strides_in_one_transfer(accelerator, plans):
    model = torch.nn.Sequential(
        layer(), layer(1.9, shared=True), torch.nn.Sequential(layer((1.4, 2.0)))
    )
    x = random(1, 60, 50)
    model(x)
    set_strides(model[0], 0.2, 1.5)
    plans.clear()
    with Reads() as reads:
        project_strides(model)
        assert reads.count("cpu") == 1
        assert not {"tolist", "item", "_local_scalar_dense", "__bool__"} & set(reads)
        reads.clear()
        made = len(plans)
        y = model(x)
        assert reads == []
    assert len(plans) >= made  # Later layers may see new sizes.
    for module in (model[0], model[1], model[2][0]):
        x = assert_right(module, x)
    assert torch.equal(x, y)
    assert dict(model.named_parameters()).keys() == {"0.strides", "1.strides", "2.0.strides"}


def test_projection_reads_once_per_dtype(accelerator):
    model = torch.nn.Sequential(layer(), layer(dtype=torch.float64), layer(), layer())
    with Reads() as reads:
        project_strides(model)
    assert reads.count("cpu") == 2


def test_projection_after_every_step(rule):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 3, padding=1), layer())
    optimizer = torch.optim.SGD(param_groups(model, stride_lr=2.0, lr=0.1))
    x, shapes = random(2, 1, 24, 20), set()
    for step in range(6):
        optimizer.zero_grad()
        y = model(x)
        shapes.add(tuple(y.shape))
        sign = 1 if step < 3 else -1
        (sign * (y**2).mean() * 5).backward()
        optimizer.step()
        project_strides(model)
        assert (model[1].strides >= 1).all()
        assert (model[1].strides <= torch.tensor([12.0, 10.0])).all()
        assert_right(model[1])
    assert len(shapes) > 1


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_projection_of_strides_that_are_not_finite(value, rule):
    model = torch.nn.Sequential(OrderedDict(first=layer(), second=layer(2.0), third=layer()))
    model(random(1, 60, 50))
    for module in model:
        set_strides(module, 0.3, 1.4)
    set_strides(model.second, value, 1.4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match=rf"strides of layer 'second' must be finite.*{value}"):
        project_strides(model)
    for name, strides in model.state_dict().items():
        torch.testing.assert_close(strides, before[name], equal_nan=True, rtol=0, atol=0)


def test_projection_of_a_model_without_strides_does_nothing():
    project_strides(torch.nn.Sequential(torch.nn.Linear(2, 2)))


def test_projection_reaches_frozen_strides_and_a_layer_by_itself():
    module = layer(trainable=False)
    set_strides(module, 0.3, 2.0)
    project_strides(module)
    assert module.strides.tolist() == [1.0, 2.0]


# --- param_groups -------------------------------------------------------------------------------


def small_model():
    used_twice = layer()
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 2, 3, padding=1),
        used_twice,
        torch.nn.Conv2d(2, 2, 3, padding=1),
        used_twice,
        layer(trainable=False),
    )


@pytest.mark.parametrize("stride_lr", [None, 0.5])
def test_parameter_groups(stride_lr):
    model = small_model()
    model[2].bias.requires_grad_(False)
    others, strides = param_groups(model, stride_lr=stride_lr, lr=0.1, weight_decay=0.01)
    assert [id(p) for p in strides["params"]] == [id(model[1].strides)]
    assert [id(p) for p in others["params"]] == [
        id(p) for p in (model[0].weight, model[0].bias, model[2].weight)
    ]
    assert strides["weight_decay"] == 0
    assert others["weight_decay"] == 0.01
    assert others["lr"] == 0.1
    assert strides["lr"] == (0.1 if stride_lr is None else stride_lr)


def test_parameter_groups_without_learnt_strides():
    (group,) = param_groups(torch.nn.Sequential(torch.nn.Linear(2, 2), layer(trainable=False)))
    assert len(group["params"]) == 2


def test_parameter_groups_of_a_stride_owned_by_two_layers():
    model = torch.nn.Sequential(layer(), layer())
    model[1].strides = model[0].strides
    _, strides = param_groups(model, lr=0.1)
    assert len(strides["params"]) == 1


@pytest.mark.parametrize(
    "optimizer",
    [
        lambda groups: torch.optim.SGD(groups, momentum=0.9),
        torch.optim.AdamW,
        lambda groups: torch.optim.AdamW(groups, fused=True),
    ],
    ids=["sgd", "adamw", "adamw-fused"],
)
def test_weight_decay_spares_the_strides(optimizer):
    torch.manual_seed(0)
    model = small_model()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = optimizer(param_groups(model, stride_lr=0.1, lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = model.state_dict()
    assert not torch.equal(after["0.weight"], before["0.weight"])
    for name in ("1.strides", "4.strides"):
        assert torch.equal(after[name], before[name])


def test_stride_learning_rate():
    model = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), layer())
    optimizer = torch.optim.SGD(param_groups(model, stride_lr=0.5, lr=0.1))
    before = copy.deepcopy(model.state_dict())
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert_close(model[0].weight.detach(), before["0.weight"] - 0.1, 1e-6)
    assert_close(model[1].strides.detach(), before["1.strides"] - 0.5, 1e-6)


def test_parameter_groups_of_a_layer_by_itself():
    module = layer()
    optimizer = torch.optim.SGD(param_groups(module, lr=0.1))
    module.strides.grad = torch.ones(2)
    optimizer.step()
    assert_close(module.strides.detach(), torch.tensor([1.6, 2.3]), 1e-6)


# --- complexity_penalty -------------------------------------------------------------------------


def test_complexity_of_bounded_strides_straight_through(rule):
    model = torch.nn.Sequential(
        layer((1.3, 2.0), dtype=torch.float64, **PAPER),
        torch.nn.ReLU(),
        torch.nn.Sequential(layer(1.7, shared=True, dtype=torch.float64)),
        layer((2.0, 3.0), limits=(None, 2.5), dtype=torch.float64),
    )
    model(random(1, 60, 50, dtype=torch.float64))
    first, second, third = model[0], model[2][0], model[3]
    set_strides(first, 0.3, 1000.0)
    # Floor 60/58 and upper bound 25; the shared one; the user's limit.
    used = [(60 / 58, 25.0), (1.7, 1.7), (2.0, 2.5)]
    value, gradients = oracle.complexity(used)
    penalty = complexity_penalty(model)
    assert penalty.shape == ()
    assert_close(penalty.item(), value)
    penalty.backward()
    assert_close(first.strides.grad, torch.from_numpy(gradients[0]))
    assert_close(second.strides.grad, torch.from_numpy(gradients[1].sum(keepdims=True)))
    assert_close(third.strides.grad, torch.from_numpy(gradients[2]))
    assert first.strides.tolist() == [0.3, 1000.0]


def test_complexity_before_any_forward_pass():
    model = torch.nn.Sequential(layer((2.0, 3.0)), layer(2.0, shared=True))
    set_strides(model[0], 0.5, 3.0)
    value, _ = oracle.complexity([(1.0, 3.0), (2.0, 2.0)])
    penalty = complexity_penalty(model)
    assert penalty.dtype == torch.float32
    assert_close(penalty.item(), value, 1e-6)


def test_complexity_reads_nothing(accelerator):
    model = torch.nn.Sequential(layer(), layer())
    model(random(1, 60, 50))
    with Reads() as reads:
        complexity_penalty(model).backward()
    assert reads == []


def test_complexity_skips_frozen_strides():
    model = torch.nn.Sequential(layer(), layer(trainable=False))
    complexity_penalty(model).backward()
    assert model[0].strides.grad is not None
    assert model[1].strides.grad is None
    assert not complexity_penalty(model[1]).requires_grad


def test_complexity_follows_the_order_of_the_layers_given():
    first, second = DiffStride2d((2.0, 3.0)), DiffStride2d((1.5, 2.5))
    backwards = torch.nn.ModuleList([second, first])
    expected = 1 / 6 + 1 / (6 * 3.75)
    assert complexity_penalty([first, second]).item() == pytest.approx(expected)
    assert complexity_penalty(backwards).item() == pytest.approx(1 / 3.75 + 1 / (6 * 3.75))
    with pytest.raises(TypeError, match="sequence of DiffStride layers, got one with Linear"):
        complexity_penalty([first, torch.nn.Linear(2, 2)])
    with pytest.raises(ValueError, match="got list with none"):
        complexity_penalty([])


def test_complexity_of_a_model_without_layers():
    with pytest.raises(ValueError, match="model must have a DiffStride layer, got Sequential"):
        complexity_penalty(torch.nn.Sequential(torch.nn.Linear(2, 2)))


# --- Spectral pooling ---------------------------------------------------------------------------


@pytest.mark.parametrize("norm", [None, "forward", "ortho", "backward"])
@pytest.mark.parametrize(
    ("cls", "stride", "options"),
    [
        (SpectralPool1d, 2.0, {}),
        (SpectralPool1d, 1.5, {"axes": 1}),
        (SpectralPool2d, 2.0, {}),
        (SpectralPool2d, (1.5, 3.0), {}),
        (SpectralPool2d, (1.5, 3.0), {"convention": "paper"}),
        (SpectralPool2d, (1.5, 3.0), {"convention": "tensorflow"}),
        (SpectralPool2d, (1.5, 3.0), {"axes": (1, 2)}),
        (SpectralPool3d, 1.4, {}),
        (SpectralPool3d, (1.4, 1.0, 2.5), {}),
    ],
)
def test_spectral_pooling(cls, stride, options, norm):
    module = cls(stride, norm=norm, **options)
    assert not list(module.parameters())
    assert not module.state_dict()
    x = random(2, 7, 9, 8, dtype=torch.float64, requires_grad=True)
    y = module(x)
    g = random(*y.shape, dtype=torch.float64, seed=1)
    y.backward(g)
    axes = options.get("axes", range(-cls.rank, 0))
    axes = (axes,) if isinstance(axes, int) else axes
    reference = oracle.spectral_pool(
        x.detach().numpy(), stride, g.numpy(), norm=norm, **{**options, "axes": axes}
    )
    assert_close(y.detach(), torch.from_numpy(reference.output))
    assert_close(x.grad, torch.from_numpy(reference.dx))
    assert y.numel() < x.numel()


def test_spectral_pooling_keeps_its_input_precision_and_copies():
    module = SpectralPool2d((2.0, 1.5)).half()
    x = random(2, 12, 15).half()
    assert module(x).dtype == torch.float16
    assert torch.equal(copy.deepcopy(module)(x), module(x))
    assert torch.equal(pickle.loads(pickle.dumps(module))(x), module(x))
    assert repr(module) == (
        "SpectralPool2d(stride=(2.0, 1.5), convention='nominal', norm='forward', axes=(-2, -1))"
    )


# --- Bad arguments ------------------------------------------------------------------------------

BAD_STRIDES = [
    (0.5, ValueError, r"stride.*0\.5"),
    (0, ValueError, "stride.*0"),
    (-2.0, ValueError, r"stride.*-2"),
    ((2.0, 0.99), ValueError, r"stride.*0\.99"),
    (math.nan, ValueError, "stride.*nan"),
    ((2.0, math.inf), ValueError, "stride.*inf"),
    ((2.0, 2.0, 2.0), ValueError, r"stride.* 2 .*3"),
    ((), ValueError, "stride.*none"),
    ([[2.0, 2.0]], ValueError, "stride"),
    ("2", TypeError, "stride.*'2'"),
    (["2", 2.0], TypeError, "stride.*'2'"),
    (True, TypeError, "stride.*True"),
    (None, TypeError, "stride.*None"),
    (2j, TypeError, "stride.*2j"),
    (np.array([2.0, 2.0], dtype=np.float16), TypeError, "stride"),
]


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
@pytest.mark.parametrize(("stride", "error", "message"), BAD_STRIDES, ids=repr)
def test_bad_strides(cls, stride, error, message):
    with pytest.raises(error, match=message):
        cls(stride)


BAD_OPTIONS = [
    ({"smoothness": 0}, ValueError, r"smoothness.*0"),
    ({"smoothness": -1.0}, ValueError, r"smoothness.*-1"),
    ({"smoothness": math.nan}, ValueError, "smoothness.*nan"),
    ({"smoothness": math.inf}, ValueError, "smoothness.*inf"),
    ({"smoothness": "4"}, TypeError, "smoothness.*'4'"),
    ({"smoothness": True}, TypeError, "smoothness.*True"),
    ({"smoothness": 1.5}, ValueError, r"smoothness.*at most 1.*1\.5"),
    ({"smoothness": 0.0, "convention": "paper"}, ValueError, r"smoothness.*0"),
    ({"smoothness": math.nan, "convention": "paper"}, ValueError, r"smoothness.*nan"),
    ({"limits": (3.0, 2.0)}, ValueError, r"limits.*\(3\.0, 2\.0\)"),
    ({"limits": (math.nan, 2.0)}, ValueError, "limits.*nan"),
    ({"limits": (math.inf, None)}, ValueError, "limits.*inf"),
    ({"limits": 2.0}, TypeError, r"limits.*2\.0"),
    ({"limits": (1.0, 2.0, 3.0)}, TypeError, r"limits.*3\.0"),
    ({"limits": ("1", None)}, TypeError, "limits.*'1'"),
    ({"cropping": 1}, TypeError, "cropping.*1"),
    ({"method": "conv"}, ValueError, "method.*'conv'"),
    ({"method": "fft", "convention": "tensorflow"}, ValueError, "method.*'fft'"),
    ({"dtype": torch.float16}, TypeError, "dtype.*torch.float16"),
    ({"shared": True, "stride": (2.0, 3.0)}, ValueError, r"stride.*\(2\.0, 3\.0\)"),
]

BAD_OPTIONS_OF_BOTH = [
    ({"convention": "authors"}, ValueError, "convention.*'authors'"),
    ({"convention": None}, TypeError, "convention.*None"),
    ({"norm": "orthonormal"}, ValueError, "norm.*'orthonormal'"),
    ({"norm": 1}, TypeError, "norm.*1"),
    ({"axes": (1,)}, ValueError, r"axes.*2.*\(1,\)"),
    ({"axes": 1}, ValueError, r"axes.*2.*1"),
    ({"axes": (1, 2, 3)}, ValueError, r"axes.*2.*\(1, 2, 3\)"),
    ({"axes": ()}, ValueError, r"axes.*\(\)"),
    ({"axes": (1.0, 2.0)}, TypeError, r"axes.*1\.0"),
    ({"axes": "hw"}, TypeError, "axes.*'hw'"),
    ({"axes": (True, 2)}, TypeError, "axes.*True"),
]


@pytest.mark.parametrize(
    ("cls", "options", "error", "message"),
    [
        *((DiffStride2d, *row) for row in BAD_OPTIONS),
        *((cls, *row) for row in BAD_OPTIONS_OF_BOTH for cls in (DiffStride2d, SpectralPool2d)),
    ],
    ids=repr,
)
def test_bad_options(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(**{"stride": 2.0, **options})


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
@pytest.mark.parametrize(
    ("axes", "x", "error", "message"),
    [
        ((1, -2), (2, 24, 20), ValueError, r"axes must not name an axis twice, got \(1, -2\)"),
        ((1, 3), (2, 24, 20), ValueError, r"axes .*\(2, 24, 20\), got \(1, 3\)"),
        ((-4, 1), (2, 24, 20), ValueError, r"axes .*\(2, 24, 20\), got \(-4, 1\)"),
        ((-2, -1), (24,), ValueError, r"axes .*\(24,\), got \(-2, -1\)"),
        ((-2, -1), (2, 0, 24), ValueError, r"x must not be empty.*\(2, 0, 24\)"),
    ],
)
def test_axes_that_do_not_fit_the_input(cls, axes, x, error, message):
    module = cls(2.0, axes=axes)
    with pytest.raises(error, match=message):
        module(torch.zeros(x))
    with pytest.raises(error, match=message):
        module.output_sizes(x)


@pytest.mark.parametrize("cls", [DiffStride2d, SpectralPool2d])
def test_axes_that_never_fit_are_refused_when_made(cls):
    with pytest.raises(ValueError, match=r"axes must not name an axis twice, got \(1, 1\)"):
        cls(2.0, axes=(1, 1))


@pytest.mark.parametrize("cls", [DiffStride1d, DiffStride3d, SpectralPool1d])
def test_convention_of_two_axes_is_refused_when_made(cls):
    with pytest.raises(ValueError, match=r"axes must name exactly 2 axes.*'tensorflow'"):
        cls(2.0, convention="tensorflow")


@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.slow
def test_module_compiled_before_its_first_call():
    torch._dynamo.reset()
    module, x = layer(), random(2, 24, 20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), module(x), 1e-6)


@pytest.mark.parametrize("module", [layer(), SpectralPool2d(2.0)], ids=["DiffStride", "pool"])
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((24, 20)), "x must be a torch.Tensor, got ndarray"),
        ([[1.0]], "x must be a torch.Tensor, got list"),
        (torch.zeros(24, 20, dtype=torch.int64), "x must be real.*torch.int64"),
        (torch.zeros(24, 20, dtype=torch.complex64), "x must be real.*torch.complex64"),
        (torch.zeros(24, 20, dtype=torch.bool), "x must be real.*torch.bool"),
    ],
)
def test_bad_inputs(module, x, message):
    with pytest.raises(TypeError, match=message):
        module(x)


def test_parameter_of_a_dtype_that_strides_cannot_have():
    module = layer()
    module.strides = torch.nn.Parameter(torch.tensor([1.7, 2.4], dtype=torch.float16))
    with pytest.raises(TypeError, match=r"strides must be float32 or float64.*torch.float16"):
        module(random(2, 24, 20))


def test_parameter_of_a_length_that_strides_cannot_have():
    module = layer()
    module.strides = torch.nn.Parameter(torch.tensor([1.7, 2.4, 3.0]))
    with pytest.raises(ValueError, match=r"strides must have .*got 3"):
        module(random(2, 24, 20))


# --- torch.compile ------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize("method", ["matmul", "fft"])
def test_compiled_module(method):
    torch._dynamo.reset()
    module = layer(dtype=torch.float64, method=method)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    x = random(2, 24, 20, dtype=torch.float64, requires_grad=True)
    shapes = []
    for values in ((1.7, 2.4), (2.9, 1.4)):
        set_strides(module, *values)
        project_strides(module)
        expected = module(x)
        y = compiled(x)
        shapes.append(y.shape)
        assert_close(y, expected, 1e-14)
        inputs = x, module.strides
        gradients = torch.autograd.grad((y**3).sum(), inputs)
        for a, b in zip(gradients, torch.autograd.grad((expected**3).sum(), inputs), strict=True):
            assert_close(a, b)
    assert shapes[0] != shapes[1]
    # Values are those of the last pass outside the graph, or of the last projection.
    set_strides(module, 1.2, 3.1)
    assert compiled(x).shape == shapes[1]
    project_strides(module)
    assert_close(compiled(x), module(x), 1e-14)
    with torch.no_grad():
        assert_close(compiled(x), module(x), 1e-14)


@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_sizes_of_constant_tables_are_no_symbols():
    torch._dynamo.reset()

    def f(x):
        return x * BACKEND.tables(bases.AxisBasis(20, 12, bases.half_spectrum), x)[0].shape[0]

    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(f, dynamic=True, fullgraph=True, backend=graphs)
    assert_close(compiled(torch.ones(3)), torch.full((3,), 12.0))
    (graph,) = graphs.graphs
    assert 12 in [argument for node in graph.graph.nodes for argument in node.args]


AXIS = AxisPlan(-1, 20, 12, True)


@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize(
    "function",
    [
        lambda s: sum(clipped_ramp(BACKEND, s + i, s).value for i in range(2)),
        lambda s: Nominal().mask(BACKEND, AXIS, 0.25, s[0], s).value,
    ],
)
def test_numbers_of_the_core_are_no_symbols(function):
    """With dynamic sizes torch.compile makes one of each number that a module or a class has."""
    torch._dynamo.reset()
    graphs = CompileCounterWithBackend("eager")
    compiled = torch.compile(function, dynamic=True, fullgraph=True, backend=graphs)
    strides = torch.full((1,), 0.5, requires_grad=True)
    assert_close(compiled(strides), function(strides))
    (graph,) = graphs.graphs
    inputs = [node.name for node in graph.graph.nodes if node.op == "placeholder"]
    assert [name for name in inputs if not name.startswith("g_axis_")] == ["l_s_"]


@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_two_autograd_functions_with_the_same_numbers_compile_with_dynamic_sizes():
    torch._dynamo.reset()
    bounds = ((Bounds(1.1, 1.2, 3.3),),)

    def twice(s):
        return sum(FUNCTIONAL.bounded_complexity(bounds, [s + i]) for i in range(2))

    strides = torch.full((1,), 1.5, requires_grad=True)
    y = torch.compile(twice, dynamic=True, fullgraph=True, backend="eager")(strides)
    assert_close(y, twice(strides))


class Twice(torch.nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x) + self.layer(2 * x)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize("convention", CONVENTIONS)
@pytest.mark.parametrize(
    "make", [lambda make: Twice(make()), lambda make: torch.nn.Sequential(make(), make())]
)
def test_several_layers_compiled_with_dynamic_sizes(convention, make):
    torch._dynamo.reset()
    network = make(lambda: DiffStride2d(1.6, convention=convention))
    x = random(2, 3, 24, 24, requires_grad=True)
    expected = network(x)
    y = torch.compile(network, dynamic=True, fullgraph=True, backend="eager")(x)
    assert_close(y, expected, 1e-5)
    for a, b in zip(*(torch.autograd.grad(z.sum(), x) for z in (y, expected)), strict=True):
        assert_close(a, b, 1e-5)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
@pytest.mark.parametrize(
    ("module", "seen", "shape"),
    [
        (DiffStride1d(1.7), False, (20,)),
        (DiffStrideConv2d(3, 4, 3, 2.3, method="separate"), True, (3, 24, 20)),
    ],
    ids=["DiffStride", "DiffStrideConv"],
)
def test_compiled_for_any_batch(module, seen, shape):
    torch._dynamo.reset()
    module = module.double()
    if seen:
        module(random(1, *shape, dtype=torch.float64))

    def f(x):
        return module(x).relu_()

    compiled = torch.compile(f, dynamic=True, fullgraph=True, backend="aot_eager")
    for batch in (4, 7):
        x = random(batch, *shape, dtype=torch.float64, requires_grad=True)
        y, expected = compiled(x), f(x)
        assert_close(y, expected)
        inputs = x, *module.parameters()
        gradients = torch.autograd.grad((y**3).sum(), inputs)
        for a, b in zip(gradients, torch.autograd.grad((expected**3).sum(), inputs), strict=True):
            assert_close(a, b)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_training_step_is_one_graph_per_size():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    conv = torch.nn.Conv2d(3, 4, 3, dtype=torch.float64)
    eager = torch.nn.Sequential(conv, layer(dtype=torch.float64), torch.nn.Flatten())
    network = copy.deepcopy(eager)
    images = random(2, 3, 26, 22, dtype=torch.float64)
    network(images)  # A size that no eager call has seen would be compiled twice.

    def loss_of(network, images):
        return (network(images) ** 2).sum()

    compiled = torch.compile(loss_of, fullgraph=True, backend=counter)
    optimizers = [torch.optim.SGD(n.parameters(), lr=1e-7) for n in (eager, network)]
    graphs, sizes = [], []
    for step in range(6):
        if step == 3:
            for n in (eager, network):
                set_strides(n[1], 2.9, 1.4)
                project_strides(n)
        for n, loss, optimizer in (
            (eager, loss_of, optimizers[0]),
            (network, compiled, optimizers[1]),
        ):
            optimizer.zero_grad()
            loss(n, images).backward()
            optimizer.step()
            project_strides(n)
        graphs.append(counter.frame_count)
        sizes.append(network[1].output_sizes((2, 4, 24, 20)))
        for a, b in zip(network.parameters(), eager.parameters(), strict=True):
            assert_close(a, b, 1e-12)
    assert len(set(sizes[:3])) == len(set(sizes[3:])) == 1
    assert sizes[0] != sizes[-1]
    assert graphs == [1, 1, 1, 2, 2, 2]


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_spectral_pooling():
    torch._dynamo.reset()
    module, x = SpectralPool2d(2.0), random(2, 24, 20)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(x), module(x), 1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings(COMPILER_WARNING)
def test_compiled_penalty():
    torch._dynamo.reset()
    model = torch.nn.Sequential(layer(), layer(2.0, shared=True))
    model(random(1, 60, 50))
    compiled = torch.compile(complexity_penalty, fullgraph=True, backend="aot_eager")
    value, expected = compiled(model), complexity_penalty(model)
    assert_close(value, expected, 1e-6)
    a, b = (torch.autograd.grad(v, list(model.parameters())) for v in (value, expected))
    for compiled_gradient, gradient in zip(a, b, strict=True):
        assert_close(compiled_gradient, gradient, 1e-6)
