"""Drawing samples so that the classes keep their shares."""

from collections.abc import Sequence

import numpy as np

from diffstride_experiments.errors import ExperimentError

__all__ = ["choose", "held_out_remark", "hold_out"]

# This is not the seed of the run: the test samples are the same for every seed.
SPLIT_SEED = 0


def hold_out(
    indices: np.ndarray, labels: np.ndarray, classes: Sequence[str], fraction: float, option: str
) -> tuple[np.ndarray, np.ndarray]:
    """Divide samples into two parts, in which the classes have the same shares.

    Parameters
    ----------
    indices : ndarray of int, shape (m,)
        Samples to divide.
    labels : ndarray of int, shape (n,)
        Class of every sample.
    classes : sequence of str
        Names of the classes.
    fraction : float
        Share that is held out.
    option : str
        Name of the option that gives `fraction`.

    Returns
    -------
    kept, held_out : ndarray of int
        Indices of both parts. ``round(m * fraction)`` samples are held out.

    Raises
    ------
    ExperimentError
        If a class has fewer than two samples, if a part would have fewer samples than there are
        classes, or if a part would have no sample of a class.
    """
    counts = np.bincount(labels[indices], minlength=len(classes))
    held_out = round(len(indices) * fraction)
    if counts.min() < 2:
        raise ExperimentError(
            f"{option}: class {classes[counts.argmin()]} is too small to hold out a share: it has "
            f"{counts.min()} samples; at least 2 are needed."
        )
    if min(held_out, len(indices) - held_out) < len(classes):
        raise ExperimentError(
            f"{option}: {fraction} holds out {held_out} of {len(indices)} samples; both parts must "
            f"have at least as many as there are classes, {len(classes)}."
        )
    from sklearn.model_selection import train_test_split

    kept, held = train_test_split(
        indices,
        train_size=len(indices) - held_out,
        test_size=held_out,
        stratify=labels[indices],
        random_state=SPLIT_SEED,
    )
    for part, action in ((held, "holds out"), (kept, "keeps")):
        counts = np.bincount(labels[part], minlength=len(classes))
        if not counts.all():
            raise ExperimentError(
                f"{option}: {fraction} {action} no sample of class {classes[counts.argmin()]}; "
                "both parts must have all classes."
            )
    return kept, held


def held_out_remark(count: int, total: int, fraction: float) -> str:
    """Return a sentence that says which files are kept for testing."""
    return (
        f"Files kept for testing: {count} of {total}, a share of {fraction:g} of each class "
        "(data.test_fraction), drawn at random but always the same."
    )


def choose(indices: np.ndarray, labels: np.ndarray, count: int | None, option: str) -> np.ndarray:
    """Draw some of the samples so that the classes keep their shares.

    Parameters
    ----------
    indices : ndarray of int, shape (m,)
        Samples to draw from.
    labels : ndarray of int, shape (n,)
        Class of every sample.
    count : int or None
        Number of samples to draw. None: all.
    option : str
        Name of the option that gives `count`.

    Returns
    -------
    ndarray of int
        Indices.

    Raises
    ------
    ExperimentError
        If there are fewer than `count` samples.
    """
    if count is None or count == len(indices):
        return indices
    if count > len(indices):
        raise ExperimentError(f"{option}: {count} is more than the {len(indices)} there are.")
    from sklearn.utils import resample

    return resample(
        indices,
        replace=False,
        n_samples=count,
        stratify=labels[indices],
        random_state=SPLIT_SEED,
    )
