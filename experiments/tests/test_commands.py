"""What the console commands print, and what they import for that."""

import errno
import os
import subprocess
import sys
import warnings
from contextlib import nullcontext

import pytest
from diffstride_experiments import train
from diffstride_experiments.command_line import run_script
from diffstride_experiments.config import RECIPES, parse, read_recipe, recipe_names
from diffstride_experiments.entry import run_command
from diffstride_experiments.errors import ExperimentError, UsageError
from diffstride_experiments.options import Options
from diffstride_experiments.studies import command
from diffstride_experiments.studies.options import StudyOptions
from diffstride_experiments.studies.options import parse as parse_study
from pydantic import PositiveInt

from diffstride_core import NothingToCropWarning

# Packages that take seconds to import, or that are not needed to read options.
HEAVY = {
    "torch",
    "torchvision",
    "sklearn",
    "librosa",
    "matplotlib",
    "mlxtend",
    "tensorboard",
    "jax",
}


def run_python(code, *arguments):
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "arguments", "status"),
    [
        ("train", ["--help"], 0),
        ("train", ["--list"], 0),
        ("train", ["spoken-digits", "--help"], 0),
        ("train", ["--model.strides", "2", "2"], 2),
        ("studies.command", ["--help"], 0),
        ("studies.command", ["penalty", "--seeds", "0"], 2),
    ],
)
def test_help_and_errors_import_nothing_that_takes_seconds(module, arguments, status):
    code = f"""
import sys
from diffstride_experiments.{module} import main
try:
    main()
    status = 0
except SystemExit as stopped:
    status = stopped.code
print(status, *({HEAVY!r} & set(sys.modules)))
"""
    done = run_python(code, *arguments)
    assert done.stdout.splitlines()[-1] == str(status), done.stderr


@pytest.mark.parametrize(
    "package",
    ["pydantic", "filelock", "torch", pytest.param("matplotlib", marks=pytest.mark.slow)],
)
@pytest.mark.parametrize("module", ["train", "studies.command"])
def test_the_extra_that_is_missing_is_named(package, module, tmp_path):
    code = f"""
import sys
sys.modules[{package!r}] = None
from diffstride_experiments.{module} import main
main()
"""
    options = ["penalty", "--folder"] if module == "studies.command" else ["--run-dir"]
    done = run_python(code, *options, str(tmp_path / "run"))
    message = f"error: {package} is not installed: pip install 'diffstride[experiments]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UsageError("seed: no"), 2, "error: seed: no\n"),
        (ExperimentError("[/b] no"), 1, "error: [/b] no\n"),
        (OSError(errno.ENOSPC, "No space left", "a"), 1, "error: a: No space left\n"),
        (OSError("half a file"), 1, "error: half a file\n"),
        (
            ImportError("no symbol", name="torch._C"),
            1,
            "error: torch cannot be imported (no symbol",
        ),
        (
            ModuleNotFoundError("No module", name="rich.console"),
            1,
            "error: rich is not installed: ",
        ),
        (MemoryError(), 1, "error: there is not enough memory.\n"),
        (KeyboardInterrupt(), 130, "\nInterrupted. Go on with the same command:\n  "),
    ],
)
def test_every_error_is_one_line(error, status, message, capsys):
    def fail():
        raise error

    with pytest.raises(SystemExit) as stopped:
        run_command(fail, "Go on")
    assert stopped.value.code == status
    printed = capsys.readouterr().err
    assert printed.startswith(message)
    assert len(printed.strip().splitlines()) == (2 if status == 130 else 1)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs limits of processes")
def test_full_disk_under_the_curves_is_one_line(tmp_path):
    code = """
import resource, sys
from pathlib import Path
from diffstride_experiments.entry import run_command
from diffstride_experiments.metrics import MetricsWriter
resource.setrlimit(resource.RLIMIT_FSIZE, (60, 60))
metrics = {"method": "conv", "epoch": 1, "strides": [[2.0, 2.0]]}
metrics |= dict.fromkeys(["train_loss", "train_accuracy", "loss", "accuracy"], 0.5)
run_command(lambda: MetricsWriter(Path(sys.argv[1])).write_events(metrics), "")
"""
    done = run_python(code, str(tmp_path))
    message = f"error: {tmp_path / 'tensorboard' / 'conv'}: File too large\n"
    assert (done.returncode, done.stderr) == (1, message)


def test_a_name_that_cannot_be_printed_hides_no_error():
    code = """
from diffstride_experiments.entry import run_command
from diffstride_experiments.errors import ExperimentError
def fail():
    raise ExperimentError("caf\\u00e9 \\udce9")
run_command(fail, "")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        timeout=60,
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (1, b"error: caf\\xe9 \\udce9\n")


def test_a_reader_that_leaves_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    code = "from diffstride_experiments.train import main; main()"
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, "--list"],
            stdout=writer,
            stderr=subprocess.PIPE,
            timeout=60,
        )
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_list_has_a_line_for_every_recipe(capsys):
    with pytest.raises(SystemExit, match="0"):
        parse(["--list"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == recipe_names()
    assert all(line.endswith(".") and len(line) < 120 for line in lines)


@pytest.mark.parametrize("name", recipe_names())
def test_recipe_is_known_by_its_name_everywhere(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    config = read_recipe(RECIPES / f"{name}.toml")
    assert parse([name]) == config == parse([str(RECIPES / f"{name}.toml")])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit, match="0"):
        parse([name, "--help"])
    assert f"(default: {config.run_dir})" in capsys.readouterr().out
    (tmp_path / "mine.toml").write_text(f'extends = "{name}"\nseed = 3')
    assert parse(["mine.toml"]) == config.model_copy(update={"seed": 3})


def test_help_shows_the_options_of_all_data_once(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "2000")
    with pytest.raises(SystemExit, match="0"):
        parse(["spoken-digits", "--help"])
    entries = [" ".join(entry.split()) for entry in capsys.readouterr().out.split("\n  --")[1:]]
    flags = [entry.split()[0] for entry in entries]
    assert len(flags) == len(set(flags))
    help_of = dict(zip(flags, entries, strict=True))
    assert help_of["data.name"].endswith(
        "{digits,cifar,images,audio} Kind of data. (default: audio)"
    )
    assert all(f" {kind}: Folder " in help_of["data.path"] for kind in ("cifar", "images", "audio"))
    assert "cifar, images: Largest random shift" in help_of["data.pad"]
    assert "images: Mean of red" in help_of["data.mean"]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "error: --name must be given: 'demo', "),
        (["penalt"], "--name: must be 'demo', "),
        (["penalty", "--seeds", "0"], "--seeds: must be greater than 0, got '0'"),
        (["penalty", "--folder", ""], "--folder: must be a path, got ''"),
        (["penalty", "--jobs", "many"], "--jobs: must be a valid integer, got 'many'"),
        (["penalty", "--sees", "3"], "--sees: there is no such option; did you mean --seeds?"),
        (["penalty", "digits"], "digits: no option takes this value"),
    ],
)
def test_study_refuses_bad_options_in_a_line(arguments, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffstride-study", *arguments])
    with pytest.raises(SystemExit) as stopped:
        command.main()
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert expected in printed
    assert len(printed.splitlines()) == 1


class Arguments(Options):
    """A script that counts."""

    epochs: PositiveInt = 5
    """How far."""

    seed: int = 0
    """Where from."""


@pytest.mark.parametrize(
    ("arguments", "status", "expected"),
    [
        ([], None, "5 0"),
        (["--seed", "-1", "--epochs=2"], None, "2 -1"),
        (["--help"], 0, "usage: script.py [OPTIONS]\n\nA script that counts."),
        (["--epochs", "0"], 2, "error: --epochs: must be greater than 0, got '0'\n"),
        (["more"], 2, "error: more: no option takes this value\n"),
    ],
)
def test_script_reads_its_options(arguments, status, expected, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["folder/script.py", *arguments])
    stopped = nullcontext() if status is None else pytest.raises(SystemExit)
    with stopped as stop:
        run_script(Arguments, lambda epochs, seed: print(epochs, seed))
    assert status is None or stop.value.code == status
    printed = capsys.readouterr()
    assert (printed.err if status else printed.out).startswith(expected)


def test_study_takes_its_name_and_options(tmp_path, capsys):
    given = ["penalty", "--seeds", "2", "--folder", str(tmp_path)]
    assert parse_study(given) == StudyOptions(name="penalty", seeds=2, folder=tmp_path)
    (tmp_path / "penalty").touch()
    with pytest.raises(ExperimentError, match=r"folder: .*penalty must be a folder"):
        parse_study(given)
    with pytest.raises(SystemExit, match="0"):
        parse_study(["--help"])
    assert "--name {demo," in capsys.readouterr().out


def test_interruption_before_anything_was_imported_is_no_traceback(monkeypatch):
    def interrupt(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("diffstride_experiments.config.parse", interrupt)
    with pytest.raises(SystemExit) as stopped:
        train.main()
    assert stopped.value.code == 130


def test_maps_too_small_to_crop_are_left_to_the_report(monkeypatch, tmp_path, recwarn):
    def run(config, console):
        warnings.warn("axis -1 of size 2", NothingToCropWarning, stacklevel=1)

    monkeypatch.setattr("diffstride_experiments.run.run", run)
    monkeypatch.setattr(sys, "argv", ["diffstride-train", "--run-dir", str(tmp_path / "run")])
    train.main()
    assert [str(found.message) for found in recwarn] == []
