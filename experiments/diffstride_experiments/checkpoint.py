"""Checkpoints of one method's training."""

from pathlib import Path
from typing import Any

import torch

from diffstride_experiments.atomic import replacing
from diffstride_experiments.errors import ExperimentError

__all__ = ["load_checkpoint", "save_checkpoint"]


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write a state dictionary atomically.

    Parameters
    ----------
    path : Path
        File to write.
    state : dict
        Tensors, numbers, strings, lists and dictionaries.
    """
    with replacing(path) as file:
        torch.save(state, file)


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a state dictionary without running any code from the file.

    Parameters
    ----------
    path : Path
        File that `save_checkpoint` wrote.

    Returns
    -------
    dict
        The state.

    Raises
    ------
    ExperimentError
        If the file is damaged.
    """
    try:
        return torch.load(path, weights_only=True)
    # What torch.load raises depends on where the damage is: RuntimeError, EOFError, KeyError,
    # OSError, pickle.UnpicklingError and more were seen.
    except Exception as error:
        raise ExperimentError(
            f"{path} is damaged or not a checkpoint ({type(error).__name__}). "
            "Delete it to train this method again from the start."
        ) from error
