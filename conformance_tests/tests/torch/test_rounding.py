"""round_strides: learnt strides made whole numbers."""

import math

import pytest
import torch
from diffstride_torch import DiffStride1d, DiffStride2d, round_strides
from diffstride_torch.models import small_resnet
from support.torch_modules import layer, random, set_strides


@pytest.mark.parametrize(
    ("stride", "whole"),
    [(1.0, 1), (1.4, 1), (1.5, 1), (1.51, 2), (2.0, 2), (2.5, 2), (2.6, 3), (3.5, 3), (7.7, 8)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_nearest_whole_number(stride, whole, dtype):
    module = DiffStride1d(stride, dtype=dtype)
    axis = round_strides(module).rows[0].axes[0]
    assert module.strides.tolist() == [whole]
    assert (axis.before, axis.after) == (pytest.approx(stride, rel=1e-6), whole)
    assert module.strides.dtype == dtype
    assert module.strides.requires_grad
    assert module.strides.is_leaf


@pytest.mark.parametrize(
    ("limits", "stride", "whole"),
    [((1.7, 3.2), 1.7, 2), ((1.2, 2.9), 2.8, 2), ((2.0, 2.0), 2.0, 2), ((None, 3.0), 9.0, 3)],
)
def test_is_within_the_limits(limits, stride, whole):
    module = DiffStride1d(2.0, limits=limits)
    set_strides(module, stride)
    round_strides(module)
    assert module.strides.tolist() == [whole]


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_is_within_the_bounds_of_the_sizes_seen():
    module = layer((2.7, 1.1), convention="paper", smoothness=2.0)
    module(random(1, 5, 40))  # At most 5/2, and at least 40/38.
    round_strides(module)
    assert module.strides.tolist() == [2.0, 2.0]


def test_strides_that_were_not_projected_count_as_they_are_used():
    module = DiffStride1d(2.0)
    set_strides(module, 0.2)
    assert round_strides(module).rows[0].axes[0].before == 1.0
    assert module.strides.tolist() == [1.0]


def test_a_stride_of_all_axes():
    module = layer(2.7, shared=True)
    module(random(1, 24, 16))
    (row,) = round_strides(module).rows
    assert module.strides.tolist() == [3.0]
    assert [(axis.after, axis.input_size) for axis in row.axes] == [(3, 24), (3, 16)]


def test_a_layer_of_two_branches_is_one_row():
    pool = layer()
    model = torch.nn.ModuleDict({"main": torch.nn.Sequential(pool), "shortcut": pool})
    (row,) = round_strides(model).rows
    assert row.names == ("main.0", "shortcut")
    assert "main.0, shortcut" in str(round_strides(model))


def test_two_layers_with_one_parameter_get_one_stride():
    model = torch.nn.Sequential(
        layer(2.8, limits=(None, 4.0)), layer(1.0, limits=(None, 2.5)), layer(2.8)
    )
    model[1].strides = model[0].strides
    rows = round_strides(model).rows
    assert [own.strides.tolist() for own in model] == [[2.0, 2.0], [2.0, 2.0], [3.0, 3.0]]
    assert [row.axes[0].after for row in rows] == [2, 2, 3]


def test_held_strides_are_rounded_too():
    module = layer(1.7, trainable=False)
    round_strides(module)
    assert module.strides.tolist() == [2.0, 2.0]
    assert not module.strides.requires_grad


def test_sizes_are_those_of_the_input_seen_last(rule):
    module = layer((1.6, 3.3))
    for size in (16, 40, 24):
        module(random(1, size, size))
    (row,) = round_strides(module).rows
    assert [(a.input_size, a.size_before, a.size_after) for a in row.axes] == [
        (24, 15, 12),
        (24, 8, 8),
    ]
    assert module(random(1, 24, 24)).shape == (1, 12, 8)
    assert module.output_sizes((24, 24)) == (12, 8)


def test_is_a_projection(rule):
    model = small_resnet(strides=(1.8, 2.4), channels=(2, 2, 2))
    model(random(1, 1, 24, 24))
    round_strides(model)
    assert [block.pool.plans_seen() for block in model.blocks] == [(), ()]
    assert model(random(1, 1, 24, 24)).shape == (1, 10)
    first, second = (block.pool for block in model.blocks)
    assert [plan.output_sizes for plan in first.plans_seen()] == [(12, 12)]
    assert [plan.output_sizes for plan in second.plans_seen()] == [(6, 6)]
    assert round_strides(model).rows[0].axes[0].before == 2.0


def test_the_report_says_what_there_is_to_know():
    model = torch.nn.Sequential(layer((1.6, 3.3)), layer(2.2))
    model[0](random(1, 24, 16))
    lines = str(round_strides(model)).splitlines()
    assert [line.split() for line in lines[:5]] == [
        ["layer", "axis", "stride", "now", "N", "M", "M", "now"],
        ["0", "-2", "1.600", "2", "24", "15", "12"],
        ["-1", "3.300", "3", "16", "5", "6"],
        ["1", "-2", "2.200", "2", "?", "?", "?"],
        ["-1", "2.200", "2", "?", "?", "?"],
    ]
    assert "measure its accuracy again" in " ".join(lines)
    assert "?: sizes unknown" in lines[-1]


def test_nothing_changes_where_a_layer_cannot_be_rounded():
    model = torch.nn.Sequential(layer((1.6, 2.4)), layer(1.4, limits=(1.2, 1.8)))
    with pytest.raises(
        ValueError,
        match=r"strides of layer '1' cannot be rounded: its bounds, 1\.2 to 1\.8, hold no whole",
    ):
        round_strides(model)
    set_strides(model[1], math.nan, 1.0)
    with pytest.raises(ValueError, match="nan"):
        round_strides(model)
    assert model[0].strides.tolist() == pytest.approx([1.6, 2.4])


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
def test_bounds_that_cross():
    # At N = 5, R = 4 the floor is 5, above N/2, which wins.
    module = DiffStride1d(2.0, convention="paper")
    module(random(5))
    with pytest.raises(ValueError, match=r"its bounds, 2\.5 to 2\.5, hold no whole number"):
        round_strides(module)


def test_what_is_refused():
    with pytest.raises(ValueError, match="model must have a DiffStride layer, got Linear with"):
        round_strides(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        round_strides([DiffStride2d(2.0)])
