"""Strides that PyTorch's fully_shard distributes over processes."""

import contextlib

import pytest
import torch
from diffstride_torch import (
    DiffStride2d,
    DiffStrideConv2d,
    complexity_penalty,
    flops_penalty,
    param_groups,
    project_strides,
    stride_summary,
)
from torch import distributed, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

IMAGES = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))


@contextlib.contextmanager
def process_group(**options):
    distributed.init_process_group("gloo", **options)
    try:
        yield init_device_mesh("cpu", (distributed.get_world_size(),))
    finally:
        distributed.destroy_process_group()


def network(mesh=None):
    """Return a model and its penalty; with a mesh, distributed over its processes."""
    torch.manual_seed(0)
    model = nn.Sequential(
        DiffStrideConv2d(3, 4, 3, (1.7, 2.4), convention="relative", method="fused"),
        DiffStride2d(1.6, shared=True, convention="relative"),
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


def check(rank, file):
    with process_group(init_method=f"file://{file}", rank=rank, world_size=2) as mesh:
        check_training(mesh)
        check_projection(mesh)


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_one_process():
    with process_group(store=distributed.HashStore(), rank=0, world_size=1) as mesh:
        check_training(mesh)
        check_projection(mesh)


@pytest.mark.slow
def test_two_processes(tmp_path):
    # Of three strides one has two, and of one the other none.
    torch.multiprocessing.spawn(check, (tmp_path / "store",), nprocs=2)
