"""The table of what a model's strides amount to."""

import copy
import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from diffstride_torch import (
    DiffStride1d,
    DiffStride2d,
    DiffStrideConv2d,
    FlopsBudget,
    SpectralPool2d,
    flops_penalty,
    project_strides,
    stride_summary,
)
from diffstride_torch.models import small_resnet

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")


class StubFlops:
    """Counts that a test chooses."""

    def __init__(self, layers, total, own, at_output):
        self.layers = layers
        self._total, self._own, self._at_output = total, own, at_output

    def multiply_adds(self):
        return self._total

    def of_layer(self, layer):
        return self._own[layer]

    def at_output_of(self, layer):
        return self._at_output[layer]


def two_layers():
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 4, 3, padding=1),
        DiffStride2d(2.0),
        torch.nn.Conv2d(4, 4, 3, padding=1),
        DiffStride2d((1.7, 2.3), convention="paper"),
    )


def test_rows_say_what_the_last_forward_pass_did():
    model = two_layers()
    y = model(torch.zeros(2, 1, 64, 48))
    summary = stride_summary(model)
    assert [row.names for row in summary.rows] == [("1",), ("3",)]
    first, second = (row.axes for row in summary.rows)
    assert [(axis.axis, axis.input_size) for axis in first] == [(-2, 64), (-1, 48)]
    assert [axis.input_size for axis in second] == [axis.output_size for axis in first]
    assert tuple(axis.output_size for axis in second) == tuple(y.shape[-2:])
    for axis in (*first, *second):
        assert axis.effective_stride == axis.input_size / axis.output_size
    assert [axis.stride for axis in second] == pytest.approx([1.7, 2.3], rel=1e-7)
    assert summary.multiply_adds is None
    assert all(row.share is None and row.share_at_output is None for row in summary.rows)


@pytest.mark.parametrize("convention", ["nominal", "paper", "tensorflow"])
def test_stepping_over_a_distance_changes_the_size_and_stopping_before_it_does_not(convention):
    layer = DiffStride2d((2.1, 1.8), convention=convention, dtype=torch.float64)
    layer(torch.zeros(1, 64, 40))
    (row,) = stride_summary(layer).rows

    def sizes(change, i):
        moved = copy.deepcopy(layer)
        with torch.no_grad():
            moved.strides[i] += change
        return moved(torch.zeros(1, 64, 40)).shape[1 + i]

    for i, axis in enumerate(row.axes):
        assert axis.rise > 1e-3
        assert axis.fall > 1e-3
        assert sizes(axis.rise + 1e-6, i) < axis.output_size
        assert sizes(axis.rise - 1e-6, i) == axis.output_size
        assert sizes(-axis.fall + 1e-6, i) == axis.output_size
        assert sizes(-axis.fall - 1e-6, i) > axis.output_size


def test_sizes_are_those_seen_since_the_last_projection():
    layer = DiffStride2d(2.0)

    def seen():
        return stride_summary(layer).rows[0].axes[0].input_size

    for size in (32, 64):
        layer(torch.zeros(1, size, size))
        assert seen() == size
    project_strides(layer)
    assert seen() == 64
    layer(torch.zeros(1, 32, 32))
    assert seen() == 32


def test_sizes_follow_strides_that_have_changed_since_the_forward_pass():
    layer = DiffStride2d(2.0)
    layer(torch.zeros(1, 32, 32))
    with torch.no_grad():
        layer.strides.fill_(4.0)
    assert [axis.output_size for axis in stride_summary(layer).rows[0].axes] == [8, 8]


def test_strides_are_those_used():
    layer = DiffStride2d(1.0, convention="paper")
    with torch.no_grad():
        layer.strides.copy_(torch.tensor([0.2, 50.0]))
    layer(torch.zeros(1, 32, 32))
    floor, upper = stride_summary(layer).rows[0].axes
    # The floor N/(N - R) of the paper convention, and N/2.
    assert (floor.stride, upper.stride) == (32 / 28, 16.0)
    assert floor.fall is None
    assert upper.rise is None


def test_a_shared_stride_and_other_axes():
    layer = DiffStride2d(2.0, shared=True, axes=(1, 2))
    layer(torch.zeros(1, 32, 48, 3))
    axes = stride_summary(layer).rows[0].axes
    assert [(axis.axis, axis.stride, axis.input_size) for axis in axes] == [(1, 2, 32), (2, 2, 48)]


def test_a_layer_in_two_places_is_one_row_with_both_names():
    pool = DiffStride2d(2.0)
    model = torch.nn.ModuleDict({"main": torch.nn.Sequential(pool), "shortcut": pool})
    summary = stride_summary(model)
    assert [row.names for row in summary.rows] == [("main.0", "shortcut")]
    lines = str(summary).splitlines()
    assert lines[1].startswith("main.0, shortcut")
    assert lines[2].startswith(" ")


def test_unknown_sizes_are_said_to_be():
    model = two_layers()
    model[3](torch.zeros(1, 4, 32, 32))
    first, second = stride_summary(model).rows
    for axis in first.axes:
        assert axis.stride == 2.0
        assert dataclasses.astuple(axis)[2:] == (None,) * 5
    assert None not in [axis.input_size for axis in second.axes]
    text = str(stride_summary(model))
    assert "?: sizes unknown" in text
    assert text.splitlines()[1].split() == ["1", "-2", "2.000", *"?????"]
    model[1](torch.zeros(1, 4, 32, 32))
    assert "?" not in str(stride_summary(model))


def test_shares_and_order_from_flops():
    model = two_layers()
    model(torch.zeros(1, 1, 32, 32))
    layers = [model[3], model[1]]
    flops = StubFlops(layers, 2000, {model[1]: 10, model[3]: 30}, {model[1]: 1000, model[3]: 500})
    summary = stride_summary(model, flops)
    assert [row.names for row in summary.rows] == [("3",), ("1",)]
    assert [row.share for row in summary.rows] == [0.015, 0.005]
    assert [row.share_at_output for row in summary.rows] == [0.25, 0.5]
    assert summary.multiply_adds == 2000
    assert "2,000 multiply-adds" in str(summary)
    lines = [line.split() for line in str(summary).splitlines()]
    assert lines[0][-3:] == ["share", "at", "M"]
    assert lines[1][-2:] == ["1.5%", "25.0%"]
    assert "share" not in str(stride_summary(model))


def test_a_layer_that_flops_has_not_reached_comes_last_without_shares():
    model = two_layers()
    flops = StubFlops([model[3]], 100, {model[3]: 5}, {model[3]: 50})
    reached, other = stride_summary(model, flops).rows
    assert (reached.names, reached.share) == (("3",), 0.05)
    assert (other.names, other.share, other.share_at_output) == (("1",), None, None)


def test_table_is_aligned_and_fits_110_columns():
    model = torch.nn.ModuleDict()
    for name in ("stem.pool", "blocks.2.pool", "layer4.0.downsample.0.pool"):
        model[name.replace(".", "_")] = DiffStride2d(2.25)
    for layer in model.values():
        layer(torch.zeros(1, 224, 224))
    layers = list(model.values())
    counts = dict.fromkeys(layers, 10**9)
    summary = stride_summary(model, StubFlops(layers, 10**10, counts, counts))
    lines = str(summary).splitlines()
    assert max(map(len, lines)) <= 110
    # The numbers of a column end where its heading does.
    for heading in ("axis", "stride", "to smaller M", "to larger M"):
        end = lines[0].index(heading) + len(heading)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in lines[1:7])


def test_dicts_can_be_written_as_json():
    model = two_layers()
    model(torch.zeros(1, 1, 32, 32))
    summary = stride_summary(model)
    rows = json.loads(json.dumps(summary.to_dicts()))
    assert [row["names"] for row in rows] == [["1"], ["3"]]
    assert rows[0]["axes"][0]["output_size"] == summary.rows[0].axes[0].output_size
    assert rows[0]["axes"][0].keys() == {
        field.name for field in dataclasses.fields(summary.rows[0].axes[0])
    }


def test_summary_changes_nothing_and_is_frozen():
    model = two_layers()
    model(torch.zeros(1, 1, 32, 32))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    summary = stride_summary(model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    with pytest.raises(dataclasses.FrozenInstanceError):
        summary.rows = ()


def test_one_dimension():
    layer = DiffStride1d(2.0)
    layer(torch.zeros(3, 64))
    (row,) = stride_summary(layer).rows
    assert row.names == ("",)
    assert [axis.axis for axis in row.axes] == [-1]


def test_models_without_a_layer_are_refused():
    with pytest.raises(ValueError, match="DiffStride layer, got SpectralPool2d with none"):
        stride_summary(SpectralPool2d(2.0))


def test_what_cannot_count_is_refused():
    with pytest.raises(TypeError, match=r"flops must be what flops_penalty returns.*got int"):
        stride_summary(small_resnet(), 3)


def test_a_budget_counts_as_the_penalty_does():
    model, x = small_resnet(), torch.zeros(1, 1, 24, 24)
    assert stride_summary(model, FlopsBudget(model, x)) == stride_summary(
        model, flops_penalty(model, x)
    )


def test_flops_of_another_model_are_refused():
    layer = DiffStride2d(2.0)
    flops = StubFlops([layer], 10, {layer: 1}, {layer: 5})
    with pytest.raises(ValueError, match=r"flops must be of the model given.* Sequential"):
        stride_summary(two_layers(), flops)


def test_a_stride_that_is_not_finite_is_refused():
    layer = DiffStride2d(2.0)
    with torch.no_grad():
        layer.strides[0] = torch.nan
    with pytest.raises(ValueError, match="strides must be finite"):
        stride_summary(layer)


def test_shares_from_the_real_counts():
    model, images = two_layers(), torch.zeros(1, 1, 32, 32)
    model(images)
    flops = flops_penalty(model, images)
    summary = stride_summary(model, flops)
    assert [row.names for row in summary.rows] == [("1",), ("3",)]
    first, second = summary.rows
    # The second convolution, with 4 x 4 kernels of 3 x 3, is all there is at the first output.
    positions = first.axes[0].output_size * first.axes[1].output_size
    assert first.share_at_output == 144 * positions / flops.multiply_adds()
    assert second.share_at_output == 0
    # The first convolution, with 4 kernels of 3 x 3, is the rest.
    total = first.share + second.share + first.share_at_output
    assert total == pytest.approx(1 - 36 * 32 * 32 / flops.multiply_adds(), rel=1e-12)


@pytest.mark.parametrize("method", ["fused", "separate"])
def test_shares_of_a_convolution_with_strides(method):
    conv = DiffStrideConv2d(2, 5, 3, 4.0, method=method)
    model, images = torch.nn.Sequential(conv), torch.zeros(1, 2, 32, 40)
    model(images)
    flops = flops_penalty(model, images)
    (row,) = stride_summary(model, flops).rows
    assert row.names == ("0.pool",)
    height, width = (axis.output_size for axis in row.axes)
    if method == "fused":
        # Nine shifted resizes of two maps, and a pointwise convolution of what they make.
        own = 2 * (3 * height * 32 * 40 + 9 * height * width * 40)
        at_output = 5 * 18 * height * width
        assert row.share_at_output == at_output / flops.multiply_adds()
        assert flops.multiply_adds() == own + at_output
    else:
        # The convolution is the rest, at the size of the input.
        own = flops.multiply_adds() - 5 * 18 * 32 * 40
        assert row.share_at_output == 0
    assert row.share == own / flops.multiply_adds()


def test_table_of_the_page_is_what_its_code_prints(capsys):
    page = (Path(__file__).parents[3] / "docs/torch/seeing.md").read_text()
    code, table = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", page, re.S).groups()
    exec(compile(code, "docs/torch/seeing.md", "exec"), {})
    assert capsys.readouterr().out == table
