"""The options that the studies' runs start from."""

from pathlib import Path

from diffstride_experiments.config import Config, Model, Optimizer, Training
from diffstride_experiments.data import AudioFolder, Cifar, DataOptions, Digits, ImageFolder
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.studies.study import DataKind

__all__ = ["INPUT_SHAPES", "base"]

INPUT_SHAPES: dict[DataKind, tuple[int, int, int]] = {
    "digits": (1, 28, 28),
    "images": (3, 32, 32),
    "recordings": (1, 32, 51),
}
"""Channels, height and width of a sample. All data have ten classes."""

_OPTIMIZER = Optimizer(
    name="adamw",
    learning_rate=0.005,
    stride_learning_rate=0.03,
    weight_decay=0.01,
    schedule="one-cycle",
)


def base(kind: DataKind, path: Path | None) -> Config:
    """Return the options that runs on some data start from.

    Parameters
    ----------
    kind : {"digits", "images", "recordings"}
        What to train on.
    path : Path or None
        Where images and recordings are.

    Returns
    -------
    Config
        One thread on a CPU, so that runs repeat bit for bit.

    Raises
    ------
    ExperimentError
        If the path is missing.
    """
    if kind == "digits":
        data, epochs, batch = Digits(train_count=2000), 4, 250
    elif path is None:
        raise ExperimentError(f"--data must name the folder of the {kind}.")
    elif kind == "images":
        data, epochs, batch = _images(path), 1, 500
    else:
        data, epochs, batch = _recordings(path), 3, 250
    return Config(
        methods=("conv",),
        data=data,
        model=Model(channels=(8, 16, 16, 32)),
        optimizer=_OPTIMIZER,
        training=Training(
            epochs=epochs, batch_size=50, evaluation_batch_size=batch, channels_last=True
        ),
        threads=1,
        device="cpu",
    )


def _images(path: Path) -> DataOptions:
    # One pass over many images, as they are: of what was tried, the most accurate in a minute.
    counts = {"train_count": 14_000, "evaluation_count": 5000}
    if (path / "cifar-10-batches-py").is_dir():
        return Cifar(path=path, augmentation="none", **counts)
    return ImageFolder(path=path, in_memory=True, **counts)


def _recordings(path: Path) -> DataOptions:
    return AudioFolder(
        path=path,
        pattern=r"(?P<label>\d)_(?P<group>[a-z]+)_\d+",
        test_groups=("theo",),
        validation_groups=("lucas",),
        sample_rate=8000,
        seconds=0.8,
        hop_ms=16.0,
        mel_bands=32,
    )
