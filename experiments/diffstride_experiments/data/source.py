"""Common parts of all kinds of data."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field, PositiveInt

from diffstride_experiments.data.splits import choose, hold_out
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.options import Options

if TYPE_CHECKING:
    from torch import Tensor
    from torch.utils.data import Dataset

__all__ = ["Data", "EvaluateOn", "Source"]

EvaluateOn = Literal["test", "validation"]


@dataclass(frozen=True)
class Data:
    """Samples to train on and samples to measure accuracy on.

    Attributes
    ----------
    train : Dataset
        Pairs of a float32 Tensor of shape `input_shape` and a label, an int below ``len(classes)``.
        Augmentation draws only from torch's global generator.
    evaluation : Dataset
        Pairs of the same kind, without augmentation.
    classes : tuple of str
        Names of the classes, by label.
    input_shape : tuple of int
        Channels, height and width of every sample.
    skipped : tuple of str
        Unreadable files that were left out, as ``"PATH: why"``.
    left_out : tuple of str
        Other files and folders that are not used, in the same form.
    remarks : tuple of str
        Sentences about the samples.
    """

    train: Dataset[tuple[Tensor, int]]
    evaluation: Dataset[tuple[Tensor, int]]
    classes: tuple[str, ...]
    input_shape: tuple[int, int, int]
    skipped: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    remarks: tuple[str, ...] = ()


class Source(Options, ABC):
    """Options of every kind of data.

    Attributes
    ----------
    reading : int
        Version of the way files are read, for data that is read from single files. A run does not
        continue from checkpoints of samples that were read in another way.
    """

    reading: ClassVar[int] = 0

    train_count: PositiveInt | None = None
    """Number of training samples to use. The classes keep their shares. None: all."""

    evaluation_count: PositiveInt | None = None
    """Number of samples to evaluate on, drawn in the same way. None: all."""

    validation_fraction: float = Field(0.2, gt=0, le=0.5)
    """Share of the training samples that --evaluate-on validation holds out and evaluates on."""

    @abstractmethod
    def load(self, evaluate_on: EvaluateOn, workers: int = 0) -> Data:
        """Read, check and split the samples.

        Parameters
        ----------
        evaluate_on : {"test", "validation"}
            Samples to measure the accuracy on. Validation samples are held-out training samples;
            the test samples are then not used at all.
        workers : int, default 0
            Processes that read files. 0: this process reads them.

        Returns
        -------
        Data
            Samples, always the same for the same options and files.

        Raises
        ------
        ExperimentError
            If files are missing, unreadable or not laid out as required, if a class has too few
            samples, or if more samples are asked for than there are.
        """

    def _split(
        self,
        labels: np.ndarray,
        classes: Sequence[str],
        train: np.ndarray,
        test: np.ndarray,
        evaluate_on: EvaluateOn,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the indices to train and to evaluate on; validation samples are from `train`."""
        evaluation = test
        if evaluate_on == "validation":
            train, evaluation = hold_out(
                train, labels, classes, self.validation_fraction, "data.validation_fraction"
            )
        return self._limit(labels, classes, train, evaluation)

    def _limit(
        self,
        labels: np.ndarray,
        classes: Sequence[str],
        train: np.ndarray,
        evaluation: np.ndarray,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return as many of the indices as the options ask for."""
        train = choose(train, labels, self.train_count, "data.train_count")
        evaluation = choose(evaluation, labels, self.evaluation_count, "data.evaluation_count")
        if not len(evaluation):
            raise ExperimentError("data: there are no samples to evaluate on.")
        if len(classes) < 2:
            raise ExperimentError(f"data: there must be at least two classes, found {classes[0]}.")
        counts = np.bincount(labels[train], minlength=len(classes))
        if not counts.all():
            option = "data" if self.train_count is None else "data.train_count"
            raise ExperimentError(
                f"{option}: class {classes[counts.argmin()]} has none of the {len(train)} training "
                "samples."
            )
        return train, evaluation
