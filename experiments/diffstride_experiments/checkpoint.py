"""Checkpoints of one method's training."""

import io
import zipfile
from pathlib import Path
from typing import Any

import torch

from diffstride_experiments.atomic import replacing
from diffstride_experiments.errors import ExperimentError

__all__ = ["Checkpoints"]

FORMAT = "diffstride_experiments checkpoint 2"

# The last checkpoint, and the one before it in case the last is damaged.
KEPT = 2


class Checkpoints:
    """The newest checkpoints of one training, named after the steps done.

    Parameters
    ----------
    folder : Path
        Folder of the checkpoints. It is created when the first one is saved.
    owner : str
        Description of the training, with everything that affects its results. Checkpoints of other
        trainings are refused.
    """

    def __init__(self, folder: Path, owner: str) -> None:
        self._folder = folder
        self._owner = owner

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint atomically, then remove all but the newest two.

        Parameters
        ----------
        step : int
            Steps done.
        state : dict
            Tensors, numbers, strings, lists and dictionaries.
        """
        content = io.BytesIO()
        torch.save({"format": FORMAT, "owner": self._owner, "state": state}, content)
        with replacing(self._folder / f"{step:08d}.pt") as target:
            target.write(content.getvalue())
        for path in self._paths()[KEPT:]:
            path.unlink()

    def load(self) -> tuple[dict[str, Any] | None, list[str]]:
        """Read the newest valid checkpoint, without running any code from the file.

        Returns
        -------
        state : dict or None
            The saved state, with its tensors on the CPU. None if there is no checkpoint.
        refused : list of str
            Why newer files were not used. They have been renamed.

        Raises
        ------
        ExperimentError
            If there are checkpoints, but no valid one.
        """
        refused: list[str] = []
        for path in self._paths():
            try:
                return self._read(path), refused
            except ExperimentError as error:
                # Moved out of the way, so that it does not count as one of the kept checkpoints.
                aside = path.with_suffix(".refused")
                refused.append(f"{error} It is now {aside.name}.")
                path.replace(aside)
        if refused:
            raise ExperimentError(
                " ".join([*refused, "No checkpoint is left; the same command starts again."])
            )
        return None, refused

    def _paths(self) -> list[Path]:
        # Only files with such names: other files in the folder may belong to someone else.
        return sorted(self._folder.glob("[0-9]" * 8 + ".pt"), reverse=True)

    def _read(self, path: Path) -> dict[str, Any]:
        try:
            # torch.load does not check the checksums.
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
            if damaged is not None:
                raise ValueError(f"checksum of {damaged}")
            content = torch.load(path, weights_only=True, map_location="cpu")
        # The error depends on where the damage is: RuntimeError, EOFError, KeyError, OSError,
        # BadZipFile, UnpicklingError and others have been seen.
        except Exception as error:
            raise ExperimentError(
                f"{path} is damaged or not a checkpoint ({type(error).__name__}: {error})."
            ) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise ExperimentError(f"{path} is not a checkpoint of this program.")
        if content["owner"] != self._owner:
            raise ExperimentError(
                f"{path} is a checkpoint of {content['owner']}, not of {self._owner}."
            )
        return content["state"]
