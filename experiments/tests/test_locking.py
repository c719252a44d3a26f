"""A folder belongs to one run at a time, and to no run if its start failed."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from changing import changed
from diffstride_experiments import atomic, locking
from diffstride_experiments.checkpoint import Checkpoints
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.locking import check_folder, locked
from diffstride_experiments.run import run
from diffstride_experiments.studies import execution
from diffstride_experiments.studies.options import StudyOptions
from diffstride_experiments.trainer import Trainer
from rich.console import Console

QUIET = Console(quiet=True)

HOLD = """
import os, sys, time
from pathlib import Path
from diffstride_experiments.locking import locked

with locked(Path(sys.argv[1]), "run_dir"):
    # A helper that outlives its parent, as those that load samples do for some seconds. It has
    # let go of the lock by the time it prints.
    if not os.fork():
        print(os.getpid(), flush=True)
    time.sleep(60)
"""


def fail_for_want_of_space(*arguments):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_second_is_refused_and_the_first_untouched(tmp_path):
    folder = tmp_path / "run"
    with locked(folder, "run_dir"):
        (folder / "metrics.jsonl").touch()
        refused = pytest.raises(ExperimentError, match=r"run_dir: .* is in use by another run")
        with refused, locked(folder, "run_dir"):
            raise AssertionError("held twice")
        assert {path.name for path in folder.iterdir()} == {".lock", "metrics.jsonl"}
    with locked(folder, "run_dir"):
        pass
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_run_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        helper = int(process.stdout.readline())
        try:
            with pytest.raises(ExperimentError, match=r"in use"), locked(tmp_path, "run_dir"):
                pass
            process.kill()
            process.wait()
            with locked(tmp_path, "run_dir"):
                pass
        finally:
            os.kill(helper, signal.SIGKILL)


def test_folders_that_were_made_for_nothing_are_removed(tmp_path):
    with locked(tmp_path / "a" / "b", "run_dir"):
        assert (tmp_path / "a" / "b").is_dir()
    assert not any(tmp_path.iterdir())
    (tmp_path / "mine").mkdir()
    with locked(tmp_path / "mine", "run_dir"):
        pass
    assert (tmp_path / "mine").is_dir()


def test_folder_that_cannot_be_is_refused_by_name(tmp_path):
    file = tmp_path / "file"
    file.touch()
    (tmp_path / "nowhere").symlink_to(tmp_path / "nothing")
    for folder in (
        file,
        file / "run",
        file / "a" / "b",
        tmp_path / "nowhere",
        tmp_path / ("x" * 999),
    ):
        with pytest.raises(ExperimentError, match=r"^run_dir: ") as refused:
            check_folder(folder, "run_dir")
        assert str(folder) in str(refused.value)


def test_folder_that_may_not_be_written_is_refused(tmp_path, monkeypatch):
    # Patched, because a user who may write everywhere is never refused.
    monkeypatch.setattr(locking.os, "access", lambda path, mode: False)
    with pytest.raises(ExperimentError, match=r"run_dir: .*run cannot be written: no permission"):
        check_folder(tmp_path / "run", "run_dir")
    monkeypatch.undo()

    def refuse(self, *arguments, **options):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(locking.FileLock, "acquire", refuse)
    refused = pytest.raises(ExperimentError, match=r"run_dir: .* cannot be written: Read-only")
    with refused, locked(tmp_path / "run", "run_dir"):
        pass
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        {"data__train_count": 10**6},
        {"training__batch_size": 1000},
        {"optimizer__learning_rate": 1e30},
    ],
    ids=["data", "batch", "loss"],
)
def test_start_that_failed_does_not_stand_in_the_way(tiny_config, wrong):
    config = changed(tiny_config, methods=("conv",), training__epochs=1, data__train_count=40)
    with pytest.raises(ExperimentError):
        run(changed(config, **wrong), QUIET)
    assert not config.run_dir.exists()
    run(config, QUIET)
    assert (config.run_dir / "config.toml").exists()


def test_first_checkpoint_that_cannot_be_written_leaves_no_claim(tiny_config, monkeypatch):
    config = changed(tiny_config, methods=("conv",), training__epochs=1, data__train_count=40)
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", fail_for_want_of_space)
        with pytest.raises(OSError, match="No space left"):
            run(config, QUIET)
    assert not config.run_dir.exists()
    run(changed(config, seed=1), QUIET)


def test_options_are_written_before_the_first_checkpoint(tiny_config, monkeypatch):
    config = changed(tiny_config, methods=("conv",), training__checkpoint_seconds=0.0)
    step, steps = Trainer._train_step, []

    def second_step_stops(self, *arguments):
        steps.append((config.run_dir / "config.toml").exists())
        if len(steps) == 2:
            raise KeyboardInterrupt
        step(self, *arguments)

    monkeypatch.setattr(Trainer, "_train_step", second_step_stops)
    with pytest.raises(KeyboardInterrupt):
        run(config, QUIET)
    assert steps == [False, True]
    with pytest.raises(ExperimentError, match=r"holds a run with other options"):
        run(changed(config, seed=3), QUIET)


def test_options_that_the_user_keeps_in_the_folder_are_not_lost(tiny_config):
    config = changed(tiny_config, methods=("conv",))
    config.run_dir.mkdir()
    path = config.run_dir / "config.toml"
    path.write_text("seed = 5 # mine")
    with pytest.raises(ExperimentError, match=r"other options"):
        run(config, QUIET)
    assert path.read_text() == "seed = 5 # mine"


def test_run_in_a_folder_in_use_is_refused(tiny_config):
    with locked(tiny_config.run_dir, "run_dir"), pytest.raises(ExperimentError, match=r"in use"):
        run(tiny_config, QUIET)


def test_study_in_a_folder_in_use_is_refused(tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "check_samples", None)
    options = StudyOptions(name="robustness-digits", folder=tmp_path)
    refused = pytest.raises(ExperimentError, match=r"folder: .* in use")
    with locked(tmp_path / options.name, "folder"), refused:
        execution.run_study(options, QUIET)


def test_full_disk_is_reported_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic.os, "fsync", fail_for_want_of_space)
    path = tmp_path / "results.json"
    path.write_text("old")
    refused = pytest.raises(OSError, match=r"No space left on device: .*results\.json")
    with refused, atomic.replacing(path) as file:
        file.write(b"new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["results.json"]
