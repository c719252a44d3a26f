"""Atomic writing: a file is either complete or unchanged."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["naming", "replacing"]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add a file's name to operating-system errors that have none, such as for a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary file beside a file, and replace the file with it at the end.

    A crash, a full disk or a power cut leaves the old file unchanged. Several processes may write
    the same file: the last one to finish wins.

    Parameters
    ----------
    path : Path
        File to write. Its folder is created if necessary.

    Yields
    ------
    file
        Binary file to write to. After an exception, nothing is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with naming(path), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":
        # The new name is on the disk only once its folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
