"""Strides and settings move between the layers of all frameworks as a plain dict."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffstride_jax import equinox_modules, nnx_modules
from diffstride_numpy import DiffStride as NumpyLayer
from diffstride_torch import DiffStride2d as TorchLayer

pytestmark = pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")

X = np.random.default_rng(0).standard_normal((2, 24, 20, 3)).astype(np.float32)


def evaluate(layer):
    """Return a layer's output for `X` on the host."""
    if isinstance(layer, torch.nn.Module):
        return layer(torch.tensor(X)).detach().numpy()
    if isinstance(layer, NumpyLayer):
        return layer.forward(X)
    return np.asarray(layer(jnp.asarray(X)))


LAYERS = {
    "numpy": NumpyLayer,
    "torch": TorchLayer,
    "nnx": nnx_modules.DiffStride,
    "equinox": equinox_modules.DiffStride,
}

# Strides that float32 holds exactly, so that every framework has the same ones.
OPTIONS = (
    {"stride": [2.0, 1.75], "axes": (1, 2)},
    {"stride": 2.5, "shared": True, "axes": (-2, -3), "convention": "paper", "norm": "ortho"},
    {"stride": 3.0, "axes": (-3, -2), "limits": (None, 2.5), "smoothness": 0.75, "method": "fft"},
    {"stride": 3.0, "axes": (-3, -2), "limits": None, "cropping": False},
    {"stride": [2.0, 1.5], "axes": (1, 2), "convention": "tensorflow"},
    {"stride": [2.0, 1.75], "axes": (1, 2), "size_offset": (-1, 2)},
    {"stride": 2.5, "axes": (1, 2), "multiple_of": 3},
)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("origin", LAYERS)
def test_layers_move_between_frameworks(origin, options):
    layer = LAYERS[origin](**options)
    plain = json.loads(json.dumps(layer.to_dict()))
    assert plain["stride"] == list(np.ravel(options["stride"])) * (
        len(plain["stride"]) // np.size(options["stride"])
    )
    expected = evaluate(layer)
    for other in LAYERS.values():
        moved = other(**plain)
        assert moved.to_dict() == plain
        found = evaluate(moved)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=5e-6 * np.abs(expected).max())


@pytest.mark.parametrize("name", LAYERS)
def test_layout_is_an_argument_like_any_other(name):
    plain = LAYERS[name]([2.0, 1.75]).to_dict()
    moved = NumpyLayer(**{**plain, "axes": (-3, -2)})
    assert moved.forward(X).shape[1:3] == NumpyLayer([2.0, 1.75]).output_sizes((24, 20))


def test_strides_below_one_are_given_as_what_they_count_as():
    layer = NumpyLayer([2.0, 2.0])
    layer.strides[:] = [0.5, 3.0]
    assert layer.to_dict()["stride"] == [1.0, 3.0]
    module = TorchLayer([2.0, 2.0])
    with torch.no_grad():
        module.strides[0] = 0.5
    assert module.to_dict()["stride"] == [1.0, 2.0]
