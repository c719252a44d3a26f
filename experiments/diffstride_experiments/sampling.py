"""The samples of each step, and their randomness."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

__all__ = ["STEP", "SeededSamples", "StepSampler", "random_seed"]

Key = tuple[int, int]

# Last integer of a step's key, which keeps the seeds of steps apart from the seeds of samples.
STEP = 1


def random_seed(*key: int) -> int:
    """Mix integers into a seed for torch.

    Each random number of a run comes from a seed that stands for its purpose, never from earlier
    draws. A run can therefore continue without stored generator states, and its results do not
    depend on the number of worker processes.

    Parameters
    ----------
    *key : int
        Integers of at least 0.

    Returns
    -------
    int
        Seed from 0 to 2**63 - 1.
    """
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]) >> 1


class SeededSamples(Dataset[tuple[Tensor, int]]):
    """Samples whose augmentation depends only on seed, epoch and index.

    Parameters
    ----------
    samples : Dataset
        Samples by index. Their augmentation draws from torch's default generator.
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
    """Sampler of the keys of each step's samples in one process, with a random order per epoch.

    Parameters
    ----------
    count : int
        Number of samples.
    steps : range
        Steps to do.
    steps_per_epoch : int
        Steps in an epoch.
    batch_size : int
        Samples per step, over all processes.
    seed : int
        Seed of the run.
    rank, processes : int
        Number of this process, and number of processes. Each takes an equal part of each batch.
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
