"""What was computed from files and holds until they change."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffstride_experiments.atomic import replacing

__all__ = ["digest", "file_states", "load_array", "save_array"]


def file_states(root: Path, paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return path below `root`, size and time of change in ns of each file: 0, 0 for a lost one."""
    states = []
    for path in paths:
        try:
            status = Path(path).stat()
            size, changed = status.st_size, status.st_mtime_ns
        except OSError:
            size, changed = 0, 0
        states.append((Path(path).relative_to(root).as_posix(), size, changed))
    return states


def digest(value: Any) -> str:
    """Return 16 hexadecimal digits that stand for a value of JSON's types."""
    return hashlib.blake2b(json.dumps(value).encode(), digest_size=8).hexdigest()


def load_array(path: Path, dtype: type, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Map an array from a cache file.

    Parameters
    ----------
    path : Path
        ``.npy`` file.
    dtype : type
        What its entries must be.
    shape : tuple of int or None
        What its shape must be; None: any length.

    Returns
    -------
    ndarray or None
        The array, read where it is looked at; changing it leaves the file alone. None where the
        file is missing, damaged or holds something else.
    """
    try:
        array = np.asarray(np.load(path, mmap_mode="c"))
    except (OSError, ValueError, EOFError):
        return None
    fits = array.ndim == len(shape) and all(
        wanted in (None, length) for wanted, length in zip(shape, array.shape, strict=True)
    )
    return array if fits and array.dtype == dtype else None


def save_array(path: Path, array: np.ndarray) -> None:
    """Write a cache file, which is complete or untouched."""
    with replacing(path) as file:
        np.save(file, array)
