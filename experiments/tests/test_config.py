import json
import sys

import pytest
from diffstride_experiments.config import Config
from diffstride_experiments.methods import METHODS
from diffstride_experiments.train import main

BAD = [
    ("epochs", 0),
    ("batch_size", 1),
    ("batch_size", 4001),
    ("learning_rate", 0.0),
    ("stride_learning_rate", float("inf")),
    ("weight_decay", -1.0),
    ("penalty", float("nan")),
    ("images", 10),
    ("images", 5001),
    ("test_fraction", 0.9),
    ("seed", -1),
    ("threads", 0),
    ("strides", ()),
    ("strides", (3.0, 0.5, 3.0)),
    ("strides", (3.0, 15.0, 3.0)),
    ("channels", (8, 16)),
    ("channels", (8, 16, 32, 0)),
    ("methods", ()),
    ("methods", ("conv", "conv")),
]


@pytest.mark.parametrize(("name", "value"), BAD)
def test_bad_values_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"--{name.replace('_', '-')}: .* is not allowed, give "):
        Config(**{name: value})


def test_methods_are_those_of_the_options():
    assert Config().methods == tuple(METHODS)
    assert all(name == method.name for name, method in METHODS.items())


def test_resolved_options_are_json_values():
    options = Config().resolved()
    assert json.loads(json.dumps(options)) == options
    assert "run_dir" not in options


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--epochs", "0"], "--epochs: 0 is not allowed, give an integer of at least 1"),
        (["--epochs", "few"], "--epochs"),
        (["--methods", "max"], "--methods"),
    ],
)
def test_command_refuses_bad_options_before_any_work(
    arguments, expected, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["diffstride-train", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert expected in " ".join(message.replace("│", " ").split())
    assert "Traceback" not in message
    assert not any(tmp_path.iterdir())
