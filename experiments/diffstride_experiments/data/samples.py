"""Labelled samples, and how images become inputs."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad as pad_with_zeros
from torch.utils.data import Dataset

__all__ = ["Normalise", "RandomMask", "RandomShift", "Samples", "ShiftFlip"]


class Samples(Dataset[tuple[Tensor, int]]):
    """Some of the items of a collection, with their labels.

    Parameters
    ----------
    items : sequence
        Items that samples are made from, for instance paths.
    labels : ndarray of int, shape (len(items),)
        Class of each item.
    indices : ndarray of int
        Items that are samples here, in this order.
    transform : callable
        Function from an item to a Tensor.
    """

    def __init__(
        self,
        items: Sequence[Any] | Tensor | np.ndarray,
        labels: np.ndarray,
        indices: np.ndarray,
        transform: Callable[[Any], Tensor],
    ) -> None:
        self._items = items
        self._labels = labels
        self._indices = indices
        self._transform = transform

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return a sample and its label."""
        item = self._indices[index]
        return self._transform(self._items[item]), int(self._labels[item])


class Normalise:
    """Convert bytes to floats with a mean of about 0 and a standard deviation of about 1.

    Parameters
    ----------
    mean, std : sequence of float
        Mean and standard deviation of each channel, as fractions of 255.
    """

    def __init__(self, mean: Sequence[float], std: Sequence[float]) -> None:
        self._mean = 255 * torch.tensor(mean).reshape(-1, 1, 1)
        self._std = 255 * torch.tensor(std).reshape(-1, 1, 1)

    def __call__(self, image: Tensor) -> Tensor:
        """Return a uint8 image of shape (C, H, W) as float32."""
        return (image - self._mean).div_(self._std)


class ShiftFlip:
    """Shift an image at random, filling with black, and mirror it in half of the cases.

    All shifts by up to `pad` pixels along each axis are equally likely, as with padding and a
    random crop. These few calls take a fraction of the time of torchvision's transforms.

    Parameters
    ----------
    pad : int
        Largest shift in pixels.
    """

    def __init__(self, pad: int) -> None:
        self._pad = pad

    def __call__(self, image: Tensor) -> Tensor:
        """Return a uint8 image of shape (C, H, W) with the same size."""
        height, width = image.shape[-2:]
        top, left = torch.randint(2 * self._pad + 1, (2,)).tolist()
        padded = pad_with_zeros(image, (self._pad,) * 4)
        shifted = padded[:, top : top + height, left : left + width]
        return shifted.flip(-1) if torch.rand(()).item() < 0.5 else shifted


class RandomMask:
    """Mask some neighbouring bands and some neighbouring frames of a sample with 0, its mean.

    This is the masking of SpecAugment (Park et al., 2019), once along each axis.

    Parameters
    ----------
    share : float
        Largest width of a mask as a share of the axis, between 0 and 1. All widths up to it and all
        places are equally likely.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, sample: Tensor) -> Tensor:
        """Return a masked copy of a sample of shape (C, H, W)."""
        sample = sample.clone()
        for axis, size in enumerate(sample.shape[1:], start=1):
            width = int(torch.randint(int(self._share * size) + 1, ()))
            begin = int(torch.randint(size - width + 1, ()))
            sample.narrow(axis, begin, width).zero_()
        return sample


class RandomShift:
    """Shift a sample at random along both axes, repeating its edges.

    Parameters
    ----------
    share : float
        Largest shift along an axis as a share of its length, between 0 and 1. All shifts by a whole
        number of values up to it are equally likely.
    """

    def __init__(self, share: float) -> None:
        self._share = share

    def __call__(self, sample: Tensor) -> Tensor:
        """Return a sample of shape (C, H, W) with the same size."""
        for axis, size in enumerate(sample.shape[1:], start=1):
            most = int(self._share * size)
            shift = int(torch.randint(-most, most + 1, ()))
            sample = sample.index_select(axis, (torch.arange(size) + shift).clamp_(0, size - 1))
        return sample
