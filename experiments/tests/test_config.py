import sys
import tomllib

import pytest
from changing import changed
from diffstride_experiments.config import (
    Config,
    Model,
    Optimizer,
    Training,
    differences,
    parse,
    read_recipe,
)
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import METHODS
from diffstride_experiments.options import Options
from diffstride_experiments.train import main
from pydantic import ValidationError

BAD = [
    (Training, {"epochs": 0}),
    (Training, {"batch_size": 1}),
    (Training, {"penalty": float("nan")}),
    (Training, {"label_smoothing": 1.0}),
    (Training, {"mixup": -0.2}),
    (Training, {"workers": -1}),
    (Training, {"precision": "float8"}),
    (Optimizer, {"learning_rate": 0.0}),
    (Optimizer, {"stride_learning_rate": float("inf")}),
    (Optimizer, {"weight_decay": -1.0}),
    (Optimizer, {"momentum": 1.0}),
    (Optimizer, {"clip_norm": 0.0}),
    (Optimizer, {"schedule": "steps", "boundaries": (5,), "factors": (1.0,)}),
    (Optimizer, {"schedule": "steps", "factors": (1.0, 0.5, 0.1), "boundaries": (5, 5)}),
    (Optimizer, {"schedule": "cosine", "factors": (1.0,)}),
    (Optimizer, {"schedule": "one-cycle", "warmup_epochs": 1.0}),
    (Model, {"name": "small_resnet", "stem": "imagenet"}),
    (Config, {"seed": -1}),
    (Config, {"threads": 0}),
    (Config, {"methods": ()}),
    (Config, {"methods": ("conv", "conv")}),
    (Config, {"model": Model(strides=())}),
    (Config, {"model": Model(strides=(3.0, 0.5, 3.0))}),
    (Config, {"model": Model(strides=(3.0, 2.0), channels=(8, 16))}),
    (Config, {"model": Model(name="resnet18", strides=(2.0, 2.0))}),
]


@pytest.mark.parametrize(("group", "values"), BAD)
def test_bad_values_are_refused_by_name(group, values):
    name = list(values)[-1] if group is not Config else next(iter(values))
    with pytest.raises(ValidationError, match="strides|channels" if name == "model" else name):
        group(**values)


def test_methods_are_those_of_the_options():
    assert all(name == method.name for name, method in METHODS.items())
    assert set(Config().methods) < set(METHODS)


def test_options_survive_the_file_that_keeps_them(tmp_path):
    config = changed(
        Config(), model__strides=(3.0, (2.0, 2.5), 1.5), optimizer__clip_norm=1.0, seed=7
    )
    path = tmp_path / "config.toml"
    path.write_text(config.to_toml())
    assert read_recipe(path) == config
    assert tomllib.loads(path.read_text())["model"]["strides"] == [3.0, [2.0, 2.5], 1.5]


def test_every_option_has_a_help_text():
    # Groups are explained by their class.
    for group in (Model, Optimizer, Training, type(Config().data)):
        for name, field in group.model_fields.items():
            assert field.description or name == "name", name


RECIPE = """
methods = ["conv"]
[optimizer]
name = "sgd"
[training]
epochs = 3
"""


@pytest.fixture
def recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_command_line_overrides_a_recipe(recipe):
    config = parse(
        [str(recipe), "--training.epochs", "4", "--model.strides", "3", "2x2.5", "1", "--seed", "5"]
    )
    assert config.methods == ("conv",)
    assert config.optimizer == Optimizer(name="sgd")
    assert config.training == Training(epochs=4)
    assert config.model.strides == (3.0, (2.0, 2.5), 1.0)
    assert config.seed == 5


def test_command_line_has_an_option_for_every_field(capsys):
    with pytest.raises(SystemExit):
        parse(["--help"])
    text = capsys.readouterr().out
    for prefix, group in (
        ("", Config),
        ("model.", Model),
        ("optimizer.", Optimizer),
        ("training.", Training),
        ("data.", type(Config().data)),
    ):
        for name, field in group.model_fields.items():
            if not isinstance(field.default, Options):
                assert f"--{prefix}{name.replace('_', '-')}" in text


def test_recipe_extends_another(recipe, tmp_path):
    longer = tmp_path / "longer.toml"
    longer.write_text(
        'extends = "recipe.toml"\n[training]\nepochs = 9\n[optimizer]\nmomentum = 0.5'
    )
    config = read_recipe(longer)
    assert config == changed(read_recipe(recipe), training__epochs=9, optimizer__momentum=0.5)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[optimizer]\nlearning_rte = 1", "optimizer.learning_rte: there is no such option; did "
         "you mean learning_rate?"),
        ("[data]\nname = 'audio'\npath = '.'\nmel_band = 1", "data.mel_band: there is no such "
         "option; did you mean mel_bands?"),
        ("epoch = 3", "epoch: there is no such option; did you mean epochs?"),
        ("[training]\nepochs = 0", "training.epochs: Input should be greater than 0, got 0"),
        ("[data]\nname = 'cifar'", "data.path must be given"),
        ("[data]\nname = 'mnist'", "data: Input tag 'mnist'"),
        ("[data]\ntrain_count = 5", "data.name must be given"),
        ("[model]\nstrides = [2.0, 0.5]", r"strides[1] must be"),
        ("[model]\nstrides = [2.0, 'x']", r"model.strides.1: "),
        ("[optimizer]\nschedule = 'cosine'\nwarmup_epochs = 10", "optimizer.warmup_epochs must"),
        ("extends = 'recipe.toml'", "extends itself"),
        ("epochs = ", "is not TOML"),
        ("extends = 'none.toml'", "none.toml cannot be read"),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named(text, expected, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError) as refused:
        read_recipe(path)
    assert str(path.parent) in str(refused.value)
    assert expected in str(refused.value)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.epochs", "0"], "greater than 0"),
        (["--training.epochs", "few"], "--training.epochs"),
        (["--optimizer.momentu", "0.5"], "--optimizer.momentum"),
        (["--methods", "max"], "--methods"),
        (["--model.strides", "3", "0.5", "3"], "strides[1] must be"),
        (["--model.strides", "3xx2"], "--model.strides"),
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


def test_recipe_after_the_options_is_refused(recipe):
    with pytest.raises(ExperimentError, match=r"recipe\.toml: give one recipe, before the options"):
        parse(["--seed", "1", str(recipe)])


def test_command_reports_a_bad_recipe_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffstride-train", str(tmp_path / "no.toml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 1
    assert "no.toml cannot be read: No such file" in capsys.readouterr().err


def test_differences_leave_out_what_decides_nothing(tmp_path):
    config = Config()
    same = changed(config, run_dir=tmp_path, training__workers=3, training__checkpoint_seconds=1.0)
    assert differences(config, same) == []
    other = changed(config, training__epochs=5, methods=("conv",))
    assert differences(config, other) == [
        f"methods: {list(config.methods)} there, ['conv'] now",
        "training.epochs: 10 there, 5 now",
    ]
