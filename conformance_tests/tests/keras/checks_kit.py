"""The kit's cases and the recordings of the authors' layer, through the layer of Keras."""

import keras
import numpy as np
import pytest
from diffstride_conformance.cases import all_cases
from diffstride_conformance.golden import load_cases
from diffstride_conformance.run import run_case
from diffstride_keras import DiffStride2d
from support.amounts import quick_every
from support.keras_layers import LayerImplementation, can_run, evaluated, over_jax

CASES = [case for case in all_cases() if can_run(case)]
# What float32 decides in a recording is another matter, see the kit's own reproduction.
RECORDED = [case for case in load_cases() if case.layer == "DiffStride" and case.special is None]
STEP = 30 if over_jax else 8


def test_there_are_cases():
    assert len(CASES) > 60
    assert {case.options["convention"] for case in CASES} == {"nominal", "paper", "tensorflow"}
    assert len(RECORDED) > 20


@pytest.mark.parametrize("case", quick_every(STEP, CASES), ids=lambda case: case.name)
def test_layer_owes_what_the_kit_asks(case):
    keras.utils.clear_session()
    assert run_case(LayerImplementation(), case, "float32").keys() >= {"output", "dx", "dstrides"}


@pytest.mark.filterwarnings("ignore::diffstride_core.NothingToCropWarning")
@pytest.mark.parametrize("case", quick_every(STEP, RECORDED), ids=lambda case: case.id)
def test_layer_repeats_the_authors_numbers(case):
    config = case.config
    layer = DiffStride2d(
        config.strides,
        smoothness_factor=config.smoothness,
        cropping=config.cropping,
        shared_stride=config.shared_stride,
        lower_limit_stride=config.limits[0],
        upper_limit_stride=config.limits[1],
        data_format="channels_first" if config.axes == (-2, -1) else "channels_last",
        convention="tensorflow",
    )
    found = evaluated(layer, case.arrays["x"], case.arrays["g"])
    for array, name in zip(found, ("y", "dx", "dstrides"), strict=True):
        recorded = case.arrays[name]
        tolerance = 1e-5 * np.abs(recorded).max() if name != "dstrides" else 1e-3
        np.testing.assert_allclose(array, recorded, rtol=1e-4, atol=tolerance)
