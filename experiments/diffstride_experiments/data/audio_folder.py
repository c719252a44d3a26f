"""Folders of sounds."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Self

import numpy as np
from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from diffstride_experiments.data.cache import digest, file_states, load_array, save_array
from diffstride_experiments.data.files import (
    READING,
    FileSource,
    Unreadable,
    check_classes,
    read_files,
)
from diffstride_experiments.data.log_mel import LogMel
from diffstride_experiments.data.source import Data, EvaluateOn
from diffstride_experiments.data.splits import held_out_remark, hold_out
from diffstride_experiments.data.walk import Found, find_files
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.locking import check_folder
from diffstride_experiments.text import AnyPath, printable

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["AudioFolder"]

EXTENSIONS = {".wav", ".flac", ".ogg"}

# By default, the folder of a file is its class.
CLASS_FOLDERS = r"(?P<label>[^/]+)/[^/]+"

# Number of files that an error lists if they do not match the pattern.
SHOWN = 5

# Number of clips that are added to the mean and standard deviation at a time.
CHUNK = 256
# 40 dB, as a difference of natural logarithms of power.
RANGE = 4 * math.log(10)


class AudioFolder(FileSource):
    """Sounds in any folders below path, as log-mel spectrograms.

    A spectrogram is log(mel + 1e-6), standardised in each mel band with the mean and standard
    deviation of the training clips. Its height is frequency, its width is time.
    """

    name: Literal["audio"] = "audio"
    """Kind of data."""

    path: AnyPath
    """Folder with the .wav, .flac and .ogg files, at any depth."""

    pattern: str = CLASS_FOLDERS
    """Regular expression for the path of a file relative to the folder, with / as separator and
    without the extension. (?P<label>...) is the class. The optional (?P<group>...) is the group,
    for instance the speaker; the files of a group are held out together."""

    test_groups: tuple[str, ...] = ()
    """Groups held out for testing and never trained on."""

    validation_groups: tuple[str, ...] = ()
    """Groups that --evaluate-on validation also holds out and evaluates on, instead of a fraction.
    """

    test_fraction: float = Field(0.2, ge=0.1, le=0.5)
    """Share of the clips kept for testing if the pattern has no group."""

    sample_rate: PositiveInt = 16_000
    """Sample rate in Hz that all clips are resampled to."""

    seconds: PositiveFloat = 1.0
    """Length of the clips. Longer clips are cut, shorter ones are padded with zeros at the end."""

    window_ms: PositiveFloat = 25.0
    """Length of the spectrogram's windows in ms. A shorter clip counts as unreadable."""

    hop_ms: PositiveFloat = 10.0
    """Distance between the windows in ms."""

    mel_bands: PositiveInt = 64
    """Mel bands from 0 Hz to half the sample rate."""

    standardise: Literal["bands", "clips"] = "bands"
    """How to standardise spectrograms. bands: with the mean and deviation of each band over all
    training clips. clips: each clip with the means of its own bands and with its own deviation,
    after raising what is more than 40 dB below its loudest value. This removes the differences
    between microphones and rooms."""

    mask: float = Field(0.0, ge=0, lt=1)
    """Augmentation: largest width of the bands and of the frames that are masked at random in a
    training spectrogram, as a share of its size (SpecAugment)."""

    shift: float = Field(0.0, ge=0, le=0.5)
    """Augmentation: largest random shift of a training spectrogram along frequency and along time,
    as a share of its size. Edges are repeated."""

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, pattern: str) -> str:
        try:
            groups = re.compile(pattern).groupindex
        except re.error as error:
            raise ValueError(f"must be a regular expression: {error}") from error
        if "label" not in groups:
            raise ValueError("must have a group (?P<label>...)")
        return pattern

    @model_validator(mode="after")
    def _check_groups(self) -> Self:
        if not self._has_groups and (self.test_groups or self.validation_groups):
            raise ValueError("test_groups and validation_groups need a (?P<group>...) in pattern")
        if both := set(self.test_groups) & set(self.validation_groups):
            raise ValueError(
                f"test_groups and validation_groups both have {', '.join(sorted(both))}"
            )
        return self

    @model_validator(mode="after")
    def _check_windows(self) -> Self:
        for name, value in (("hop_ms", self.hop_ms), ("window_ms", self.window_ms)):
            if self._in_samples(value) < 2:
                raise ValueError(f"{name} must be at least two samples long, got {value}")
        if self.seconds * 1000 < self.window_ms:
            raise ValueError(
                f"seconds must be at least one window, {self.window_ms / 1000}, got {self.seconds}"
            )
        return self

    @property
    def _has_groups(self) -> bool:
        return "group" in re.compile(self.pattern).groupindex

    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Compute the spectrograms, unless they are cached, see `Source.load`."""
        from diffstride_experiments.data.samples import RandomMask, RandomShift, Samples

        found = _find(self.path)
        (paths,) = found.files
        names, groups = self._match(paths)
        unique, labels = np.unique(names, return_inverse=True)
        classes = tuple(unique.tolist())
        self._check_class_folders(classes, found)
        if self._has_groups:
            self._check_held_out(groups, evaluate_on)
            remarks = []
        else:
            train, test = hold_out(
                np.arange(len(paths)), labels, classes, self.test_fraction, "data.test_fraction"
            )
            remarks = [held_out_remark(len(test), len(paths), self.test_fraction)]

        features, unreadable = self._features(paths, workers)
        readable, skipped = self._leave_out(unreadable, len(paths), found)
        check_classes(labels[readable], classes, str(self.path), found)

        if self._has_groups:
            in_test = np.isin(groups[readable], self.test_groups)
            train, evaluation = readable[~in_test], readable[in_test]
            if evaluate_on == "validation":
                in_validation = np.isin(groups[train], self.validation_groups)
                train, evaluation = train[~in_validation], train[in_validation]
            train, evaluation = self._limit(labels, classes, train, evaluation)
        else:
            train, test = (part[np.isin(part, readable)] for part in (train, test))
            train, evaluation = self._split(labels, classes, train, test, evaluate_on)

        standardise: Callable[[np.ndarray], Tensor] = (
            _standardised_clip if self.standardise == "clips" else _Standardise(features, train)
        )
        augment, transforms = standardise, [standardise]
        if self.shift:
            transforms.append(RandomShift(self.shift))
        if self.mask:
            transforms.append(RandomMask(self.mask))
        if len(transforms) > 1:
            from torchvision.transforms import Compose

            augment = Compose(transforms)
        return Data(
            train=Samples(features, labels, train, augment),
            evaluation=Samples(features, labels, evaluation, standardise),
            classes=classes,
            input_shape=(1, *features.shape[1:]),
            skipped=skipped,
            left_out=tuple(found.left_out),
            remarks=(*remarks, *found.remarks()),
        )

    def _check_class_folders(self, classes: Sequence[str], found: Found) -> None:
        """If folders are classes, check that no folder is empty."""
        empty = sorted(set(map(printable, found.folders[0])) - set(classes))
        if self.pattern == CLASS_FOLDERS and empty:
            raise ExperimentError(
                f"data.path: class {empty[0]} has no .wav, .flac or .ogg file in {self.path}."
                f"{found.hint()}"
            )

    def _match(self, paths: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Return label and group of each file, or the label twice if the pattern has no group."""
        names = [
            printable(Path(path).relative_to(self.path).with_suffix("").as_posix())
            for path in paths
        ]
        matches = [re.fullmatch(self.pattern, name) for name in names]
        parts = ("label", "group" if self._has_groups else "label")
        found = [match and match.group(*parts) for match in matches]
        strays = [
            name for name, part in zip(names, found, strict=True) if not part or not all(part)
        ]
        if strays:
            raise ExperimentError(
                f"data.pattern: {self.pattern} does not match {len(strays)} of {len(paths)} paths: "
                f"{', '.join(strays[:SHOWN])}{', ...' if len(strays) > SHOWN else '.'}"
            )
        return np.array(found).T

    def _check_held_out(self, groups: np.ndarray, evaluate_on: EvaluateOn) -> None:
        """Check that held-out groups are given and exist."""
        known = np.unique(groups).tolist()
        given = {"test_groups": self.test_groups, "validation_groups": self.validation_groups}
        for option, chosen in given.items():
            if unknown := sorted(set(chosen) - set(known)):
                raise ExperimentError(
                    f"data.{option}: there is no {', '.join(unknown)}; groups are "
                    f"{', '.join(known)}."
                )
        if not given[f"{evaluate_on}_groups"]:
            raise ExperimentError(
                f"data.{evaluate_on}_groups must be given to evaluate on {evaluate_on}; groups are "
                f"{', '.join(known)}."
            )

    def _in_samples(self, milliseconds: float) -> int:
        return round(self.sample_rate * milliseconds / 1000)

    def _features(
        self, paths: Sequence[str], workers: int
    ) -> tuple[np.ndarray, dict[int, Unreadable]]:
        """Return the spectrogram of each file, and the unreadable ones by index.

        Spectrograms of unreadable files are NaN, also in the cache. Such files are read again every
        time.
        """
        import librosa

        log_mel = LogMel(
            sample_rate=self.sample_rate,
            samples=round(self.sample_rate * self.seconds),
            window=self._in_samples(self.window_ms),
            hop=self._in_samples(self.hop_ms),
            bands=self.mel_bands,
        )
        shape = (len(paths), *log_mel.shape)
        states = file_states(self.path, paths)
        key = digest([READING, librosa.__version__, asdict(log_mel), states])
        file = self.cache / f"log-mel-{key}.npy"
        features = load_array(file, np.float32, shape)
        if features is None:
            if log_mel.has_empty_bands():
                raise ExperimentError(
                    f"data.mel_bands: {self.mel_bands} are too many for windows of "
                    f"{self.window_ms:g} ms at {self.sample_rate} Hz; some would be empty."
                )
            features = np.full(shape, np.nan, dtype=np.float32)
        missing = np.flatnonzero(np.isnan(features[:, 0, 0])).tolist()
        if missing:
            check_folder(self.cache, "data.cache")
        unreadable = {}
        results = read_files(
            log_mel, [paths[index] for index in missing], workers, "Computing spectrograms"
        )
        for index, result in zip(missing, results, strict=True):
            if isinstance(result, Unreadable):
                unreadable[index] = result
            else:
                features[index] = result
        if len(unreadable) < len(missing):
            save_array(file, features)
        return features, unreadable


class _Standardise:
    """Standardise spectrograms with the mean and standard deviation of each band over some."""

    def __init__(self, features: np.ndarray, indices: np.ndarray) -> None:
        from sklearn.preprocessing import StandardScaler

        scaler = StandardScaler()
        for start in range(0, len(indices), CHUNK):
            frames = features[indices[start : start + CHUNK]].swapaxes(1, 2)
            scaler.partial_fit(frames.reshape(-1, frames.shape[-1]))
        self._mean = scaler.mean_.astype(np.float32)[:, np.newaxis]
        self._std = scaler.scale_.astype(np.float32)[:, np.newaxis]

    def __call__(self, spectrogram: np.ndarray) -> Tensor:
        import torch

        return torch.from_numpy((spectrogram - self._mean) / self._std).unsqueeze(0)


def _standardised_clip(spectrogram: np.ndarray) -> Tensor:
    """Return a log-mel spectrogram whose bands have mean 0, and which has deviation 1."""
    import torch

    # Below this there are only noise and the zeros at the end of the clip.
    clip = np.maximum(spectrogram, spectrogram.max() - RANGE)
    clip = clip - clip.mean(axis=1, keepdims=True)
    # A clip of silence has no deviation.
    return torch.from_numpy(clip / max(clip.std(), 1e-3)).unsqueeze(0)


def _find(folder: Path) -> Found:
    if not folder.is_dir():
        raise ExperimentError(
            f"data.path: there is no folder {folder}; it must hold .wav, .flac or .ogg files."
        )
    found = find_files([folder], EXTENSIONS, ".wav, .flac or .ogg file")
    if not found.files[0]:
        raise ExperimentError(
            f"data.path: there is no .wav, .flac or .ogg file in {folder}.{found.hint()}"
        )
    return found
