import io
import json
import os
import sys
from dataclasses import replace

import pytest
import torch
from changing import changed
from diffstride_experiments import run as training
from diffstride_experiments import train
from diffstride_experiments.config import Config, read_recipe
from diffstride_experiments.entry import run_command
from diffstride_experiments.errors import ExperimentError, UsageError
from diffstride_experiments.trainer import Trainer
from rich.console import Console
from states import assert_runs_ended_alike, last_state
from support.amounts import quick_every
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

METHODS = Config().methods


def run(config):
    return training.run(config, Console(quiet=True))


def metrics(config):
    lines = (config.run_dir / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def interrupt_after(monkeypatch, steps):
    """Stop as Ctrl-C does, in the middle of the step after this many finished steps."""
    whole_step = Trainer._train_step
    finished = []

    def train_step(self, *arguments):
        if len(finished) == steps:
            raise KeyboardInterrupt
        finished.append(1)
        return whole_step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", train_step)


def test_one_run_writes_everything(tiny_config, capfd):
    results = training.run(tiny_config, Console())
    folder = tiny_config.run_dir
    assert [result.method for result in results] == list(METHODS)
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {name for name in files if not name.startswith("tensorboard/")} == {
        "config.toml",
        "metrics.jsonl",
        "results.json",
        "results.md",
        "results.png",
        *(f"checkpoints/{name}/{step:08d}.pt" for name in METHODS for step in (4, 8)),
    }
    assert read_recipe(folder / "config.toml") == tiny_config
    assert [(line["method"], line["epoch"]) for line in metrics(tiny_config)] == [
        (name, epoch) for name in METHODS for epoch in (1, 2)
    ]

    record = json.loads((folder / "results.json").read_text())
    assert record["config"]["seed"] == 0
    assert record["threads"] == 1
    assert record["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert (record["train_samples"], record["evaluation_samples"]) == (160, 40)
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
    shown = capfd.readouterr()
    assert "spectral pooling" in shown.out
    assert " 3.0x3.0" in shown.err


def test_quiet_console_shows_nothing(tiny_config, capfd):
    run(changed(tiny_config, methods=("conv",)))
    assert capfd.readouterr() == ("", "")


def test_tensorboard_has_the_metrics(tiny_config):
    config = changed(tiny_config, methods=("diffstride",))
    run(config)
    events = EventAccumulator(str(config.run_dir / "tensorboard" / "diffstride"))
    events.Reload()
    lines = metrics(config)
    for name in ("train_loss", "accuracy"):
        assert [(event.step, event.value) for event in events.Scalars(name)] == [
            (line["epoch"], pytest.approx(line[name], rel=1e-6)) for line in lines
        ]
    assert [event.value for event in events.Scalars("strides/2 width")] == pytest.approx(
        [line["strides"][1][1] for line in lines], rel=1e-6
    )


def test_penalty_makes_the_network_cheaper(tiny_config):
    methods = ("diffstride", "diffstride-penalised")
    free, penalised = run(changed(tiny_config, methods=methods, training__penalty=100.0))
    assert penalised.after.multiply_adds < free.after.multiply_adds


def test_budget_draws_the_network_to_its_multiply_adds(tiny_config):
    options = {"training__epochs": 4, "optimizer__stride_learning_rate": 0.3}
    config = changed(tiny_config, methods=("diffstride-budget",), **options)
    (result,) = run(changed(config, training__budget=250_000.0))
    assert result.before.multiply_adds < 125_000
    assert result.after.multiply_adds == pytest.approx(250_000, rel=0.15)


def test_budget_without_weight_changes_nothing(tiny_config):
    methods = ("diffstride", "diffstride-budget")
    free, weightless = run(changed(tiny_config, methods=methods, training__budget_weight=0.0))
    assert weightless.after == free.after
    assert weightless.accuracy == free.accuracy


def test_budget_that_no_strides_have_is_refused_before_any_training(tiny_config, monkeypatch):
    interrupt_after(monkeypatch, 0)
    config = changed(tiny_config, methods=("conv", "diffstride-budget"), training__budget=1.0)
    with pytest.raises(UsageError, match=r"training\.budget: target must .* \(diffstride-budget\)"):
        run(config)
    assert not (config.run_dir / "config.toml").exists()


def test_placement_decides_the_result(tiny_config, tmp_path):
    config = changed(tiny_config, methods=("spectral",), training__epochs=1)
    (before,) = run(config)
    (after,) = run(changed(config, run_dir=tmp_path / "after", model__placement="after"))
    assert after.before.multiply_adds > 2 * before.before.multiply_adds
    assert after.before.feature_maps == before.before.feature_maps


def test_runs_repeat_exactly(tiny_config, tmp_path):
    once = changed(tiny_config, methods=("conv", "diffstride-paper"))
    run(once)
    again = changed(once, run_dir=tmp_path / "again")
    run(again)
    assert_runs_ended_alike(again, once)
    run(changed(once, run_dir=tmp_path / "other", seed=1))
    assert metrics(changed(once, run_dir=tmp_path / "other")) != metrics(once)


# There is a checkpoint after every step. The interruption comes before the first one, inside an
# epoch, at its end, between the methods, or in the last step.
@pytest.mark.parametrize("steps", quick_every(2, [3, 0, 8, 4, 13, 15]))
def test_interrupted_run_goes_on_as_if_it_had_not_been(tiny_config, tmp_path, steps, monkeypatch):
    # Strides that change fast take the inner feature maps, and so the bounds of the strides,
    # through many sizes. Mixup, momentum and a schedule have their own states, and the budget
    # depends on the initial strides.
    whole = changed(
        tiny_config,
        methods=("conv", "diffstride-budget"),
        optimizer__stride_learning_rate=1.0,
        training__mixup=0.2,
        training__checkpoint_seconds=0.0,
    )
    run(whole)
    parts = changed(whole, run_dir=tmp_path / "parts")
    with monkeypatch.context() as patch:
        interrupt_after(patch, steps)
        with pytest.raises(KeyboardInterrupt):
            run(parts)
    run(parts)
    assert_runs_ended_alike(parts, whole)


def test_checkpoints_within_an_epoch_are_as_rare_as_asked(tiny_config, monkeypatch):
    config = changed(tiny_config, methods=("conv",), training__checkpoint_seconds=3600.0)
    interrupt_after(monkeypatch, 6)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    assert last_state(config, "conv")["step"] == 4


def test_finished_run_trains_nothing_again(tiny_config, monkeypatch):
    config = changed(tiny_config, methods=("conv",))
    first = run(config)
    # This is the state after a stop between the last checkpoint and its metrics.
    (config.run_dir / "metrics.jsonl").unlink()
    interrupt_after(monkeypatch, 0)
    assert run(config) == first
    assert len(metrics(config)) == 2


def test_damaged_checkpoint_is_told_and_the_one_before_it_used(tiny_config, tmp_path, capsys):
    whole = changed(tiny_config, methods=("conv",))
    run(whole)
    expected = metrics(whole)
    (whole.run_dir / "checkpoints/conv/00000008.pt").write_bytes(b"")
    training.run(whole, Console())
    assert "00000008.pt is damaged or not a checkpoint" in capsys.readouterr().out
    assert metrics(whole) == expected
    assert last_state(whole, "conv")["step"] == 8


def test_checkpoint_of_a_run_with_other_options_is_refused(tiny_config, tmp_path, capsys):
    config = changed(tiny_config, methods=("conv",))
    run(config)
    expected = metrics(config)
    other = changed(config, run_dir=tmp_path / "other", seed=5)
    run(other)
    name = "checkpoints/conv/00000008.pt"
    (config.run_dir / name).write_bytes((other.run_dir / name).read_bytes())
    training.run(config, Console())
    assert "is a checkpoint of conv with options" in " ".join(capsys.readouterr().out.split())
    assert metrics(config) == expected


def test_events_lost_between_checkpoint_and_metrics_are_written_again(tiny_config):
    config = changed(tiny_config, methods=("conv",))
    run(config)
    events = config.run_dir / "tensorboard" / "conv"
    for path in events.iterdir():
        path.unlink()
    run(config)
    accumulator = EventAccumulator(str(events))
    accumulator.Reload()
    assert [event.step for event in accumulator.Scalars("accuracy")] == [2]


def test_names_of_skipped_files_are_printed_as_they_are(tiny_config, monkeypatch, capsys):
    load = type(tiny_config.data).load
    skipped = ("x[/b] [bold].jpg: cannot be read",)
    monkeypatch.setattr(
        type(tiny_config.data), "load", lambda *given: replace(load(*given), skipped=skipped)
    )
    training.run(changed(tiny_config, methods=("conv",)), Console())
    assert f"Skipped 1 unreadable files:\n  {skipped[0]}\n" in capsys.readouterr().out


def test_samples_are_accounted_for_on_the_terminal_and_in_the_report(
    tiny_config, monkeypatch, capsys
):
    load = type(tiny_config.data).load
    account = {
        "skipped": ("broken.png: cannot be read",),
        "left_out": tuple(f"{number}.txt: no image" for number in range(12)),
        "remarks": ("Half of them are kept.",),
    }
    monkeypatch.setattr(
        type(tiny_config.data), "load", lambda *given: replace(load(*given), **account)
    )
    config = changed(tiny_config, methods=("conv",))
    training.run(config, Console())
    told = capsys.readouterr().out
    assert "Left out 12 files, folders or frames:\n  0.txt: no image\n  1.txt" in told
    assert "  9.txt: no image\n  and 2 more, see results.json\nHalf of them are kept.\n" in told
    record = json.loads((config.run_dir / "results.json").read_text())
    assert {name: tuple(record[name]) for name in account} == account
    assert (
        (config.run_dir / "results.md")
        .read_text()
        .endswith(
            "\nTrained on 160 samples, evaluated on 40.\nHalf of them are kept.\n"
            "1 unreadable files were skipped, listed in results.json.\n"
            "12 other files, folders or frames were left out, listed in results.json.\n"
        )
    )


def test_run_folder_and_terminal_take_names_that_are_not_utf8(tiny_config, monkeypatch):
    folder = tiny_config.run_dir.with_name(os.fsdecode(b"caf\xe9"))
    config = changed(tiny_config, methods=("conv",), run_dir=folder)
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="utf-8", errors="strict")
    monkeypatch.setattr(sys, "stdout", terminal)
    run_command(lambda: training.run(config, Console()), "Go on")
    terminal.flush()
    assert rb"caf\udce9" in terminal.buffer.getvalue()
    assert (folder / "results.json").exists()
    assert list((folder / "tensorboard" / "conv").iterdir())
    assert run(config)[0].label == "strided convolution"


def test_unfinished_files_of_a_killed_run_are_removed(tiny_config):
    config = changed(tiny_config, methods=("conv",))
    others = config.run_dir / "elsewhere" / "notes.txt.123.tmp"
    others.parent.mkdir(parents=True)
    others.write_text("not of the run")
    unfinished = config.run_dir / "checkpoints" / "conv" / "00000001.pt.123.tmp"
    unfinished.parent.mkdir(parents=True)
    unfinished.write_bytes(b"half")
    run(config)
    assert not unfinished.exists()
    assert others.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv": "gone"}, "with options that this version does not accept (recipe "),
        ({"placement": "place"}, "with options that this version does not accept (recipe "),
        ({'placement = "method"\n': ""}, "of an earlier version, with different networks; "),
    ],
    ids=["another method", "another option", "without placement"],
)
def test_run_of_an_earlier_version_is_refused_in_a_line(
    tiny_config, changes, message, monkeypatch, capsys
):
    command(monkeypatch, tiny_config)
    path = tiny_config.run_dir / "config.toml"
    text = path.read_text()
    for there, earlier in changes.items():
        assert there in text
        text = text.replace(there, earlier)
    path.write_text(text)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, tiny_config)
    assert stopped.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"error: run_dir: {tiny_config.run_dir} holds a run {message}")
    assert told.endswith("; choose another --run-dir.\n")
    assert len(told.splitlines()) == 1
    assert path.read_text() == text


def test_other_options_in_the_same_folder_are_refused(tiny_config):
    config = changed(tiny_config, methods=("conv",))
    run(config)
    before = metrics(config)
    with pytest.raises(ExperimentError, match="other options") as refused:
        run(changed(config, training__epochs=5, optimizer__learning_rate=0.5))
    message = str(refused.value)
    assert "training.epochs: 2 there, 5 now" in message
    assert "optimizer.learning_rate: 0.005 there, 0.5 now" in message
    assert "seed" not in message
    assert metrics(config) == before


def test_damaged_options_are_reported(tiny_config):
    config = changed(tiny_config, methods=("conv",))
    run(config)
    (config.run_dir / "config.toml").write_text("[")
    with pytest.raises(ExperimentError, match=r"config\.toml is not TOML"):
        run(config)


def test_loss_that_is_not_finite_is_reported(tiny_config):
    config = changed(tiny_config, methods=("conv",), optimizer__learning_rate=1e30)
    with pytest.raises(ExperimentError, match="strided convolution: the loss became"):
        run(config)


def test_batch_larger_than_the_data_is_refused(tiny_config):
    with pytest.raises(ExperimentError, match=r"training\.batch_size: 161 .* 160 training samples"):
        run(changed(tiny_config, training__batch_size=161))


def test_device_with_too_little_memory_is_named(tiny_config, monkeypatch):
    def fail(*arguments):
        raise torch.OutOfMemoryError("of 80 GiB")

    monkeypatch.setattr(Trainer, "_train_step", fail)
    with pytest.raises(ExperimentError, match=r"device: cpu .* lower training\.batch_size, 40"):
        run(tiny_config)


def test_gpu_that_is_not_there_is_refused(tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ExperimentError, match="device: cuda is not available"):
        run(changed(tiny_config, device="cuda"))


@pytest.mark.parametrize(
    "options",
    quick_every(
        2,
        [
            {
                "optimizer__name": "sgd",
                "optimizer__schedule": "cosine",
                "optimizer__warmup_epochs": 0.5,
            },
            {"training__label_smoothing": 0.1, "training__mixup": 0.2},
            {"training__channels_last": True},
            {"training__precision": "bfloat16"},
            {"training__precision": "float16"},
            {"training__workers": 1},
            {"model__name": "resnet18", "model__channels": (4, 4, 4, 4, 4)},
        ],
    ),
    ids=lambda options: next(iter(options)).split("__")[1] + str(next(iter(options.values()))),
)
def test_every_way_of_training_learns(tiny_config, options):
    config = changed(tiny_config, methods=("diffstride",), training__epochs=3, **options)
    run(config)
    first, *_, last = metrics(config)
    assert last["train_loss"] < first["train_loss"]
    assert last["strides"] != first["strides"]


def test_precision_decides_the_result(tiny_config, tmp_path):
    losses = set()
    for precision in ("float32", "bfloat16", "float16"):
        config = changed(
            tiny_config,
            methods=("conv",),
            run_dir=tmp_path / precision,
            training__epochs=1,
            training__precision=precision,
        )
        run(config)
        losses.add(metrics(config)[0]["train_loss"])
    assert len(losses) == 3
    assert max(losses) - min(losses) < 0.05


def test_workers_do_not_change_the_result(tiny_config, tmp_path):
    alone = changed(tiny_config, methods=("conv",))
    run(alone)
    helped = changed(alone, run_dir=tmp_path / "helped", training__workers=2)
    run(helped)
    assert metrics(helped) == metrics(alone)


def test_clipped_gradients_are_no_longer_than_asked(tiny_config, monkeypatch):
    norms = []
    update = torch.optim.AdamW.step

    def step(self, *arguments):
        gradients = [p.grad for group in self.param_groups for p in group["params"]]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        return update(self, *arguments)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    run(changed(tiny_config, methods=("diffstride-paper",), optimizer__clip_norm=0.01))
    assert max(norms) == pytest.approx(0.01, rel=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_compiled_training_gives_the_same_strides(tiny_config, tmp_path):
    eager = changed(
        tiny_config,
        methods=("diffstride",),
        training__epochs=1,
        # Few sizes, because each needs a compilation.
        optimizer__stride_learning_rate=0.02,
    )
    run(eager)
    compiled = changed(eager, run_dir=tmp_path / "compiled", training__compile="aot_eager")
    run(compiled)
    for found, expected in zip(metrics(compiled), metrics(eager), strict=True):
        for one, other in zip(found["strides"], expected["strides"], strict=True):
            assert one == pytest.approx(other, rel=1e-4)
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=1e-4)


def command(monkeypatch, config, *more):
    arguments = [
        "diffstride-train", "--run-dir", str(config.run_dir), "--methods", "conv",
        "--data.train-count", "160", "--data.evaluation-count", "40", "--training.batch-size", "40",
        "--training.epochs", "2", "--threads", "1", "--device", "cpu", *more,
    ]  # fmt: skip
    monkeypatch.setattr(sys, "argv", arguments)
    train.main()


def test_command_says_how_to_go_on(tiny_config, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        interrupt_after(patch, 5)
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
    tiny_config.run_dir.write_text("a file [/b]")
    with pytest.raises(SystemExit) as stopped:
        command(monkeypatch, tiny_config)
    assert stopped.value.code == 1
    message = capsys.readouterr().err
    assert message.startswith("error: run_dir: ")
    assert "Traceback" not in message
