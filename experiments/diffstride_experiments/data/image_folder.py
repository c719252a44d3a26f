"""Folders of images."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from diffstride_experiments.data.files import FileSource, Unreadable, check_classes, read_files
from diffstride_experiments.data.image_files import (
    image_sizes,
    image_suffixes,
    read_image,
    read_image_and_frames,
)
from diffstride_experiments.data.source import Data, EvaluateOn
from diffstride_experiments.data.splits import held_out_remark, hold_out
from diffstride_experiments.data.walk import Found, find_files
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.text import AnyPath, one_line

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision.transforms import Compose

__all__ = ["ImageFolder"]

# Names of folders that are parts of a data set rather than classes.
PARTS = {"train", "training", "test", "testing", "val", "valid", "validation"}


class ImageFolder(FileSource):
    """Colour images path/train/CLASS/* and, for evaluation, path/test/CLASS/* or path/val/CLASS/*.

    With test_fraction, they are path/CLASS/*.
    """

    name: Literal["images"] = "images"
    """Kind of data."""

    path: AnyPath
    """Folder with train/CLASS/ and test/CLASS/ (or val/CLASS/), which contain images. With
    test_fraction: folder with CLASS/."""

    test_fraction: float | None = Field(None, gt=0, lt=1)
    """Share of the images of each class kept for testing, if path contains the classes themselves.
    None: path contains train and test."""

    augmentation: Literal["none", "shift-flip", "random-resized-crop"] = "none"
    """Augmentation of training images. shift-flip: random shifts by up to pad pixels and mirroring.
    random-resized-crop: random crops, which are resized, and mirroring, as usual for ImageNet."""

    size: PositiveInt | None = None
    """Height and width. The shorter side is resized to it, then the centre is cropped. None: all
    images must have the same size. random-resized-crop needs a size; evaluation then resizes the
    shorter side to 256/224 of it."""

    pad: NonNegativeInt = 4
    """Largest random shift of shift-flip, in pixels."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Mean of red, green and blue to subtract, in [0, 1]. The default is ImageNet's mean."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """Standard deviation of red, green and blue to divide by. The default is ImageNet's."""

    in_memory: bool = False
    """Decode all images once and keep them in memory, 3 bytes per pixel."""

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if self.augmentation == "random-resized-crop":
            if self.size is None:
                raise ValueError("size must be given for random-resized-crop")
            if self.in_memory:
                raise ValueError("in_memory must be left out for random-resized-crop")
        return self

    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Check all images and keep them if they are to stay in memory, see `Source.load`."""
        from diffstride_experiments.data.samples import Samples

        folders = self._part_folders(evaluate_on) if self.test_fraction is None else [self.path]
        self._check_layout()
        found = find_files(folders, image_suffixes(), "image")
        self._leave_out_beside(folders, found)
        used = 1 if evaluate_on == "validation" else len(folders)
        samples = _labelled(folders[:used], found)
        classes = tuple(found.folders[0])
        _check_classes_found(folders[:used], found)
        paths = [path for part in samples for path, _ in part]
        numbers = {name: number for number, name in enumerate(classes)}
        labels = np.array([numbers[name] for part in samples for _, name in part], dtype=int)
        parts = list(np.split(np.arange(len(paths)), [len(samples[0])]))
        places, remarks = [str(folder) for folder in folders[:used]], []
        if self.test_fraction is not None:
            check_classes(labels, classes, str(self.path), found)
            places = [f"{self.path} to {action} on" for action in ("train", "test")]
            parts = list(
                hold_out(parts[0], labels, classes, self.test_fraction, "data.test_fraction")
            )
            remarks = [held_out_remark(len(parts[1]), len(paths), self.test_fraction)]

        items, unreadable = (self._decode if self.in_memory else self._check)(paths, workers, found)
        readable, skipped = self._leave_out(unreadable, len(paths), found)
        train, test = (part[np.isin(part, readable)] for part in parts)
        for part, place in zip((train, test), places, strict=False):
            check_classes(labels[part], classes, place, found)

        train, evaluation = self._split(labels, classes, train, test, evaluate_on)
        augment, plain = self._transforms()
        evaluated = Samples(items, labels, evaluation, plain)
        return Data(
            train=Samples(items, labels, train, augment),
            evaluation=evaluated,
            classes=tuple(map(one_line, classes)),
            input_shape=tuple(evaluated[0][0].shape),
            skipped=skipped,
            left_out=tuple(found.left_out),
            remarks=(*remarks, *found.remarks()),
        )

    def _part_folders(self, evaluate_on: EvaluateOn) -> list[Path]:
        train, test, val = (self.path / name for name in ("train", "test", "val"))
        # ImageNet's test images have no classes.
        evaluation = test if _has_folders(test) or not val.is_dir() else val
        missing = None
        if not train.is_dir():
            missing = f"{train}"
        elif evaluate_on == "test" and not evaluation.is_dir():
            missing = f"{test} or {val}"
        if missing:
            advice = (
                " Where the folders in it are the classes, give data.test_fraction, the share to "
                "keep for testing, for instance --data.test-fraction 0.2."
            )
            raise ExperimentError(
                f"data.path: {self.path} must hold train/CLASS/ and test/CLASS/ or val/CLASS/ "
                f"with images, but there is no {missing}."
                f"{advice if _has_folders(self.path) else ''}"
            )
        # Always search both folders. A training file that is a link to an evaluation file belongs
        # to the evaluation, so training has the same files with either `evaluate_on`.
        return [folder for folder in (train, evaluation) if folder.is_dir()]

    def _check_layout(self) -> None:
        """Check that a folder to split is not split already."""
        if self.test_fraction is None:
            return
        if not self.path.is_dir():
            raise ExperimentError(
                f"data.path: there is no folder {self.path}; with data.test_fraction it must hold "
                "CLASS/ with images."
            )
        parts = [
            folder.name
            for folder in sorted(self.path.iterdir())
            if folder.name.lower() in PARTS and folder.is_dir()
        ]
        if len(parts) > 1 or any(_has_folders(self.path / name) for name in parts):
            raise ExperimentError(
                f"data.test_fraction: {self.test_fraction} is not allowed, because {self.path} is "
                f"split already: it has {', '.join(parts)}. Leave data.test_fraction out, or make "
                "data.path the folder that holds the classes."
            )

    def _leave_out_beside(self, folders: Sequence[Path], found: Found) -> None:
        """Note what is beside the folders of the parts and therefore not used."""
        if self.test_fraction is not None:
            return
        for path in sorted(set(self.path.iterdir()) - set(folders)):
            if path.name.startswith("."):
                found.hidden += 1
            else:
                found.leave_out(str(path), "beside the folders that are used")

    def _check(
        self, paths: Sequence[str], workers: int, found: Found
    ) -> tuple[Sequence[str], dict[int, Unreadable]]:
        """Return the paths, and the unreadable images by index.

        If no size is given, check that the other images all have the same size.
        """
        unreadable, first = {}, None
        for index, result in enumerate(image_sizes(self.path, paths, self.cache, workers)):
            if isinstance(result, Unreadable):
                unreadable[index] = result
                continue
            *size, frames = result
            _leave_out_frames(paths[index], frames, found)
            if self.size is None:
                first = first or (paths[index], size)
                _check_size(paths[index], size, *first)
        return paths, unreadable

    def _decode(
        self, paths: Sequence[str], workers: int, found: Found
    ) -> tuple[Tensor, dict[int, Unreadable]]:
        """Return all images as uint8, and the unreadable images by index."""
        import torch
        from torchvision.transforms import Compose

        images, unreadable, first = np.empty(0, np.uint8), {}, None
        read = partial(_pixels, Compose(self._resize()))
        for index, result in enumerate(read_files(read, paths, workers, "Reading images")):
            if isinstance(result, Unreadable):
                unreadable[index] = result
                continue
            pixels, frames = result
            _leave_out_frames(paths[index], frames, found)
            height, width, channels = pixels.shape
            if first is None:
                first = (paths[index], [width, height])
                images = np.empty((len(paths), channels, height, width), np.uint8)
            _check_size(paths[index], [width, height], *first)
            images[index] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(images), unreadable

    def _resize(self) -> list[Callable[[Any], Any]]:
        """Return the transforms that give an image the size that augmentation starts from."""
        if self.size is None:
            return []
        from torchvision.transforms import v2

        return [v2.Resize(self.size), v2.CenterCrop(self.size)]

    def _transforms(self) -> tuple[Compose, Compose]:
        """Return the transforms from items to samples, for training and for evaluation."""
        from torchvision.transforms import Compose, v2

        from diffstride_experiments.data.samples import Normalise, ShiftFlip

        normalise = Normalise(self.mean, self.std)
        if self.augmentation == "random-resized-crop":
            finish = [v2.PILToTensor(), normalise]
            crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
            centre = [v2.Resize(round(self.size * 256 / 224)), v2.CenterCrop(self.size)]
            return tuple(Compose([read_image, *middle, *finish]) for middle in (crop, centre))
        start = [] if self.in_memory else [read_image, *self._resize(), v2.PILToTensor()]
        augment = [ShiftFlip(self.pad)] if self.augmentation == "shift-flip" else []
        return Compose([*start, *augment, normalise]), Compose([*start, normalise])


def _has_folders(folder: Path) -> bool:
    return folder.is_dir() and any(
        child.is_dir() for child in folder.iterdir() if not child.name.startswith(".")
    )


def _labelled(folders: Sequence[Path], found: Found) -> list[list[tuple[str, str]]]:
    """Return path and class of each folder's images, by class; leave out images without a class."""
    parts = []
    for folder, paths in zip(folders, found.files, strict=False):
        part = []
        for path in paths:
            name, *below = Path(path).relative_to(folder).parts
            if below:
                part.append((path, name))
            else:
                found.leave_out(path, "in no folder of a class")
        parts.append(sorted(part, key=lambda sample: (sample[1], *os.path.split(sample[0]))))
    return parts


def _check_classes_found(folders: Sequence[Path], found: Found) -> None:
    """Check that each folder has classes, and that they are the same in all folders."""
    parts = [(folder, set(names)) for folder, names in zip(folders, found.folders, strict=False)]
    for folder, names in parts:
        if not names:
            raise ExperimentError(
                f"data.path: there is no folder of a class in {folder}.{found.hint()}"
            )
    known = set().union(*(names for _, names in parts))
    absent = [
        f"{folder} has no {', '.join(sorted(known - names))}"
        for folder, names in parts
        if known - names
    ]
    if absent:
        raise ExperimentError(f"data.path: the classes differ: {', '.join(absent)}.{found.hint()}")


def _pixels(resize: Callable[[Any], Any], path: str) -> tuple[np.ndarray, int]:
    image, frames = read_image_and_frames(path)
    return np.asarray(resize(image)), frames


def _leave_out_frames(path: str, frames: int, found: Found) -> None:
    if frames > 1:
        found.leave_out(path, f"all of its {frames} frames but the first")


def _check_size(path: str, size: Sequence[int], first_path: str, first_size: Sequence[int]) -> None:
    if size != first_size:
        raise ExperimentError(
            "data.size must be given if images differ in width and height: "
            f"{first_path} has {first_size[0]}x{first_size[1]}, {path} {size[0]}x{size[1]}."
        )
