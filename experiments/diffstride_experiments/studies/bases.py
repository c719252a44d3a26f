"""The options that the runs of the studies start from."""

from pathlib import Path

from diffstride_experiments.config import Config, Model, Optimizer, Training
from diffstride_experiments.data import AudioFolder, Cifar, DataOptions, Digits, ImageFolder
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.studies.study import DataKind

__all__ = ["CLASSES", "INPUT_SHAPES", "MODELS", "base", "check_samples"]

INPUT_SHAPES: dict[DataKind, tuple[int, int, int]] = {
    "digits": (1, 28, 28),
    "images": (3, 32, 32),
    "recordings": (1, 32, 51),
}
"""Channels, height and width of a sample."""

CLASSES = 10
IMAGES_SMOOTHNESS = 0.5
"""Smoothness chosen on images held out from training, see the study `rate`."""

_SGD = Optimizer(
    name="sgd", learning_rate=0.1, stride_learning_rate=0.3, weight_decay=5e-4, schedule="one-cycle"
)
_ADAMW = Optimizer(
    name="adamw",
    learning_rate=0.005,
    stride_learning_rate=0.1,
    weight_decay=0.01,
    schedule="one-cycle",
)
OPTIMIZERS = {
    "digits": _ADAMW,
    "images": _SGD,
    "recordings": _ADAMW.model_copy(update={"weight_decay": 0.1}),
}

_SMALL = Model(channels=(8, 16, 32, 64))
MODELS: dict[DataKind, Model] = {
    "digits": _SMALL,
    "images": _SMALL.model_copy(update={"smoothness": IMAGES_SMOOTHNESS}),
    "recordings": _SMALL,
}


def base(kind: DataKind, path: Path | None) -> Config:
    """Return the options that runs on some data start from.

    Parameters
    ----------
    kind : {"digits", "images", "recordings"}
        Data to train on.
    path : Path or None
        Folder of the images or recordings.

    Returns
    -------
    Config
        Options. Runs use one thread on a CPU, so that they repeat bit for bit.

    Raises
    ------
    ExperimentError
        If the path is missing, is not a folder of such data, or is given for digits.
    """
    if kind == "digits":
        if path is not None:
            raise ExperimentError(f"--data.path must be left out for digits, got {path}.")
        data, epochs = Digits(), 10
    elif path is None or not path.is_dir():
        given = "" if path is None else f"; {path} is not a folder"
        raise ExperimentError(f"--data.path must name the folder of the {kind}{given}.")
    elif kind == "images":
        data, epochs = _images(path), 6
    else:
        data, epochs = _recordings(path), 20
    return Config(
        methods=("conv",),
        data=data,
        model=MODELS[kind],
        optimizer=OPTIMIZERS[kind],
        training=Training(
            epochs=epochs,
            batch_size=64,
            channels_last=True,
            budget_weight=0.1 if kind == "images" else 1.0,
            # With few speakers, a network learns their voices; mixed samples have no single voice.
            mixup=0.3 if kind == "recordings" else 0.0,
        ),
        threads=1,
        device="cpu",
    )


def check_samples(config: Config, kind: DataKind) -> None:
    """Check that the samples fit a study. This also caches the spectrograms.

    Parameters
    ----------
    config : Config
        Options from `base`.
    kind : {"digits", "images", "recordings"}
        Data to train on.

    Raises
    ------
    ExperimentError
        If samples cannot be read, or if they have another shape or number of classes.
    """
    data = config.data
    if isinstance(data, ImageFolder):
        data = data.model_copy(update={"in_memory": False})  # the image sizes are enough
    loaded = data.load("test")
    found, classes = loaded.input_shape, len(loaded.classes)
    if (found, classes) != (INPUT_SHAPES[kind], CLASSES):
        raise ExperimentError(
            f"--data.path must hold {kind} of channels, height and width {INPUT_SHAPES[kind]} in "
            f"{CLASSES} classes, got {found} in {classes}."
        )


def _images(path: Path) -> DataOptions:
    # Enough samples for resolution to matter, few enough for hundreds of runs.
    counts = {"train_count": 20_000, "evaluation_count": 5000}
    if (path / "cifar-10-batches-py").is_dir():
        return Cifar(path=path, augmentation="none", **counts)
    if not (path / "train").is_dir():
        raise ExperimentError(
            f"--data.path: {path} must hold cifar-10-batches-py, or the folders train and test "
            "with a folder of images for each class."
        )
    return ImageFolder(path=path, in_memory=True, **counts)


def _recordings(path: Path) -> DataOptions:
    if not any(path.glob("[0-9]_*_*.wav")):
        raise ExperimentError(
            f"--data.path: {path} must hold the recordings, DIGIT_SPEAKER_INDEX.wav."
        )
    return AudioFolder(
        path=path,
        pattern=r"(?P<label>\d)_(?P<group>[a-z]+)_\d+",
        test_groups=("theo", "yweweler"),
        validation_groups=("lucas",),
        sample_rate=8000,
        seconds=0.8,
        hop_ms=16.0,
        mel_bands=32,
        # Four speakers to learn from, each with a microphone of their own.
        standardise="clips",
        mask=0.2,
        shift=0.1,
    )
