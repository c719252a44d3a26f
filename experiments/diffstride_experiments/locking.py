"""Locks that keep a folder to one run at a time."""

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
    """Keep other runs out of a folder.

    The operating system holds the lock, so a killed process leaves none behind. A folder that was
    created here and is empty at the end is removed.

    Parameters
    ----------
    folder : Path
        Folder to run in. It is created if necessary.
    option : str
        Name of the option that gives the folder.

    Raises
    ------
    ExperimentError
        If another process uses the folder, or if it cannot be created or written.
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
        # Remove the file while the lock is held: another process that has it open finds it gone.
        with suppress(OSError):
            (folder / NAME).unlink()
        lock.release()
        _remove_empty(missing)


def check_folder(folder: Path, option: str) -> None:
    """Check that a folder exists or can be created.

    Parameters
    ----------
    folder : Path
        Folder to write in.
    option : str
        Name of the option that gives the folder.

    Raises
    ------
    ExperimentError
        If the path, or its nearest existing parent, is not a folder or cannot be written.
    """
    try:
        # A broken link counts as existing.
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
    """Remove folders, innermost first, until one of them is not empty."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()
