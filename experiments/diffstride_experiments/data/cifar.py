"""CIFAR10 and CIFAR100."""

from typing import Literal

import numpy as np
from pydantic import NonNegativeInt

from diffstride_experiments.data.source import Data, EvaluateOn, Source
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.text import AnyPath

__all__ = ["Cifar"]

# Mean and standard deviation of the channels. The values for CIFAR10 are from the authors' code.
STATISTICS = {
    10: ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    100: ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
}


class Cifar(Source):
    """CIFAR10 or CIFAR100: 60,000 colour images, 32x32."""

    name: Literal["cifar"] = "cifar"
    """Kind of data."""

    path: AnyPath
    """Folder with cifar-10-batches-py or cifar-100-python, unpacked from the Python version of
    https://www.cs.toronto.edu/~kriz/cifar.html. Nothing is downloaded."""

    classes: Literal[10, 100] = 10
    """Number of classes."""

    augmentation: Literal["none", "shift-flip"] = "shift-flip"
    """Augmentation of training images. shift-flip: random shifts by up to pad pixels and mirroring.
    """

    pad: NonNegativeInt = 4
    """Largest random shift of shift-flip, in pixels."""

    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Read and split the images, see `Source.load`."""
        import torch
        from torchvision import datasets
        from torchvision.transforms import Compose

        from diffstride_experiments.data.samples import Normalise, Samples, ShiftFlip

        kind = {10: datasets.CIFAR10, 100: datasets.CIFAR100}[self.classes]
        try:
            parts = [kind(self.path, train=train) for train in (True, False)]
        except RuntimeError as error:
            raise ExperimentError(
                f"data.path: {self.path} must hold the folder {kind.base_folder}, complete and "
                "unchanged, from https://www.cs.toronto.edu/~kriz/cifar.html (Python version); "
                "nothing is downloaded."
            ) from error
        pixels = np.concatenate([part.data for part in parts])
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()
        labels = np.concatenate([part.targets for part in parts])
        train, test = np.split(np.arange(len(labels)), [len(parts[0])])
        classes = tuple(parts[0].classes)
        train, evaluation = self._split(labels, classes, train, test, evaluate_on)
        normalise = Normalise(*STATISTICS[self.classes])
        augment = (
            Compose([ShiftFlip(self.pad), normalise])
            if self.augmentation == "shift-flip"
            else normalise
        )
        return Data(
            train=Samples(images, labels, train, augment),
            evaluation=Samples(images, labels, evaluation, normalise),
            classes=classes,
            input_shape=(3, 32, 32),
        )
