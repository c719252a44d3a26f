"""Reading many files, some of which may be unreadable."""

import stat
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import parent_process
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from diffstride_experiments.data.source import Source
from diffstride_experiments.data.walk import Found, Unreadable
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.text import AnyPath

__all__ = ["READING", "FileSource", "Unreadable", "check_classes", "read_files"]

# Number of unreadable files that an error lists.
SHOWN = 10

# Version of the way files are read. Increase it with every change, so that caches and checkpoints
# from before the change are not used.
READING = 3


class FileSource(Source):
    """Options of data that is read from single files."""

    reading: ClassVar[int] = READING

    path: AnyPath
    """Folder of the files."""

    unreadable: Literal["fatal", "skip"] = "fatal"
    """What to do with unreadable files. fatal: end the run before it starts. skip: leave them out.
    Every file is read once to find them."""

    cache: AnyPath = Path("runs/cache")
    """Cache folder for values that are computed from the files, valid until the files change."""

    def _leave_out(
        self, unreadable: dict[int, Unreadable], count: int, found: Found
    ) -> tuple[np.ndarray, tuple[str, ...]]:
        """Return the indices of the readable of `count` files, and a line for each unreadable one.

        Unreadable files end the run unless they are to be skipped.
        """
        lines = tuple(map(str, [*found.closed, *unreadable.values()]))
        if lines and self.unreadable == "fatal":
            rest = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
            what = f"{len(lines)} of {count} files" if unreadable else f"{len(lines)} folders"
            problem = (
                f"data.path: {what} cannot be read. Repair or remove them, or "
                "leave them out with --data.unreadable skip:"
            )
            raise ExperimentError("\n  ".join([problem, *lines[:SHOWN], *rest]))
        return np.setdiff1d(np.arange(count), list(unreadable)), lines


def check_classes(labels: np.ndarray, classes: Sequence[str], where: str, found: Found) -> None:
    """Raise an ExperimentError with class and place if a class has no readable file."""
    counts = np.bincount(labels, minlength=len(classes))
    if not counts.all():
        raise ExperimentError(
            f"data.path: class {classes[counts.argmin()]} has no readable file in {where}."
            f"{found.hint()}"
        )


class _Files:
    def __init__(self, read: Callable[[str], Any], paths: Sequence[str]) -> None:
        self._read = read
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> Any:
        path = self._paths[index]
        try:
            # Opening a pipe would wait for someone to write to it.
            if not stat.S_ISREG(Path(path).stat().st_mode):
                return Unreadable(path, "not a regular file")
            return self._read(path)
        except OSError as error:
            return Unreadable(path, error.strerror or str(error))
        # Decoders raise all kinds of errors for damaged files, for PNG even a SyntaxError.
        except Exception as error:
            return Unreadable(path, str(error) or type(error).__name__)


def read_files(
    read: Callable[[str], Any], paths: Sequence[str], workers: int, description: str
) -> Iterator[Any]:
    """Read files in order, with a progress bar.

    Parameters
    ----------
    read : callable
        Function that returns the content of a file, as any type except tensors. If it raises an
        error, the file counts as unreadable.
    paths : sequence of str
        Files.
    workers : int
        Processes that read the files. 0: this process reads them.
    description : str
        Text of the progress bar.

    Yields
    ------
    object or Unreadable
        What `read` returned for each file, or why it failed.
    """
    from torch.utils.data import DataLoader
    from tqdm import tqdm

    if not paths:
        return
    batches = DataLoader(_Files(read, paths), batch_size=16, collate_fn=list, num_workers=workers)
    with tqdm(
        total=len(paths),
        desc=description,
        dynamic_ncols=True,
        mininterval=0.5,
        disable=parent_process() is not None,  # the terminal is the parent's
    ) as progress:
        for batch in batches:
            yield from batch
            progress.update(len(batch))
