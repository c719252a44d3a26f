import sys
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from changing import changed
from diffstride_experiments.config import (
    Config,
    Model,
    Optimizer,
    Training,
    differences,
    fingerprint,
    parse,
    read_recipe,
)
from diffstride_experiments.data import AudioFolder, Cifar, Digits, ImageFolder
from diffstride_experiments.errors import ExperimentError, UsageError
from diffstride_experiments.methods import METHODS
from diffstride_experiments.options import Options
from diffstride_experiments.run import run
from diffstride_experiments.train import main
from pydantic import ValidationError
from rich.console import Console

BAD = [
    (Training, {"epochs": 0}),
    (Training, {"batch_size": 1}),
    (Training, {"penalty": float("nan")}),
    (Training, {"budget": 0.0}),
    (Training, {"budget": "cheap"}),
    (Training, {"budget": True}),
    (Training, {"budget_weight": -1.0}),
    (Training, {"label_smoothing": 1.0}),
    (Training, {"mixup": -0.2}),
    (Training, {"workers": -1}),
    (Training, {"workers": 100_000}),
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
    (Model, {"placement": "behind"}),
    (Model, {"upper_limit": 2.0, "lower_limit": 3.0}),
    (Model, {"strides": ()}),
    (Model, {"strides": (3.0, 0.5, 3.0)}),
    (Model, {"strides": (3.0, (2.0, float("inf")), 3.0)}),
    (Model, {"channels": (8, 16), "strides": (3.0, 2.0)}),
    (Model, {"name": "resnet18", "strides": (2.0, 2.0)}),
    (Model, {"name": "resnet18", "channels": (4, 4)}),
    (Model, {"name": "preact_resnet56", "strides": (2.0, 2.0, 2.0)}),
]


@pytest.mark.parametrize(("group", "values"), BAD)
def test_bad_values_are_refused_by_name(group, values):
    with pytest.raises(ValidationError, match=list(values)[-1]):
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
    # The docstrings of their classes explain the groups.
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
    with pytest.raises(SystemExit, match="0"):
        parse(["--help"])
    text = capsys.readouterr().out
    for prefix, group in (
        ("", Config),
        ("model.", Model),
        ("optimizer.", Optimizer),
        ("training.", Training),
        *(("data.", kind) for kind in (Digits, Cifar, ImageFolder, AudioFolder)),
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
        ("[training]\nepochs = 0", "training.epochs: must be greater than 0, got 0"),
        ("[data]\nname = 'cifar'", "data.path must be given"),
        ("[data]\nname = 'mnist'", "data.name: must be 'digits', 'cifar', "),
        ("[data]\ntrain_count = 5", "data.name must be given"),
        ("[model]\nstrides = [2.0, 0.5]", "model.strides.1: must be a stride S, or HxW"),
        ("[model]\nstrides = [2.0, 'x']", r"model.strides.1: "),
        ("[optimizer]\nschedule = 'cosine'\nwarmup_epochs = 10", "optimizer.warmup_epochs must"),
        ("extends = 'recipe.toml'", "extends itself"),
        ("epochs = ", "is not TOML"),
        ("extends = 'none.toml'", "none.toml cannot be read"),
        ("extends = 3", "extends: must be a path or a name, got 3"),
        ("training = 3", "training: must be a table of options, got 3"),
        ("methods = 'conv'", "methods: must be a list, got 'conv'"),
        ("run_dir = 3", "run_dir: must be a path, got 3"),
        ("run_dir = ''", "run_dir: must be a path, got ''"),
        ('run_dir = "a\\u0000"', r"run_dir: must be a path, got 'a\x00'"),
        ("[data]\nname = 'images'\npath = 'x'\nmean = [1, 2]",
         "data.mean: must have more entries, got [1, 2]"),
        ("[data]\nname = 'images'\npath = 'x'\nstd = [1, 2, 3, 4]",
         "data.std: must have 3 entries, got [1, 2, 3, 4]"),
        ("threads = 1.5\nseed = 'x'", "seed: must be a valid integer, got 'x'; "),
    ],
)  # fmt: skip
def test_mistakes_in_a_recipe_are_named(text, expected, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(ExperimentError) as refused:
        read_recipe(path)
    assert str(path.parent) in str(refused.value)
    assert expected in str(refused.value)
    assert "\n" not in str(refused.value)


def test_recipe_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text("seed = 3", encoding="utf-8-sig")
    assert read_recipe(path).seed == 3


def test_recipe_that_is_a_link_to_itself_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.symlink_to(path.name)
    with pytest.raises(UsageError, match=r"recipe\.toml cannot be read: "):
        read_recipe(path)


def test_recipe_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_bytes(b'run_dir = "\xff"')
    with pytest.raises(UsageError, match=r"recipe\.toml is not UTF-8 text"):
        read_recipe(path)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--training.epochs", "0"], "--training.epochs: must be greater than 0, got '0'"),
        (["--training.epochs=few"], "--training.epochs: must be a valid integer, got 'few'"),
        (["--training.epochs"], "--training.epochs: expected one argument"),
        (["--training.budget", "low"], "--training.budget: must be initial or a positive number"),
        (["--model.placement", "in"], "--model.placement: must be 'method', 'before' or 'after'"),
        (["--seed", "1", "2"], "2: no option takes this value"),
        (["--optimizer.momentu", "0.5"], "no such option; did you mean --optimizer.momentum?"),
        (["--methods", "max"], "--methods: must be 'conv', 'spectral', "),
        (["--methods"], "--methods: must name at least one method, and none of them twice, got []"),
        (["--device", "tpu"], "--device: must be 'auto', 'cpu' or 'cuda', got 'tpu'"),
        (["--model.strides", "3", "0.5", "3"], "--model.strides: must be a stride S, or HxW"),
        (["--model.strides", "3xx2"], "--model.strides: must be a stride S, or HxW"),
        (["--model.strides", "2", "2"], "--model.strides must have one entry fewer than channels"),
        (["--model.smoothness", "9", "--model.name", "resnet18"], "--model.channels must have 5"),
        (["--optimizer.warmup-epochs", "1"], "--optimizer.warmup-epochs must be 0 for one-cycle"),
        (["--training.channels-last=1"], "channels-last: ignored explicit argument '1'"),
        (["--data.mean", "1", "2"], "--data.mean: expected 3 arguments"),
        (["--data.name", "images"], "--data.path must be given"),
        (["--data.pad", "1"], "--data.pad: there is no such option for digits, only for cifar, im"),
        (["--run-dir", ""], "--run-dir: must be a path, got ''"),
        (["--threads", "9" * 20], "--threads: must be less than or equal to 4096, got '9999"),
        (["--data.name", "mnist"], "--data.name: must be 'digits', 'cifar', 'images', 'audio'"),
        (["spoken-digit"], "did you mean spoken-digits?"),
        (["no.toml"], "no.toml cannot be read: No such file"),
        (["digits", "images"], "images: give one recipe, before the options"),
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
    printed = capsys.readouterr()
    assert expected in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not printed.out
    assert not any(tmp_path.iterdir())


def test_options_that_only_a_network_refuses_are_refused_before_any_work(tmp_path):
    config = changed(Config(run_dir=tmp_path / "run"), model__smoothness=1e9)
    with pytest.raises(UsageError, match=r"model\.smoothness must"):
        run(config, Console(quiet=True))
    assert not config.run_dir.exists()


@pytest.mark.parametrize("name", ["small_resnet", "preact_resnet18", "preact_resnet56", "resnet18"])
@pytest.mark.parametrize("count", range(1, 7))
def test_numbers_of_strides_are_those_that_the_networks_take(name, count):
    method = METHODS["conv"]
    model = Model.model_construct(name=name, strides=(1.0,) * count)
    try:
        with torch.device("meta"):
            model.build(method, 1, 2)
    except ValueError:
        with pytest.raises(ValidationError, match="strides must have"):
            Model(name=name, strides=(1.0,) * count)
    else:
        assert Model(name=name, strides=(1.0,) * count).strides == model.strides


def test_command_line_takes_every_way_to_give_a_value():
    config = parse(
        ["--training.channels_last", "--training.epochs=3", "--optimizer.clip-norm", "None",
         "--model.channels", "--model.lower-limit", "1.5", "--training.epochs", "4"]
    )  # fmt: skip
    assert config.training == Training(channels_last=True, epochs=4)
    assert config.model == Model(strides=(3.0, 2.0, 3.0), lower_limit=1.5)
    assert not parse(["cifar10-paper", "--no-training.channels-last"]).training.channels_last


def test_another_kind_of_data_begins_with_its_own_defaults():
    config = parse(["spoken-digits", "--data.name", "cifar", "--data.path=x", "--data.classes=100"])
    assert config.data == Cifar(path="x", classes=100)
    assert config.run_dir == Path("runs/spoken-digits")


def test_command_line_gives_what_a_recipe_leaves_out(recipe):
    recipe.write_text('data = {name = "images"}')
    assert parse([str(recipe), "--data.path", "x"]).data == ImageFolder(path="x")


def test_option_at_fault_is_told_from_the_recipes(recipe):
    recipe.write_text("threads = 0")
    with pytest.raises(UsageError, match=r"--seed: must .*; recipe .*: threads: must"):
        parse([str(recipe), "--seed", "-1"])


def test_recipe_after_the_options_is_refused(recipe):
    with pytest.raises(ExperimentError, match=r"recipe\.toml: give one recipe, before the options"):
        parse(["--seed", "1", str(recipe)])


def test_command_reports_a_bad_recipe_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["diffstride-train", str(tmp_path / "no.toml")])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert "no.toml cannot be read: No such file" in capsys.readouterr().err


def test_layers_stand_where_the_method_has_them_or_the_option_says():
    def found(method, **options):
        with torch.device("meta"):
            network = Model(**options).build(METHODS[method], 1, 2)
        return {block.placement for block in network.blocks}

    assert found("diffstride") == found("spectral") == {"before"}
    assert found("diffstride-paper") == found("diffstride-tensorflow") == {"after"}
    assert found("diffstride", placement="after") == {"after"}
    assert found("diffstride-paper", placement="before") == {"before"}


def test_fingerprint_holds_what_the_methods_are(monkeypatch):
    config = changed(Config(), methods=("spectral",))
    before = fingerprint(config)
    monkeypatch.setitem(METHODS, "spectral", replace(METHODS["spectral"], label="pooling"))
    assert fingerprint(config) == before
    found = {before}
    for other in ({"placement": "after"}, {"convention": "paper"}, {"penalised": True}):
        monkeypatch.setitem(METHODS, "spectral", replace(METHODS["spectral"], **other))
        found.add(fingerprint(config))
    assert len(found) == 4


def test_differences_leave_out_what_decides_nothing(tmp_path):
    config = Config()
    same = changed(config, run_dir=tmp_path, training__workers=3, training__checkpoint_seconds=1.0)
    assert differences(config, same) == []
    other = changed(config, training__epochs=5, methods=("conv",))
    assert differences(config, other) == [
        f"methods: {list(config.methods)} there, ['conv'] now",
        "training.epochs: 10 there, 5 now",
    ]
