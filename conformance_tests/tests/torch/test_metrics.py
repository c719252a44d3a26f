"""Strides as named numbers to log."""

import re

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStride3d,
    FlopsBudget,
    flops_penalty,
    project_strides,
    stride_metrics,
)
from diffstride_torch.models import small_resnet
from support.torch_modules import Reads, set_strides
from torch.optim.swa_utils import AveragedModel

MLFLOW = re.compile(r"[/\w.\- ]*", re.ASCII)
"""The names of metrics that MLflow takes, the narrowest of the tools."""


def two_layers():
    torch.manual_seed(0)
    return small_resnet(strides=((2.0, 1.5), 3.0), channels=(2, 2, 2))


def test_strides_sizes_and_multiply_adds_by_name():
    model, images = two_layers(), torch.zeros(1, 1, 24, 24)
    penalty = flops_penalty(model, images)
    strides = {
        "strides/blocks.0.pool/height": 2.0,
        "strides/blocks.0.pool/width": 1.5,
        "strides/blocks.1.pool/height": 3.0,
        "strides/blocks.1.pool/width": 3.0,
    }
    assert stride_metrics(model) == strides  # No input was seen.
    model(images)
    sizes = {
        "sizes/blocks.0.pool/height": 12.0,
        "sizes/blocks.0.pool/width": 16.0,
        "sizes/blocks.1.pool/height": 4.0,
        "sizes/blocks.1.pool/width": 6.0,
    }
    assert stride_metrics(model) == {**strides, **sizes}
    expected = {**strides, **sizes, "multiply_adds": float(penalty.initial)}
    assert stride_metrics(model, penalty) == expected
    assert stride_metrics(model, FlopsBudget(model, images)) == expected
    assert all(type(value) is float for value in expected.values())


def test_the_strides_are_those_used():
    model = DiffStride2d(2.0, limits=(1.5, 2.5))
    set_strides(model, 0.3, 9.0)
    model(torch.zeros(1, 24, 24))
    assert stride_metrics(model) == {
        "strides/height": 1.5,
        "strides/width": 2.5,
        "sizes/height": 16.0,
        "sizes/width": 10.0,
    }


@pytest.mark.parametrize(
    ("layer", "expected"),
    [
        (DiffStride1d(2.0), {"length": 2.0}),
        (DiffStride2d((2.0, 3.0)), {"height": 2.0, "width": 3.0}),
        (DiffStride3d((2.0, 3.0, 4.0)), {"depth": 2.0, "height": 3.0, "width": 4.0}),
        (DiffStride2d(2.5, shared=True), {"height": 2.5, "width": 2.5}),
        (DiffStride2d((2.0, 3.0), axes=(-1, -2)), {"width": 2.0, "height": 3.0}),
        (DiffStride2d((2.0, 3.0), axes=(1, 2)), {"height": 2.0, "width": 3.0}),
        (DiffStride2d((2.0, 3.0), axes=(-1, 1)), {"width": 2.0, "height": 3.0}),
    ],
)
def test_names_of_axes(layer, expected):
    found = stride_metrics(torch.nn.ModuleDict({"pool": layer}))
    assert found == {f"strides/pool/{axis}": stride for axis, stride in expected.items()}


def test_names_that_every_tool_takes():
    pool = DiffStride2d(2.0)
    model = torch.nn.ModuleDict({"größe (a+b)/c": pool, "again": pool})
    names = stride_metrics(model)
    assert list(names) == [f"strides/gr__e__a_b__c/{axis}" for axis in ("height", "width")]
    for name in (*names, *stride_metrics(two_layers()), *stride_metrics(pool)):
        assert MLFLOW.fullmatch(name)
        assert "//" not in name


@pytest.mark.parametrize(
    "wrap", [AveragedModel, lambda model: torch.compile(model, backend="eager")]
)
def test_wrappers_do_not_change_names(wrap):
    model = two_layers()
    assert stride_metrics(wrap(model)) == stride_metrics(model)


def test_one_transfer_and_none_after_a_projection(accelerator):
    model = two_layers()
    model(torch.zeros(1, 1, 24, 24))
    penalty = flops_penalty(model, torch.zeros(1, 1, 24, 24))
    with torch.no_grad():
        for block in model.blocks:
            block.pool.strides += 0.25
    with Reads() as reads:
        stride_metrics(model, penalty)
        assert reads.count("cpu") == 1
        assert not {"item", "_local_scalar_dense"} & set(reads)
        with torch.no_grad():
            model.blocks[0].pool.strides += 0.25
        project_strides(model)
        reads.clear()
        metrics = stride_metrics(model, penalty)
        assert reads == []
    assert metrics["strides/blocks.0.pool/height"] == 2.5
    assert metrics["strides/blocks.1.pool/width"] == 3.25
    assert metrics["multiply_adds"] < penalty.initial


def test_a_model_without_layers_has_none():
    assert stride_metrics(torch.nn.Linear(2, 2)) == {}


def test_what_is_refused():
    model = two_layers()
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        stride_metrics([model])
    with pytest.raises(TypeError, match=r"penalty must be what flops_penalty returns.*got float"):
        stride_metrics(model, 0.1)
    other = flops_penalty(two_layers(), torch.zeros(1, 1, 24, 24))
    with pytest.raises(ValueError, match="penalty must be of the model given"):
        stride_metrics(model, other)
    with pytest.raises(ValueError, match="penalty must be of the model given"):
        stride_metrics(torch.nn.Linear(2, 2), other)
    set_strides(model.blocks[0].pool, float("nan"), 2.0)
    with pytest.raises(ValueError, match="nan"):
        stride_metrics(model)
