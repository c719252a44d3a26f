import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from diffstride_experiments.entry import importing
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("script", "option"),
    [
        ("examples/accelerate_digits.py", "--epochs"),
        ("examples/digits_nnx.py", "--stride"),
        ("examples/lightning_digits.py", "--stride"),
        ("examples/swap_train_ship.py", "--images"),
        ("examples/torch_jax_parity.py", "--steps"),
        ("checks/kill_and_resume.py", "--kills"),
    ],
)
def test_scripts_refuse_bad_options_in_a_line(script, option):
    command = [sys.executable, EXAMPLES.parent / script, option, "0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: {option}: must be greater than")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("script", "package", "install"),
    [
        ("examples/accelerate_digits.py", "accelerate", "'diffstride[experiments]' accelerate"),
        ("examples/digits_nnx.py", "jax", "'diffstride[experiments,flax]' optax"),
        ("examples/lightning_digits.py", "lightning", "'diffstride[experiments]' lightning"),
        ("examples/swap_train_ship.py", "onnxruntime", "'diffstride[experiments]'"),
        ("examples/torch_jax_parity.py", "jax", "'diffstride[experiments,flax]' optax"),
        ("checks/kill_and_resume.py", "torch", "'diffstride[experiments]'"),
    ],
)
def test_package_that_a_script_lacks_is_named_in_a_line(
    script, package, install, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(SystemExit, match="1"):
        runpy.run_path(str(EXAMPLES.parent / script), run_name="__main__")
    message = f"error: {package} is not installed: pip install {install}\n"
    assert capsys.readouterr().err == message


def test_script_that_is_interrupted_while_it_imports_says_so(capsys):
    with pytest.raises(SystemExit, match="130"), importing():
        raise KeyboardInterrupt
    assert capsys.readouterr().err == "\nInterrupted.\n"


@pytest.mark.slow
def test_digits_nnx(capsys):
    main = runpy.run_path(str(EXAMPLES / "digits_nnx.py"))["main"]
    (first, second) = main(epochs=2, stride=3.0, penalty=0.1, seed=0)
    assert second > first > 0.2
    last = capsys.readouterr().out.splitlines()[-1]
    assert "strides" in last
    assert "3.00 x 3.00" not in last
    assert int(last.split()[-2]) < 10  # compilations in 124 steps


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore::UserWarning:torch.*")
@pytest.mark.filterwarnings("ignore::diffstride_torch.NothingToCropWarning")
def test_swap_train_ship(capsys):
    threads = torch.get_num_threads()
    main = runpy.run_path(str(EXAMPLES / "swap_train_ship.py"))["main"]
    try:
        result = main(images=200, epochs=1, weight=1.0, seed=0)
    finally:
        torch.set_num_threads(threads)
    assert result["freezing error"] < 1e-5
    assert result["shipping error"] < 1e-5
    assert result["multiply-adds ratio"] == pytest.approx(1, abs=0.05)
    out = capsys.readouterr().out
    assert "replaced 8 operations by 5 layers" in out
    assert "DiffStride, frozen" in out


# The libraries' own warnings, about names in PyTorch and the number of cores.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:Checkpoint directory:UserWarning")
@pytest.mark.parametrize("library", ["accelerate", "lightning"])
def test_loops_of_other_libraries_log_strides_and_go_on(library, tmp_path, capsys):
    main = runpy.run_path(str(EXAMPLES / f"{library}_digits.py"))["main"]
    at_once, in_parts = tmp_path / "at-once", tmp_path / "in-parts"
    expected = main(epochs=2, stride=3.0, folder=at_once, seed=0)
    main(epochs=1, stride=3.0, folder=in_parts, seed=0)
    assert main(epochs=2, stride=3.0, folder=in_parts, seed=0) == expected
    assert expected["accuracy"] > 0.5
    assert 1 <= expected["strides/blocks.0.pool/height"] != 3.0
    assert "strides/blocks.0.pool/height: " in capsys.readouterr().out
    curves = EventAccumulator(str(at_once / "curves" if library == "accelerate" else at_once))
    curves.Reload()
    assert {"accuracy", "loss", "multiply_adds", *expected} <= set(curves.Tags()["scalars"])
