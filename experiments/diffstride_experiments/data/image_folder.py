"""Folders of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import numpy as np
from pydantic import NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from diffstride_experiments.data.files import FileSource, Unreadable, check_classes, read_files
from diffstride_experiments.data.image_files import image_sizes, read_image
from diffstride_experiments.data.source import Data, EvaluateOn
from diffstride_experiments.errors import ExperimentError

if TYPE_CHECKING:
    from torch import Tensor
    from torchvision import datasets
    from torchvision.transforms import Compose

__all__ = ["ImageFolder"]


class ImageFolder(FileSource):
    """Colour images path/train/CLASS/* and, for the evaluation, path/test or path/val alike."""

    name: Literal["images"] = "images"
    """Kind of data."""

    path: Path
    """Folder that holds train/CLASS/ and test/CLASS/ with images; where there is no test, val."""

    augmentation: Literal["none", "shift-flip", "random-resized-crop"] = "none"
    """What is done to training images: nothing; random shifts by up to pad pixels and mirroring; or
    ImageNet's random crops, resized, and mirroring."""

    size: PositiveInt | None = None
    """Height and width: the shorter side is resized to it and the centre cropped. None: that of the
    images, which must all have one. With random-resized-crop, which needs it, evaluation resizes
    the shorter side to 256/224 of it."""

    pad: NonNegativeInt = 4
    """Largest random shift in pixels of shift-flip."""

    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """What is subtracted from red, green and blue, which are in [0, 1]. Default: ImageNet's."""

    std: tuple[PositiveFloat, PositiveFloat, PositiveFloat] = (0.229, 0.224, 0.225)
    """What they are divided by then. Default: ImageNet's."""

    in_memory: bool = False
    """Decode all images once and keep them, 3 bytes a pixel."""

    @model_validator(mode="after")
    def _check_augmentation(self) -> Self:
        if self.augmentation == "random-resized-crop":
            if self.size is None:
                raise ValueError("size must be given for random-resized-crop")
            if self.in_memory:
                raise ValueError("in_memory must be left out for random-resized-crop")
        return self

    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Check all images, and keep them if they are to stay in memory, see `Source.load`."""
        from diffstride_experiments.data.samples import Samples

        folders = self._folders(evaluate_on)
        parts = [_find(folder) for folder in folders]
        classes = tuple(parts[0].classes)
        _check_same_classes(folders, parts)
        paths = [path for part in parts for path, _ in part.samples]
        labels = np.array([label for part in parts for label in part.targets], dtype=int)
        items, unreadable = (
            self._decode(paths, workers) if self.in_memory else (paths, self._check(paths, workers))
        )
        readable, skipped = self._leave_out(unreadable, len(paths))
        train, test = np.split(readable, [np.searchsorted(readable, len(parts[0]))])
        for part, folder in zip((train, test), folders, strict=False):
            check_classes(labels[part], classes, folder)

        train, evaluation = self._split(labels, classes, train, test, evaluate_on)
        augment, plain = self._transforms()
        evaluated = Samples(items, labels, evaluation, plain)
        return Data(
            train=Samples(items, labels, train, augment),
            evaluation=evaluated,
            classes=classes,
            input_shape=tuple(evaluated[0][0].shape),
            skipped=skipped,
        )

    def _folders(self, evaluate_on: EvaluateOn) -> list[Path]:
        train, test, val = (self.path / name for name in ("train", "test", "val"))
        # ImageNet's test images have no classes.
        has_classes = test.is_dir() and any(child.is_dir() for child in test.iterdir())
        evaluation = test if has_classes or not val.is_dir() else val
        folders = [train, evaluation] if evaluate_on == "test" else [train]
        for folder in folders:
            if not folder.is_dir():
                missing = train if folder == train else f"{test} or {val}"
                raise ExperimentError(
                    f"data.path: {self.path} must hold train/CLASS/ and test/CLASS/ or val/CLASS/ "
                    f"with images, there is no {missing}."
                )
        return folders

    def _check(self, paths: Sequence[str], workers: int) -> dict[int, Unreadable]:
        """Return the unreadable ones by index; check that the others have one size if they must."""
        unreadable, first = {}, None
        for index, size in enumerate(image_sizes(self.path, paths, self.cache, workers)):
            if isinstance(size, Unreadable):
                unreadable[index] = size
            elif self.size is None:
                first = first or (paths[index], size)
                _check_size(paths[index], size, *first)
        return unreadable

    def _decode(self, paths: Sequence[str], workers: int) -> tuple[Tensor, dict[int, Unreadable]]:
        """Return all images as bytes and the unreadable ones by index."""
        import torch
        from torchvision.transforms import Compose

        images, unreadable, first = np.empty(0, np.uint8), {}, None
        read = Compose([*self._to_size(), np.asarray])
        for index, pixels in enumerate(read_files(read, paths, workers, "Reading images")):
            if isinstance(pixels, Unreadable):
                unreadable[index] = pixels
                continue
            height, width, channels = pixels.shape
            if first is None:
                first = (paths[index], (width, height))
                images = np.empty((len(paths), channels, height, width), np.uint8)
            _check_size(paths[index], (width, height), *first)
            images[index] = pixels.transpose(2, 0, 1)
        return torch.from_numpy(images), unreadable

    def _to_size(self) -> list[Callable[[Any], Any]]:
        """Return what makes of a path an image of the size that augmentation starts from."""
        if self.size is None:
            return [read_image]
        from torchvision.transforms import v2

        return [read_image, v2.Resize(self.size), v2.CenterCrop(self.size)]

    def _transforms(self) -> tuple[Compose, Compose]:
        """Return what makes samples of items, for training and for evaluation."""
        from torchvision.transforms import Compose, v2

        from diffstride_experiments.data.samples import Normalise, ShiftFlip

        normalise = Normalise(self.mean, self.std)
        if self.augmentation == "random-resized-crop":
            finish = [v2.PILToTensor(), normalise]
            crop = [v2.RandomResizedCrop(self.size), v2.RandomHorizontalFlip()]
            centre = [v2.Resize(round(self.size * 256 / 224)), v2.CenterCrop(self.size)]
            return tuple(Compose([read_image, *middle, *finish]) for middle in (crop, centre))
        start = [] if self.in_memory else [*self._to_size(), v2.PILToTensor()]
        augment = [ShiftFlip(self.pad)] if self.augmentation == "shift-flip" else []
        return Compose([*start, *augment, normalise]), Compose([*start, normalise])


def _find(folder: Path) -> datasets.ImageFolder:
    from torchvision import datasets

    try:
        return datasets.ImageFolder(folder, allow_empty=True)
    except FileNotFoundError as error:
        raise ExperimentError(f"data.path: there is no folder of a class in {folder}.") from error


def _check_same_classes(folders: Sequence[Path], parts: Sequence[datasets.ImageFolder]) -> None:
    known = {name for part in parts for name in part.classes}
    absent = [
        f"{folder} has no {', '.join(sorted(known - set(part.classes)))}"
        for folder, part in zip(folders, parts, strict=True)
        if known - set(part.classes)
    ]
    if absent:
        raise ExperimentError(f"data.path: the classes differ: {', '.join(absent)}.")


def _check_size(
    path: str, size: tuple[int, int], first_path: str, first_size: tuple[int, int]
) -> None:
    if size != first_size:
        raise ExperimentError(
            "data.size must be given where images differ in width and height: "
            f"{first_path} has {first_size[0]}x{first_size[1]}, {path} {size[0]}x{size[1]}."
        )
