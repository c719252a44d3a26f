"""Which samples a step sees, and what is random about them."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["STEP", "SeededSamples", "StepSampler", "random_seed"]

Key = tuple[int, int]

# Tells the seeds of steps from those of samples.
STEP = 1


def random_seed(*key: int) -> int:
    """Mix integers into a seed for torch.

    Every random number of a run comes from a seed like this of what it is for, none from what was
    drawn before. So a run that goes on needs no states of generators, and its results do not depend
    on the number of worker processes.

    Parameters
    ----------
    *key : int
        Integers of at least 0.

    Returns
    -------
    int
        From 0 to 2**63 - 1.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


class SeededSamples(Dataset[tuple[Tensor, int]]):
    """Samples whose augmentation is decided by seed, epoch and index.

    Parameters
    ----------
    samples : Dataset
        Samples by index; what is random about them comes from torch's generator.
    seed : int
        Seed of the run.
    """

    def __init__(self, samples: Dataset[tuple[Tensor, int]], seed: int) -> None:
        self._samples = samples
        self._seed = seed

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        """Return a sample of an epoch; `key` is (epoch, index)."""
        torch.default_generator.manual_seed(random_seed(self._seed, *key))
        return self._samples[key[1]]


class StepSampler:
    """The keys of each step's samples in one process, in a random order in every epoch.

    Parameters
    ----------
    count : int
        Number of samples.
    steps : range
        Steps to be done.
    steps_per_epoch : int
        Steps of an epoch.
    batch_size : int
        Samples of a step, over all processes.
    seed : int
        Seed of the run.
    rank, processes : int
        This process and how many there are: each takes an equal part of each batch.
    """

    def __init__(
        self,
        count: int,
        steps: range,
        steps_per_epoch: int,
        batch_size: int,
        seed: int,
        rank: int,
        processes: int,
    ) -> None:
        self._count = count
        self._steps = steps
        self._steps_per_epoch = steps_per_epoch
        self._batch_size = batch_size
        self._seed = seed
        self._rank = rank
        self._processes = processes

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[list[Key]]:
        """Yield the keys of each step."""
        order = np.empty(0, dtype=np.int64)
        ordered_epoch = -1
        for step in self._steps:
            epoch, position = divmod(step, self._steps_per_epoch)
            if epoch != ordered_epoch:
                order = np.random.default_rng((self._seed, epoch)).permutation(self._count)
                ordered_epoch = epoch
            start = position * self._batch_size + self._rank
            stop = (position + 1) * self._batch_size
            yield [(epoch, int(index)) for index in order[start : stop : self._processes]]
