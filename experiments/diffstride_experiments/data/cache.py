"""Cache of values that are computed from files and valid until the files change."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diffstride_experiments.atomic import replacing

__all__ = ["digest", "file_states", "load_array", "save_array"]


def file_states(root: Path, paths: Sequence[str]) -> list[tuple[str, int, int]]:
    """Return each file's path below `root`, size and change time in ns; 0, 0 if it is missing."""
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
        Required type of the entries.
    shape : tuple of int or None
        Required shape. None: any length.

    Returns
    -------
    ndarray or None
        The array, which is read from the file on access. Changes to it do not change the file. None
        if the file is missing or damaged, or has another type or shape.
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
    """Write a cache file atomically."""
    with replacing(path) as file:
        np.save(file, array)
