"""A run continues to the same result, no matter which write fails or where it is killed."""

import os
import runpy
from pathlib import Path

import pytest
from changing import changed
from diffstride_experiments import atomic
from diffstride_experiments.run import run
from rich.console import Console
from states import assert_runs_ended_alike

CHECK = Path(__file__).resolve().parents[1] / "checks" / "kill_and_resume.py"


class Killed(BaseException):
    """A kill. Nothing may catch it: only what is on the disk is left."""


class FaultyDisk:
    """A disk that counts the steps of writing files and dies at one of them.

    Parameters
    ----------
    monkeypatch : pytest.MonkeyPatch
    deadly : int or None
        Step, counted from 0, at which to die. A write dies halfway.
    """

    def __init__(self, monkeypatch, deadly):
        self.steps = 0
        self._deadly = deadly
        path_open, replace, fsync = Path.open, Path.replace, os.fsync

        def open_(path, mode="r", *arguments, **options):
            if mode == "wb":
                self._step()
                return FaultyFile(path_open(path, mode, *arguments, **options), self._step)
            return path_open(path, mode, *arguments, **options)

        def replace_(path, target):
            self._step()
            result = replace(path, target)
            self._step()
            return result

        def fsync_(descriptor):
            self._step()
            fsync(descriptor)

        monkeypatch.setattr(Path, "open", open_)
        monkeypatch.setattr(Path, "replace", replace_)
        monkeypatch.setattr(atomic.os, "fsync", fsync_)

    def _step(self):
        self.steps += 1
        if self.steps - 1 == self._deadly:
            raise Killed


class FaultyFile:
    def __init__(self, file, step):
        self._file, self._step = file, step

    def write(self, content):
        half = len(content) // 2
        self._file.write(content[:half])
        self._file.flush()
        self._step()
        self._file.write(content[half:])

    def __getattr__(self, name):
        return getattr(self._file, name)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._file.close()


@pytest.fixture
def short_config(tiny_config):
    return changed(
        tiny_config,
        methods=("diffstride",),
        data__train_count=40,
        data__evaluation_count=20,
        training__batch_size=20,
        training__checkpoint_seconds=0.0,
        optimizer__stride_learning_rate=1.0,
    )


@pytest.mark.slow
def test_a_fault_at_any_step_of_writing_costs_nothing(short_config, tmp_path, monkeypatch):
    run(short_config, Console(quiet=True))
    step, finished = 0, False
    while not finished:
        config = changed(short_config, run_dir=tmp_path / f"fault {step}")
        with monkeypatch.context() as patch:
            disk = FaultyDisk(patch, deadly=step)
            try:
                run(config, Console(quiet=True))
                finished = True
            except Killed:
                pass
        run(config, Console(quiet=True))
        assert_runs_ended_alike(config, short_config)
        assert not list(config.run_dir.rglob("*.tmp"))
        step += 1
    # Four checkpoints, the options, the metrics of two epochs and at the end, and three result
    # files. Each is opened, written, flushed, moved into place and synced.
    assert step == disk.steps + 1 >= 6 * 11 + 1


@pytest.mark.slow
def test_killed_run_ends_bit_for_bit_as_an_undisturbed_one(capsys):
    runpy.run_path(str(CHECK))["main"](kills=3, epochs=2, seed=0)
    assert "After 3 kills" in capsys.readouterr().out
