import json
import sys
from dataclasses import replace

import pytest
import torch
from diffstride_experiments import train
from diffstride_experiments.checkpoint import load_checkpoint
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.trainer import Trainer
from rich.console import Console

METHODS = ("conv", "spectral", "diffstride-paper", "diffstride-relative", "diffstride-penalised")


def run(config):
    return train.run(config, Console(quiet=True))


def metrics(config):
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def assert_same(found, expected):
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def interrupt_after(monkeypatch, epochs):
    """Stop as Ctrl-C does, in the middle of the epoch after so many finished ones."""
    whole_epoch = Trainer._evaluate
    finished = []

    def evaluate(self):
        if len(finished) == epochs:
            raise KeyboardInterrupt
        finished.append(1)
        return whole_epoch(self)

    monkeypatch.setattr(Trainer, "_evaluate", evaluate)


def test_one_run_writes_everything(tiny_config, capfd):
    results = run(tiny_config)
    folder = tiny_config.run_dir
    assert [result.method for result in results] == list(METHODS)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*.*")} == {
        "config.json",
        "metrics.jsonl",
        "results.json",
        "results.md",
        "results.png",
        *(f"checkpoints/{name}.pt" for name in METHODS),
    }
    assert json.loads((folder / "config.json").read_text()) == tiny_config.resolved()
    assert [(line["method"], line["epoch"]) for line in metrics(tiny_config)] == [
        (name, epoch) for name in METHODS for epoch in (1, 2)
    ]

    record = json.loads((folder / "results.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["threads"] == 1
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (record["train_images"], record["evaluation_images"]) == (160, 40)
    by_name = {result["method"]: result for result in record["results"]}
    assert by_name["spectral"]["before"] == by_name["spectral"]["after"]
    for name in METHODS[2:]:
        before, after = by_name[name]["before"], by_name[name]["after"]
        assert before["strides"] == [[3, 3], [2, 2], [3, 3]]
        assert after["strides"] != before["strides"]
        assert metrics(tiny_config)[2 * METHODS.index(name) + 1]["strides"] == after["strides"]
    page = (folder / "results.md").read_text()
    assert "spectral pooling" in page
    assert "times the multiply-adds" in page
    assert (folder / "results.png").read_bytes().startswith(b"\x89PNG")
    assert " 3.0x3.0" in capfd.readouterr().err


def test_penalty_makes_the_network_cheaper(tiny_config):
    free, penalised = run(replace(tiny_config, methods=METHODS[3:], penalty=100.0))
    assert penalised.after.multiply_adds < free.after.multiply_adds


def test_runs_repeat_exactly(tiny_config, tmp_path):
    once = replace(tiny_config, methods=("conv", "diffstride-paper"))
    run(once)
    again = replace(once, run_dir=tmp_path / "again")
    run(again)
    assert metrics(again) == metrics(once)


@pytest.mark.parametrize("epochs", [0, 2, 5, 6, 7])
def test_interrupted_run_goes_on_as_if_it_had_not_been(tiny_config, tmp_path, epochs, monkeypatch):
    # Strides that move fast take the inner maps, and so the strides' bounds, through many sizes.
    whole = replace(
        tiny_config,
        methods=("conv", "diffstride-relative"),
        epochs=4,
        stride_learning_rate=1.0,
    )
    run(whole)
    parts = replace(whole, run_dir=tmp_path / "parts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, epochs)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    assert epochs == 0 or len(metrics(parts)) == epochs
    run(parts)

    assert (parts.run_dir / "metrics.jsonl").read_bytes() == (
        whole.run_dir / "metrics.jsonl"
    ).read_bytes()
    for name in whole.methods:
        expected, found = (
            load_checkpoint(config.run_dir / "checkpoints" / f"{name}.pt")
            for config in (whole, parts)
        )
        # Only the wall-clock time may differ.
        assert_same({**found, "seconds": expected["seconds"]}, expected)


def test_finished_run_trains_nothing_again(tiny_config, monkeypatch):
    config = replace(tiny_config, methods=("conv",))
    first = run(config)
    # What a run that was stopped between its last checkpoint and its metrics leaves.
    (config.run_dir / "metrics.jsonl").unlink()
    interrupt_after(monkeypatch, 0)
    assert run(config) == first
    assert len(metrics(config)) == 2


def test_stopped_while_writing_keeps_the_checkpoint_before(tiny_config, monkeypatch):
    config = replace(tiny_config, methods=("conv",))
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    path = config.run_dir / "checkpoints" / "conv.pt"
    before = path.read_bytes()

    def save_half(state, file):
        file.write(before[: len(before) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", save_half)
        with pytest.raises(KeyboardInterrupt):
            run(config)
    assert path.read_bytes() == before
    run(config)
    assert [line["epoch"] for line in metrics(config)] == [1, 2]


def test_other_options_in_the_same_folder_are_refused(tiny_config):
    config = replace(tiny_config, methods=("conv",))
    run(config)
    before = metrics(config)
    with pytest.raises(ExperimentError, match="other options") as refused:
        run(replace(config, epochs=5, learning_rate=0.5))
    message = str(refused.value)
    assert "epochs: 2 there, 5 now" in message
    assert "learning_rate: 0.005 there, 0.5 now" in message
    assert "seed" not in message
    assert metrics(config) == before


@pytest.mark.parametrize("keep", [0, 100, 0.5, -1])
def test_damaged_checkpoint_is_reported(tiny_config, keep):
    config = replace(tiny_config, methods=("conv",))
    run(config)
    path = config.run_dir / "checkpoints" / "conv.pt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ExperimentError, match=r"conv\.pt is damaged or not a checkpoint"):
        run(config)


def test_damaged_configuration_is_reported(tiny_config):
    config = replace(tiny_config, methods=("conv",))
    run(config)
    (config.run_dir / "config.json").write_text("{")
    with pytest.raises(ExperimentError, match=r"config\.json is damaged"):
        run(config)


def test_loss_that_is_not_finite_is_reported(tiny_config):
    with pytest.raises(ExperimentError, match="strided convolution: the loss became"):
        run(replace(tiny_config, methods=("conv",), learning_rate=1e30))


def command(monkeypatch, config, *more):
    arguments = [
        "diffstride-train", "--run-dir", str(config.run_dir), "--methods", "conv",
        "--images", "200", "--batch-size", "40", "--epochs", "2", "--threads", "1", *more,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()


def test_command_says_how_to_go_on(tiny_config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 1)
        with pytest.raises(SystemExit) as stopped:
            command(monkeypatch, tiny_config)
    assert stopped.value.code == 130
    message = capsys.readouterr().err
    assert "Interrupted" in message
    assert f"diffstride-train --run-dir {tiny_config.run_dir} --methods conv" in message
    command(monkeypatch, tiny_config)
    assert len(metrics(tiny_config)) == 2
    assert "strided" in capsys.readouterr().out


def test_command_reports_errors_without_traceback(tiny_config, monkeypatch, capsys):
    tiny_config.run_dir.write_text("a file")
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, tiny_config)
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert "Traceback" not in message
