"""Keeping a folder to one run at a time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from diffstride_experiments.errors import ExperimentError

__all__ = ["check_folder", "locked"]

NAME = ".lock"


@contextmanager
def locked(folder: Path, option: str) -> Iterator[None]:
    """Keep others from running in a folder.

    The operating system holds the lock, so that a process that was killed leaves none. A folder
    that was made here and is empty at the end is removed.

    Parameters
    ----------
    folder : Path
        Folder to run in; it is made if need be.
    option : str
        Name of the option that the folder is from.

    Raises
    ------
    ExperimentError
        If another process runs in the folder, or it cannot be made or written.
    """
    check_folder(folder, option)
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    lock = FileLock(folder / NAME, timeout=0)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise ExperimentError(
            f"{option}: {folder} is in use by another run; wait until it ends or choose another "
            "folder."
        ) from error
    except OSError as error:
        _remove_empty(missing)
        raise ExperimentError(f"{option}: {folder} cannot be written: {error.strerror}.") from error
    try:
        yield
    finally:
        # While the lock is held: whoever opened the file before finds that it has gone.
        with suppress(OSError):
            (folder / NAME).unlink()
        lock.release()
        _remove_empty(missing)


def check_folder(folder: Path, option: str) -> None:
    """Check that a folder is there, or could be made.

    Parameters
    ----------
    folder : Path
        Folder to write in.
    option : str
        Name of the option that it is from.

    Raises
    ------
    ExperimentError
        If it or what it is to be made in is no folder, or may not be written.
    """
    try:
        # Of a link to nothing, the link itself.
        nearest = next(path for path in (folder, *folder.absolute().parents) if _is_there(path))
        if not nearest.is_dir():
            raise ExperimentError(f"{option}: {folder} must be a folder, but {nearest} is not one.")
    except OSError as error:
        raise ExperimentError(f"{option}: {folder} cannot be used: {error.strerror}.") from error
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ExperimentError(f"{option}: {folder} cannot be written: no permission for {nearest}.")


def _is_there(path: Path) -> bool:
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _remove_empty(folders: list[Path]) -> None:
    """Remove folders, innermost first, up to one that holds something."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
