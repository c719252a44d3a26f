"""Strides that PyTorch's fully_shard distributes over processes."""

import contextlib

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    DiffStrideConv2d,
    complexity_penalty,
    diff_stride,
    flops_penalty,
    freeze,
    param_groups,
    project_strides,
    replace_downsampling,
    stride_summary,
)
from torch import distributed, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    set_model_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import Replicate, distribute_tensor

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def process_group(**options):
    distributed.init_process_group("gloo", **options)
    try:
        yield init_device_mesh("cpu", (distributed.get_world_size(),))
    finally:
        distributed.destroy_process_group()


def network(mesh=None, **options):
    """Return a model and its penalty; with a mesh, distributed over its processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        DiffStrideConv2d(3, 4, 3, (1.7, 2.4), method="fused", **options),
        DiffStride2d(1.6, shared=True, **options),
    )
    penalty = flops_penalty(model, IMAGES)
    return (model if mesh is None else fully_shard(model, mesh=mesh)), penalty


def whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor


def trained(mesh=None):
    """Return what a model's strides are, and what is said of them, after two steps."""
    model, penalty = network(mesh)
    optimizer = torch.optim.SGD(param_groups(model, lr=0.1, stride_lr=10.0))
    strides = [model[0].pool.strides, model[1].strides]
    for _ in range(2):
        loss = model(IMAGES).square().mean() + complexity_penalty(model) + 1e-6 * penalty()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        project_strides(model)
    values = [whole(own).tolist() for own in strides]
    assert model[1].to_dict()["stride"] == values[1]
    assert "DiffStride2d(strides=[" in repr(model)
    sizes = model(IMAGES).shape, model[1].output_sizes((20, 20))
    return values, sizes, [row.share for row in stride_summary(model, penalty).rows]


def check_training(mesh):
    strides, sizes, shares = trained(mesh)
    expected, *others = trained()
    for a, b in zip(strides, expected, strict=True):
        assert a == pytest.approx(b, rel=1e-5)
    assert [sizes, shares] == others


def check_projection(mesh):
    models = [network(mesh)[0], network()[0]]
    for value in (0.3, 99.0):
        found = []
        for model in models:
            strides = model[0].pool.strides, model[1].strides
            with torch.no_grad():
                for own in strides:
                    getattr(own, "to_local", lambda own=own: own)().fill_(value)
            # After a forward pass alone a model holds its parameters as a whole.
            model(IMAGES)
            project_strides(model)
            found.append([whole(own).tolist() for own in strides])
        assert found[0] == found[1]
        assert value not in found[0][0]
    model = models[0]
    with torch.no_grad():
        model[1].strides.to_local().fill_(float("nan"))
    with pytest.raises(ValueError, match="strides of layer '1' must be finite"):
        project_strides(model)


def check_mixed_precision(mesh):
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    model, penalty = network()
    fully_shard(model, mesh=mesh, mp_policy=policy)
    with pytest.raises(
        TypeError, match=r"strides must be float32 .* mp_policy changed it, give each"
    ):
        model(IMAGES)
    model, penalty = network()
    for layer in (model[0].pool, model[1]):
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    y = model(IMAGES)
    assert y.dtype == torch.bfloat16
    (y.float().square().mean() + complexity_penalty(model) + 1e-6 * penalty()).backward()
    assert model[1].strides.dtype == model[1].strides.grad.dtype == torch.float32
    project_strides(model)
    (plain, _), x = network(), IMAGES.bfloat16()
    plain[0].weight.data, plain[0].bias.data = plain[0].weight.bfloat16(), plain[0].bias.bfloat16()
    assert torch.equal(y, plain(x))


def check_saved_state(mesh):
    source, (expected, _) = network(mesh)[0], network()
    whole_state = get_model_state_dict(source, options=StateDictOptions(full_state_dict=True))
    for options in (
        StateDictOptions(),
        StateDictOptions(full_state_dict=True),
        StateDictOptions(full_state_dict=True, broadcast_from_rank0=True),
    ):
        state = whole_state if options.full_state_dict else get_model_state_dict(source)
        target, _ = network(mesh)
        with torch.no_grad():
            for layer in (target[0].pool, target[1]):
                layer.strides.to_local().fill_(3.0)
        set_model_state_dict(target, dict(state), options=options)
        assert torch.equal(target(IMAGES), expected(IMAGES))
        other, _ = network(mesh, convention="paper")
        with pytest.raises(RuntimeError, match=r"'0\.pool' was saved with convention='nominal'"):
            set_model_state_dict(other, dict(state), options=options)


def check_refusals(mesh):
    """What needs a model with all its parameters says so, whatever was given to fully_shard."""
    whole, _ = network(mesh)
    by_layer, _ = network()
    fully_shard(by_layer[1], mesh=mesh, reshard_after_forward=False)
    by_layer(IMAGES)
    for model in (whole, by_layer, by_layer[1], whole[1]):
        for function in (freeze, flops_penalty, replace_downsampling):
            with pytest.raises(ValueError, match="model must not be distributed by fully_shard"):
                function(model, IMAGES)
    strides, x = whole[1].strides, distribute_tensor(IMAGES, mesh, [Replicate()])
    with pytest.raises(TypeError, match=r"strides must .* got a DTensor: .* strides\.full_tensor"):
        whole[1](IMAGES)
    with pytest.raises(TypeError, match=r"strides must .* got a DTensor: .* strides\.full_tensor"):
        diff_stride(IMAGES, strides)
    for function in (
        DiffStride2d(2.0),
        DiffStrideConv2d(3, 4, 3),
        freeze(DiffStride2d(2.0), IMAGES),
    ):
        with pytest.raises(TypeError, match=r"x must .* got a DTensor: give x\.to_local\(\)"):
            function(x)


def check(rank, file):
    with process_group(init_method=f"file://{file}", rank=rank, world_size=2) as mesh:
        check_training(mesh)
        check_projection(mesh)
        check_mixed_precision(mesh)
        check_saved_state(mesh)


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_one_process():
    with process_group(store=distributed.HashStore(), rank=0, world_size=1) as mesh:
        check_training(mesh)
        check_projection(mesh)
        check_mixed_precision(mesh)
        check_saved_state(mesh)
        check_refusals(mesh)


@pytest.mark.slow
def test_two_processes(tmp_path):
    # Of three strides one has two, and of one the other none.
    torch.multiprocessing.spawn(check, (tmp_path / "store",), nprocs=2)
