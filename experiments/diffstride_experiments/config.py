"""The options of a run: defaults, recipes and the command line."""

from __future__ import annotations

import hashlib
import json
import sys
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import tomli_w
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from diffstride_experiments.command_line import (
    explanations,
    read_arguments,
    similar,
)
from diffstride_experiments.data import DataOptions, Digits, EvaluateOn
from diffstride_experiments.errors import UsageError
from diffstride_experiments.locking import check_folder
from diffstride_experiments.methods import METHODS, Method, MethodName
from diffstride_experiments.options import Budget, Options, Stride
from diffstride_experiments.text import AnyPath

__all__ = [
    "Config",
    "Model",
    "Optimizer",
    "Training",
    "differences",
    "fingerprint",
    "parse",
    "read_recipe",
    "recipe_names",
]

if TYPE_CHECKING:
    from diffstride_torch.models.blocks import ResidualNetwork

RECIPES = Path(__file__).parent / "recipes"

# Numbers of strides that each network accepts; fewer strides belong to its last places. The
# networks check their arguments too, but importing them takes seconds.
ENTRIES = {"preact_resnet18": (3, 4, 5), "preact_resnet56": (4,), "resnet18": (3, 4, 5)}

# Options that may change when a run continues. None of them affects results.
FREE = frozenset({"run_dir", "data.cache", "training.workers", "training.checkpoint_seconds"})


class Model(Options):
    """The network."""

    name: Literal["small_resnet", "preact_resnet18", "preact_resnet56", "resnet18"] = "small_resnet"
    """Network from diffstride_torch.models."""

    strides: tuple[Stride, ...] = (2.0, 2.0, 2.0)
    """Strides of the layers that downsample, from input to output: S, or HxW for height and width.
    Learnt strides start from these values. Strided convolution rounds them."""

    placement: Literal["method", "before", "after"] = "method"
    """Whether the resizing layer comes before or after the first convolution of its block. method:
    as each method defines it. In a stem it always comes after; strided convolutions have no such
    layer."""

    smoothness: PositiveFloat | None = None
    """Width of the window's ramp for learnt strides: rho, a fraction of the output's band. For
    diffstride-paper and diffstride-tensorflow: R, in frequencies. None: the default of the
    convention."""

    lower_limit: float | None = Field(None, ge=1)
    """Smallest learnt stride, in addition to the built-in bounds."""

    upper_limit: float | None = Field(None, ge=1)
    """Largest learnt stride, in addition to the built-in bounds."""

    channels: tuple[PositiveInt, ...] = ()
    """Channels of the stem and of each stage. If left out, the network's defaults."""

    stem: Literal["small", "imagenet"] = "small"
    """small: a 3x3 convolution. imagenet: a 7x7 convolution of stride 2, then max pooling."""

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.name == "small_resnet" and self.stem != "small":
            raise ValueError(f"stem must be small for small_resnet, got {self.stem}")
        return self

    @model_validator(mode="after")
    def _check_limits(self) -> Self:
        lower, upper = self.lower_limit, self.upper_limit
        if lower is not None and upper is not None and lower > upper:
            raise ValueError(f"lower_limit must be at most upper_limit, {upper}, got {lower}")
        return self

    @model_validator(mode="after")
    def _check_places(self) -> Self:
        # By default the small network has four entries of channels.
        strides, channels = len(self.strides), len(self.channels)
        if self.name == "small_resnet":
            if not strides or strides != (channels or 4) - 1:
                raise ValueError(
                    "strides must have one entry fewer than channels, which includes the stem, got "
                    f"{strides} strides and {channels or 4} channels"
                )
            return self
        allowed = ENTRIES[self.name]
        if strides not in allowed:
            numbers = " or ".join(map(str, allowed))
            raise ValueError(f"strides must have {numbers} entries for {self.name}, got {strides}")
        if channels not in (0, max(allowed)):
            raise ValueError(
                f"channels must have {max(allowed)} entries for {self.name}, for the stem and each "
                f"stage, got {channels}"
            )
        return self

    def build(self, method: Method, in_channels: int, num_classes: int) -> ResidualNetwork:
        """Build the network for a method, with weights from torch's random generator.

        Raises
        ------
        ValueError
            If strides or channels do not fit the network, naming the argument.
        """
        from diffstride_torch import models

        options: dict[str, Any] = {"channels": self.channels} if self.channels else {}
        if self.name != "small_resnet":
            options["stem"] = self.stem
        network: ResidualNetwork = getattr(models, self.name)(
            pooling=method.pooling,
            convention=method.convention,
            placement=method.placement if self.placement == "method" else self.placement,
            smoothness=self.smoothness,
            limits=(self.lower_limit, self.upper_limit),
            strides=self.strides,
            in_channels=in_channels,
            num_classes=num_classes,
            **options,
        )
        if method.held:
            for place in network.places:
                place.pool.requires_grad_(False)
        return network


class Optimizer(Options):
    """The optimiser and its learning rates."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW or stochastic gradient descent."""

    learning_rate: PositiveFloat = 0.005
    """Peak learning rate of the weights."""

    stride_learning_rate: PositiveFloat = 0.1
    """Peak learning rate of the strides, which have no weight decay."""

    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of the weights. SGD adds it to the gradient."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""

    schedule: Literal["constant", "one-cycle", "cosine", "steps"] = "one-cycle"
    """How the learning rates change. constant: not at all. one-cycle: up, then down. cosine: down
    along a cosine after the warm-up. steps: by factors."""

    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs over which the constant, cosine and steps schedules rise linearly from 0."""

    boundaries: tuple[PositiveInt, ...] = ()
    """Steps or epochs at which the steps schedule moves to its next factor."""

    boundary_unit: Literal["steps", "epochs"] = "steps"
    """Unit of the boundaries."""

    factors: tuple[PositiveFloat, ...] = ()
    """Factors of the peak learning rates in the steps schedule, one more than boundaries."""

    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient over all parameters; a larger gradient is scaled down to it."""

    @model_validator(mode="after")
    def _check_schedule(self) -> Self:
        if self.schedule == "steps":
            if len(self.factors) != len(self.boundaries) + 1:
                raise ValueError(
                    f"factors must have one entry more than boundaries, got {len(self.factors)} "
                    f"and {len(self.boundaries)}"
                )
            if list(self.boundaries) != sorted(set(self.boundaries)):
                raise ValueError(f"boundaries must increase, got {self.boundaries}")
        elif self.factors or self.boundaries:
            raise ValueError(
                "factors and boundaries must be left out unless schedule is steps, got "
                f"{self.factors} and {self.boundaries}"
            )
        if self.schedule == "one-cycle" and self.warmup_epochs:
            raise ValueError(
                "warmup_epochs must be 0 for one-cycle, which has its own warm-up, got "
                f"{self.warmup_epochs}"
            )
        return self


class Training(Options):
    """The training loop."""

    epochs: PositiveInt = 10
    """Passes over the training samples."""

    batch_size: int = Field(100, ge=2)
    """Samples per batch, over all processes. An incomplete last batch is left out."""

    evaluation_batch_size: PositiveInt = 250
    """Samples per evaluation batch in each process."""

    penalty: NonNegativeFloat = 1.0
    """Weight λ of the complexity penalty J for diffstride-penalised. Larger values make the network
    cheaper. In the study of CIFAR10 images, 0.01 and 0.03 were good trades, and 0.3 was not."""

    budget: Budget = "initial"
    """Multiply-adds per sample that diffstride-budget keeps to. initial: the multiply-adds at the
    initial strides."""

    budget_weight: NonNegativeFloat = 1.0
    """Weight of the loss term that keeps the network to its budget."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread over all classes."""

    mixup: NonNegativeFloat = 0.0
    """Parameter a of mixup, which mixes pairs of samples with shares from Beta(a, a). 0: no mixup.
    """

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of convolutions and matrix products (autocast). float16 also scales the loss."""

    channels_last: bool = False
    """Store feature maps with the channels last in memory."""

    compile: Literal["off", "inductor", "aot_eager"] = "off"
    """Backend of torch.compile for training. off: do not compile."""

    workers: int = Field(0, ge=0, le=1024)
    """Processes that load samples for each training process. They do not change results."""

    checkpoint_seconds: NonNegativeFloat = 300.0
    """Seconds between checkpoints within an epoch. 0: one after every step. Every epoch also ends
    with a checkpoint."""


class Config(Options):
    """Train networks that downsample in different ways, and compare them.

    RECIPE is a name from --list or the path of a TOML file. Options override the recipe; to see its
    defaults, add --help. Without a recipe, small residual networks learn handwritten digits from
    poor initial strides. The run folder contains the options, metrics, checkpoints, results and a
    plot. To continue an interrupted run, run the same command again: it starts from the last
    checkpoint and gives the same result. With torchrun, all processes share the work.
    """

    run_dir: AnyPath = Path("runs/demo")
    """Folder for the run."""

    methods: tuple[MethodName, ...] = (
        "conv",
        "spectral",
        "diffstride",
        "diffstride-penalised",
        "diffstride-budget",
    )
    """Methods to train, in this order."""

    data: DataOptions = Digits()
    """Samples. data.name chooses their kind."""

    model: Model = Model(strides=(3.0, 2.0, 3.0), channels=(8, 16, 32, 32))
    optimizer: Optimizer = Optimizer()
    training: Training = Training()

    evaluate_on: EvaluateOn = "test"
    """Samples to evaluate on. validation holds out training samples, so that options can be chosen
    without the test samples."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the samples and their augmentation. It does not
    change which samples are held out."""

    threads: int = Field(2, ge=1, le=4096)
    """CPU threads of each process. Results repeat exactly only with the same number of threads."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Device to train on. auto: a GPU if there is one."""

    @field_validator("methods")
    @classmethod
    def _check_methods(cls, methods: tuple[MethodName, ...]) -> tuple[MethodName, ...]:
        if not methods or len(set(methods)) != len(methods):
            raise ValueError("must name at least one method, and none of them twice")
        return methods

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        warmup, epochs = self.optimizer.warmup_epochs, self.training.epochs
        if warmup >= epochs:
            raise ValueError(
                f"optimizer.warmup_epochs must be less than training.epochs, {epochs}, got {warmup}"
            )
        return self

    def check_networks(self) -> None:
        """Check that the options fit the networks of all methods. This imports torch.

        Raises
        ------
        UsageError
            If they do not. The message names the option.
        """
        import torch

        with torch.device("meta"):
            for method in self.methods:
                try:
                    self.model.build(METHODS[method], in_channels=1, num_classes=2)
                except (TypeError, ValueError) as error:
                    raise UsageError(f"model.{error} (methods: {method}).") from error

    def to_toml(self) -> str:
        """Return all options as a recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def recipe_names() -> list[str]:
    """Return the names of the recipes that come with the package."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def read_recipe(path: Path) -> Config:
    """Read a recipe, or the options in a run folder.

    Parameters
    ----------
    path : Path
        TOML file. Options that are left out keep their defaults, or their values in the recipe that
        ``extends`` names. ``extends`` is a path, relative to the folder of the file, or the name of
        a recipe that comes with the package.

    Returns
    -------
    Config
        All options.

    Raises
    ------
    UsageError
        If the file cannot be read, or if options are unknown or not allowed. The message names each
        of them.
    """
    return _validated(_read_values(path), {}, f"recipe {path}: ")


def _validated(values: dict[str, Any], given: Mapping[str, Any], source: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise UsageError(explanations(error, Config, given, source)) from error


def _find_recipe(recipe: str, folder: Path = Path()) -> Path:
    """Return the path of a recipe, given by its name or by its path from a folder."""
    if recipe in recipe_names():
        return RECIPES / f"{recipe}.toml"
    path = folder / recipe
    if path.suffix == ".toml" or path.exists() or len(Path(recipe).parts) != 1:
        return path
    raise UsageError(
        f"recipe {recipe}: no file and no recipe has this name"
        f"{similar(recipe, recipe_names()) or '.'} diffstride-train --list shows all recipes."
    )


def _read_values(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    try:
        # Editors on Windows may begin UTF-8 files with a byte order mark.
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UsageError(f"recipe {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"recipe {path} is not UTF-8 text (byte {error.start}).") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"recipe {path} is not TOML: {error}.") from error
    if path.resolve() in extended_by:
        raise UsageError(f"recipe {path} extends itself.")
    if "extends" not in values:
        return values
    base = values.pop("extends")
    if not isinstance(base, str):
        raise UsageError(f"recipe {path}: extends: must be a path or a name, got {base!r}")
    found = _find_recipe(base, path.parent)
    return _merged(_read_values(found, (*extended_by, path.resolve())), values)


def _merged(base: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return values with changes, table by table.

    If the changes choose another kind of data, the options of the previous kind are dropped.
    """
    result = dict(base)
    for name, value in changes.items():
        table = result.get(name)
        if isinstance(value, dict) and isinstance(table, dict):
            same = name != "data" or value.get("name", table.get("name")) == table.get("name")
            result[name] = _merged(table if same else {}, value)
        else:
            result[name] = value
    return result


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str
        Optionally the path or name of a recipe, then options.

    Returns
    -------
    Config
        Options of the run.

    Raises
    ------
    UsageError
        If the recipe cannot be read (see `read_recipe`), if options are unknown or not allowed, or
        if the run folder cannot be created.
    SystemExit
        After showing the help or the list of recipes.
    """
    if "--list" in arguments:
        print("".join(f"{name:16} {_summary(name)}\n" for name in recipe_names()), end="")
        sys.exit(0)
    base, source, options = Config().model_dump(), "", list(arguments)
    if options and not options[0].startswith("-"):
        path = _find_recipe(options.pop(0))
        # A table in the recipe replaces the whole default table. Other tables keep their defaults.
        base, source = base | _read_values(path), f"recipe {path}: "
    misplaced = [option for option in options[1:] if option.endswith(".toml")]
    if misplaced := [option for option in options[:1] if not option.startswith("-")] + misplaced:
        raise UsageError(f"{misplaced[0]}: give one recipe, before the options.")
    given = read_arguments(Config, options, "diffstride-train [RECIPE] [OPTIONS]", base)
    config = _validated(_merged(base, given), given, source)
    check_folder(config.run_dir, "run_dir")
    return config


def _summary(name: str) -> str:
    """Return the first line of a recipe, which describes it."""
    text = (RECIPES / f"{name}.toml").read_text(encoding="utf-8")
    return text.partition("\n")[0].removeprefix("# ")


def differences(earlier: Config, config: Config) -> list[str]:
    """Return the options that affect results and differ, with both values."""
    before, now = map(_deciding, (earlier, config))
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def fingerprint(config: Config) -> str:
    """Return 8 hexadecimal digits that stand for everything that affects results.

    This includes the options, the definitions of the methods, and the way samples are read.
    """
    deciding = _deciding(config)
    if all(METHODS[name].pooling != "diffstride" for name in config.methods):
        deciding["model.smoothness"] = None  # there is no window
    methods = [asdict(METHODS[name]) for name in config.methods]
    deciding["methods"] = [{**method, "label": None} for method in methods]
    if config.data.reading:
        deciding["data.reading"] = config.data.reading
    values = json.dumps(deciding, sort_keys=True)
    return hashlib.blake2b(values.encode(), digest_size=4).hexdigest()


def _deciding(config: Config) -> dict[str, Any]:
    flat = _flat(config.model_dump(mode="json"))
    return {name: value for name, value in flat.items() if name not in FREE}


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
