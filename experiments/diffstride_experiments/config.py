"""The options of a run: defaults, recipes and the command line."""

import difflib
import hashlib
import json
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

import tomli_w
import torch
import tyro
from diffstride_torch.models import preact_resnet18, preact_resnet56, resnet18, small_resnet
from diffstride_torch.models.blocks import ResidualNetwork
from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    field_validator,
    model_validator,
)

from diffstride_experiments.data import DataOptions, Digits, EvaluateOn
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import METHODS, Method, MethodName
from diffstride_experiments.options import Options, Stride
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
]

NETWORKS = {
    "small_resnet": small_resnet,
    "preact_resnet18": preact_resnet18,
    "preact_resnet56": preact_resnet56,
    "resnet18": resnet18,
}

# What a run that goes on may change: nothing of it decides a result.
FREE = frozenset({"run_dir", "data.cache", "training.workers", "training.checkpoint_seconds"})


class Model(Options):
    """The network."""

    name: Literal["small_resnet", "preact_resnet18", "preact_resnet56", "resnet18"] = "small_resnet"
    """Network of diffstride_torch.models."""

    strides: tuple[Stride, ...] = (2.0, 2.0, 2.0)
    """Stride of each place that downsamples, from the input to the output: S, or HxW for its axes;
    the initial one where it is learnt, rounded for strided convolution."""

    smoothness: PositiveFloat | None = None
    """Width of the window's ramp where strides are learnt: R in frequencies, or rho, a share of the
    pass band, for diffstride-relative. None: the convention's own."""

    lower_limit: float | None = Field(None, ge=1)
    """Smallest stride that is learnt, besides the built-in bounds."""

    upper_limit: float | None = Field(None, ge=1)
    """Largest stride that is learnt, besides the built-in bounds."""

    channels: tuple[PositiveInt, ...] = ()
    """Channels of the stem and of each stage. None given: the network's own."""

    stem: Literal["small", "imagenet"] = "small"
    """A 3x3 convolution, or ImageNet's 7x7 convolution and max pooling."""

    @model_validator(mode="after")
    def _check_stem(self) -> Self:
        if self.name == "small_resnet" and self.stem != "small":
            raise ValueError(f"stem must be small for small_resnet, got {self.stem}")
        return self

    def build(self, method: Method, in_channels: int, num_classes: int) -> ResidualNetwork:
        """Build the network for a method, with weights from torch's random generator.

        Raises
        ------
        ValueError
            If strides or channels do not fit the network, naming the argument.
        """
        options: dict[str, Any] = {"channels": self.channels} if self.channels else {}
        if self.name != "small_resnet":
            options["stem"] = self.stem
        return NETWORKS[self.name](
            pooling=method.pooling,
            convention=method.convention,
            smoothness=self.smoothness,
            limits=(self.lower_limit, self.upper_limit),
            strides=self.strides,
            in_channels=in_channels,
            num_classes=num_classes,
            **options,
        )


class Optimizer(Options):
    """Steps and their sizes."""

    name: Literal["adamw", "sgd"] = "adamw"
    """AdamW, or stochastic gradient descent."""

    learning_rate: PositiveFloat = 0.005
    """Peak learning rate of the weights."""

    stride_learning_rate: PositiveFloat = 0.1
    """Peak learning rate of the strides, which have no weight decay."""

    weight_decay: NonNegativeFloat = 0.01
    """Weight decay of the weights. SGD's is coupled: it is added to the gradient."""

    momentum: float = Field(0.9, ge=0, lt=1)
    """Momentum of SGD."""

    schedule: Literal["constant", "one-cycle", "cosine", "steps"] = "one-cycle"
    """How the learning rates change: not at all, up and down again, down along a cosine after the
    warm-up, or by factors."""

    warmup_epochs: NonNegativeFloat = 0.0
    """Epochs in which constant, cosine and steps rise linearly from 0."""

    boundaries: tuple[PositiveInt, ...] = ()
    """Where the steps schedule goes on to its next factor."""

    boundary_unit: Literal["steps", "epochs"] = "steps"
    """What the boundaries count."""

    factors: tuple[PositiveFloat, ...] = ()
    """Factors of the peak learning rates in the steps schedule: one more than boundaries."""

    clip_norm: PositiveFloat | None = None
    """Largest norm of the gradient of all parameters together; it is scaled down to that."""

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
            raise ValueError("boundaries and factors must be left out unless schedule is steps")
        if self.schedule == "one-cycle" and self.warmup_epochs:
            raise ValueError("warmup_epochs must be 0 for one-cycle, which has a rise of its own")
        return self


class Training(Options):
    """The loop."""

    epochs: PositiveInt = 10
    """Passes over the training samples."""

    batch_size: int = Field(100, ge=2)
    """Samples in a batch, over all processes; an incomplete last batch is left out."""

    evaluation_batch_size: PositiveInt = 250
    """Samples in a batch of the evaluation, for each process."""

    penalty: NonNegativeFloat = 1.0
    """Factor λ of the complexity penalty J in diffstride-penalised; more makes it cheaper."""

    label_smoothing: float = Field(0.0, ge=0, lt=1)
    """Share of each label that is spread over all classes."""

    mixup: NonNegativeFloat = 0.0
    """Parameter a of mixup: pairs of samples are mixed by shares from Beta(a, a). 0: no mixup."""

    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of convolutions and products (autocast); float16 scales the loss."""

    channels_last: bool = False
    """Keep feature maps with their channels last in memory."""

    compile: Literal["off", "inductor", "aot_eager"] = "off"
    """Compile the network for training, with this backend of torch.compile."""

    workers: int = Field(0, ge=0)
    """Processes that load samples, beside each training process. Results do not depend on it."""

    checkpoint_seconds: NonNegativeFloat = 300.0
    """Time between checkpoints within an epoch; 0: one after every step. Every epoch ends with
    one."""


class Config(Options):
    """Train networks whose downsampling differs, and compare them.

    diffstride-train [RECIPE.toml] [OPTIONS]: every option of a recipe can be overridden. Without a
    recipe, small residual networks learn handwritten digits from poor initial strides. The run
    folder keeps the options, metrics, checkpoints, results and a plot; interrupted, the same
    command goes on from the last checkpoint, to the same result. Started by torchrun, all processes
    share the work.
    """

    # Rates and penalty were chosen with --evaluate-on validation --seed 1 --training.epochs 12.
    # Accuracies at learning rates 0.005 and 0.01, stride rates 0.05 and 0.1 and penalties 0.3, 1
    # and 3 all lay within two standard errors of each other. Penalties 0.3, 1 and 3 ended at 2.9,
    # 2.1 and 2.1 million multiply-adds, none at 4.1.

    run_dir: AnyPath = Path("runs/demo")
    """Folder of the run."""

    methods: tuple[MethodName, ...] = (
        "conv",
        "spectral",
        "diffstride-paper",
        "diffstride-relative",
        "diffstride-penalised",
    )
    """Methods to train, in this order."""

    data: DataOptions = Digits()
    """Samples. A recipe chooses the kind, its options can be overridden."""

    model: Model = Model(strides=(3.0, 2.0, 3.0), channels=(8, 16, 32, 32))
    optimizer: Optimizer = Optimizer()
    training: Training = Training()

    evaluate_on: EvaluateOn = "test"
    """Choose options with validation: it holds out training samples, the test samples stay
    unseen."""

    seed: int = Field(0, ge=0, lt=2**63)
    """Seed of the initial weights, the order of the samples and their augmentation. What is held
    out is always the same."""

    threads: PositiveInt = 2
    """CPU threads of each process. Results repeat exactly only with the same number."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """Where to train: auto takes a GPU where there is one."""

    @field_validator("methods")
    @classmethod
    def _check_methods(cls, methods: tuple[MethodName, ...]) -> tuple[MethodName, ...]:
        if not methods or len(set(methods)) != len(methods):
            given = " ".join(methods) or "nothing"
            raise ValueError(f"give at least one method, and each at most once, not {given}")
        return methods

    @model_validator(mode="after")
    def _check_network(self) -> Self:
        # Networks refuse what does not fit their architecture.
        with torch.device("meta"):
            for method in self.methods:
                self.model.build(METHODS[method], in_channels=1, num_classes=2)
        return self

    @model_validator(mode="after")
    def _check_warmup(self) -> Self:
        warmup, epochs = self.optimizer.warmup_epochs, self.training.epochs
        if warmup >= epochs:
            raise ValueError(
                f"optimizer.warmup_epochs must be less than training.epochs, {epochs}, got {warmup}"
            )
        return self

    def to_toml(self) -> str:
        """Return all options as a recipe."""
        return tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))


def read_recipe(path: Path) -> Config:
    """Read a recipe, or the options that a run folder keeps.

    Parameters
    ----------
    path : Path
        TOML file. Options that are left out have their defaults, or the values that they have in
        the recipe beside it which ``extends`` names.

    Returns
    -------
    Config
        All options.

    Raises
    ------
    ExperimentError
        If the file cannot be read, or naming each option that is unknown or not allowed.
    """
    try:
        return Config.model_validate(_read_values(path))
    except ValidationError as error:
        lines = "\n".join(f"  {_explanation(detail)}" for detail in error.errors())
        raise ExperimentError(f"recipe {path}:\n{lines}") from error


def _read_values(path: Path, extended_by: tuple[Path, ...] = ()) -> dict[str, Any]:
    if path.resolve() in extended_by:
        raise ExperimentError(f"recipe {path} extends itself.")
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ExperimentError(f"recipe {path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ExperimentError(f"recipe {path} is not TOML: {error}") from error
    if "extends" in values:
        base = path.parent / str(values.pop("extends"))
        return _merged(_read_values(base, (*extended_by, path.resolve())), values)
    return values


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for name, value in changes.items():
        table = merged.get(name)
        both = isinstance(value, dict) and isinstance(table, dict)
        merged[name] = _merged(table, value) if both else value
    return merged


def _explanation(detail: Any) -> str:
    place = list(detail["loc"])
    if place[:1] == ["data"]:
        del place[1:2]  # the kind of data, which is no option
    elif place[:2] == ["model", "strides"]:
        del place[3:]  # whether it was taken for one stride or for two
    name = ".".join(map(str, place))
    if detail["type"] == "extra_forbidden":
        similar = difflib.get_close_matches(str(place[-1]), _option_names(Options), n=1)
        return f"{name}: there is no such option" + "".join(
            f"; did you mean {option}?" for option in similar
        )
    if detail["type"] == "union_tag_not_found":
        return f"{name}.name must be given"
    if detail["type"] == "missing":
        return f"{name} must be given"
    message = detail["msg"].removeprefix("Value error, ")
    if isinstance(detail["input"], dict):
        return f"{name}: {message}" if name else message
    return f"{name}: {message}, got {detail['input']!r}"


def _option_names(options: type[Options]) -> set[str]:
    names = set(options.model_fields)
    return names.union(*(_option_names(group) for group in options.__subclasses__()))


def parse(arguments: Sequence[str]) -> Config:
    """Read the command line.

    Parameters
    ----------
    arguments : sequence of str
        Path of a recipe, if any, then options.

    Returns
    -------
    Config
        Options of the run.

    Raises
    ------
    ExperimentError
        As `read_recipe`.
    SystemExit
        For options that are unknown or not allowed, after a message on standard error.
    """
    has_recipe = bool(arguments) and not arguments[0].startswith("-")
    misplaced = [argument for argument in arguments[1:] if argument.endswith(".toml")]
    if misplaced:
        raise ExperimentError(f"{misplaced[0]}: give one recipe, before the options.")
    return tyro.cli(
        Config,
        prog="diffstride-train",
        default=read_recipe(Path(arguments[0])) if has_recipe else Config(),
        args=arguments[has_recipe:],
        # The kind of data is that of the recipe.
        config=(tyro.conf.AvoidSubcommands,),
    )


def differences(earlier: Config, config: Config) -> list[str]:
    """Name the options that decide results and differ, with both values."""
    before, now = map(_deciding, (earlier, config))
    return [
        f"{name}: {before.get(name)} there, {now.get(name)} now"
        for name in sorted(before.keys() | now.keys())
        if before.get(name) != now.get(name)
    ]


def fingerprint(config: Config) -> str:
    """Return 8 hexadecimal digits that stand for all that decides results, options and reading."""
    deciding = _deciding(config)
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
