import torch
from diffstride_experiments.cost import feature_map_sizes, multiply_adds
from diffstride_torch import DiffStride2d, SpectralPool2d
from torch import nn


def test_convolution_and_linear_layer_are_counted_exactly():
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(3 * 16, 5)
    )
    assert multiply_adds(model, (2, 8, 8)) == 3 * 16 * 2 * 9 + 3 * 16 * 5


def test_resizing_is_counted_as_its_matrix_products():
    # Either axis may come first.
    rows_first = 4 * (7 * 28 * 28 + 7 * 28 * 7)
    assert multiply_adds(SpectralPool2d(4.0), (4, 28, 28)) >= rows_first
    layer = DiffStride2d(4.0)
    assert layer.output_sizes((28, 28)) == (7, 7)
    count = multiply_adds(layer, (4, 28, 28))
    exact = 4 * (7 * 28 * 28 + 7 * 28 * 7)
    # The matrices themselves are computed once per batch.
    assert exact <= count <= 1.05 * exact


def test_counting_changes_nothing():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    multiply_adds(model, (1, 8, 8))
    assert feature_map_sizes(model, [model[0]], (1, 8, 9)) == [(6, 7)]
    assert model.training
    assert not model[0]._forward_hooks
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
