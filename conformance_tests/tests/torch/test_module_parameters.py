"""The PyTorch layers: the parameter, its copies, precision and device."""

import copy
import io
import pickle

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    DiffStrideConv2d,
    complexity_penalty,
    diff_stride,
    freeze,
    output_sizes,
    project_strides,
)
from support.torch_modules import (
    R,
    assert_close,
    assert_right,
    layer,
    random,
    set_strides,
    two_layers,
)
from torch import nn
from torch.autograd import forward_ad

"""A smoothness other than the default."""
"""Strides with floors above 1, and a ramp that leaves small maps something to crop."""


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
    with pytest.raises(ValueError, match=r"strides must have values .*to_empty"):
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
