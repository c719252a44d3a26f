"""Writing files that are either complete or untouched."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

__all__ = ["naming", "replacing"]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name a file in errors of the operating system that do not, such as that of a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, os.strerror(error.errno), str(path)) from error


@contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of a file and put it in the file's place at the end.

    A crash, a full disk or a power cut leaves the old file as it was. Several processes may write
    the same file: the last one to finish wins.

    Parameters
    ----------
    path : Path
        File to write; its folder is made if need be.

    Yields
    ------
    file
        Where to write the bytes. After an exception nothing is replaced.
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
        # The new name is on the disk only when its folder is.
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
