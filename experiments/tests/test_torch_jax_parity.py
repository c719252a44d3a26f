import runpy
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "examples" / "torch_jax_parity.py"


@pytest.fixture(scope="module")
def script():
    return runpy.run_path(str(SCRIPT))


@pytest.fixture(scope="module")
def comparison(script, tmp_path_factory):
    figure = tmp_path_factory.mktemp("parity") / "parity.png"
    (result,) = script["main"](steps=20, methods=["diffstride"], figure=figure)
    assert figure.read_bytes().startswith(b"\x89PNG")
    return result


@pytest.mark.slow
@pytest.mark.parametrize("quantity", ["losses", "strides"])
def test_the_bounds_hold_in_every_step(comparison, quantity):
    difference = comparison.difference(quantity)
    assert difference.float64.shape == difference.float32.shape == (20,)
    assert (difference.float64 <= difference.float64_bound).all()
    assert (difference.float32 <= difference.float32_bound).all()
    # The bounds are meaningful: far smaller than the changes in training.
    values = getattr(comparison.jax_trajectories[0], quantity)
    assert difference.float32_bound.max() < np.ptp(values, axis=0).max() / 10
    assert difference.float64_bound.max() < 1e-9


@pytest.mark.slow
def test_a_stride_rate_wrong_by_a_millionth_is_detected(script, comparison):
    run = comparison.torch_runs[2]
    rates = tuple(rate * (1 + 1e-6) for rate in run.stride_rates)
    with jax.enable_x64(True):
        wrong = script["train_jax"](comparison.method, replace(run, stride_rates=rates))
    right, _ = comparison.jax_trajectories
    beyond = replace(comparison, jax_trajectories=(right, wrong))
    assert not beyond.holds
    assert not beyond.difference("strides").float64_holds


@pytest.mark.slow
def test_weights_of_eleven_bits_are_detected(script, comparison):
    run = comparison.torch_runs[0]
    coarse = {
        name: array.astype(np.float16).astype(array.dtype) for name, array in run.state.items()
    }
    wrong = script["train_jax"](comparison.method, replace(run, state=coarse))
    _, right = comparison.jax_trajectories
    beyond = replace(comparison, jax_trajectories=(wrong, right))
    assert not beyond.difference("losses").float32_holds


def test_the_float32_bound_is_a_multiple_of_pytorchs_own_distances(script):
    def trajectory(losses):
        return script["Trajectory"](np.array(losses), np.zeros((2, 3, 2)))

    def run(losses):
        return script["TorchRun"]({}, [], (), (), trajectory(losses))

    comparison = script["Comparison"](
        script["METHODS"]["diffstride-paper"],
        (run([1.0, 2.001]), run([1.003, 2.0]), run([1.0, 2.0])),
        (trajectory([1.5, 2.25]), trajectory([1.0, 2.0])),
    )
    difference = comparison.difference("losses")
    floor = np.array([1.0, 2.0]) * 2.0**-22
    np.testing.assert_allclose(difference.float32, [0.5, 0.249])
    np.testing.assert_allclose(difference.float32_bound, 0.012 * np.array([0.5, 1.0]) + floor)
    assert not difference.float32_holds
    assert difference.float64_holds
    assert not comparison.holds
