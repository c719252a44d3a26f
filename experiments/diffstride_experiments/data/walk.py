"""Finding the wanted files below folders, each one once, and accounting for all other files."""

import os
import stat
from collections import deque
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.text import one_line

__all__ = ["Found", "Unreadable", "find_files"]

# Number of files that an error lists.
SHOWN = 5


class Unreadable(NamedTuple):
    """A file or folder that cannot be read, and why."""

    path: str
    reason: str

    def __str__(self) -> str:
        """Return path and reason as one line that can be printed."""
        return one_line(f"{self.path}: {self.reason}")


@dataclass
class Found:
    """Files and folders below some folders.

    Attributes
    ----------
    files : list of list of str
        Wanted files below each folder, sorted.
    folders : list of list of str
        Names of the folders directly in each folder, sorted.
    left_out : list of str
        Everything else that is not hidden, as ``"PATH: why"``.
    closed : list of Unreadable
        Folders that cannot be read.
    hidden : int
        Files and folders that were skipped because their names begin with a dot.
    """

    files: list[list[str]]
    folders: list[list[str]]
    left_out: list[str] = field(default_factory=list)
    closed: list[Unreadable] = field(default_factory=list)
    hidden: int = 0

    def leave_out(self, path: str, reason: str) -> None:
        """Note a file or folder that is not used."""
        self.left_out.append(one_line(f"{path}: {reason}"))

    def hint(self) -> str:
        """Return the end of an error about missing files, which says what was found instead."""
        if not self.left_out:
            return ""
        more = len(self.left_out) - SHOWN
        lines = [*self.left_out[:SHOWN], *([f"and {more} more"] if more > 0 else [])]
        return "\n  ".join([f" Left out below the folder: {len(self.left_out)}", *lines])

    def remarks(self) -> list[str]:
        """Return sentences about files and folders that were skipped without being listed."""
        if not self.hidden:
            return []
        return [f"Hidden files and folders, their names begin with a dot, skipped: {self.hidden}."]


def find_files(roots: Sequence[Path], suffixes: Collection[str], wanted: str) -> Found:
    """Find files by their suffixes.

    A file or folder is identified by its resolved path and taken once, if possible at a path
    without links. Links to files and folders elsewhere are followed.

    Parameters
    ----------
    roots : sequence of Path
        Folders. They must not contain each other.
    suffixes : collection of str
        Suffixes of wanted files in lower case. The case of file names is ignored.
    wanted : str
        Description of a wanted file, for the reasons why other files are left out.

    Returns
    -------
    Found
        Files and folders. The result does not depend on the order in which the system lists them.

    Raises
    ------
    ExperimentError
        If two of the folders are the same.
    """
    walk = _Walk(roots, suffixes, wanted)
    for number, root in enumerate(roots):
        walk.enter(number, str(root), os.path.realpath(root))
    walk.follow_links()
    for files, folders in zip(walk.found.files, walk.found.folders, strict=True):
        files.sort()
        folders.sort()
    walk.found.left_out.sort()
    walk.found.closed.sort()
    return walk.found


class _Walk:
    def __init__(self, roots: Sequence[Path], suffixes: Collection[str], wanted: str) -> None:
        self.found = Found([[] for _ in roots], [[] for _ in roots])
        self._roots = [str(root) for root in roots]
        self._suffixes = suffixes
        self._reason = f"no {wanted} by its name"
        # Where each file and folder was found, by its resolved path.
        self._known: dict[str, str] = {}
        self._links: deque[tuple[int, str]] = deque()

    def enter(self, number: int, folder: str, resolved: str) -> None:
        """Take the files in a folder and below, but keep links for later."""
        waiting = [(folder, resolved)]
        links: list[tuple[int, str]] = []
        while waiting:
            folder, resolved = waiting.pop()
            if resolved in self._known:
                self._refuse_same(folder, resolved)
                continue
            self._known[resolved] = folder
            if Path(folder).parent == Path(self._roots[number]):
                self.found.folders[number].append(Path(folder).name)
            try:
                with os.scandir(folder) as listing:
                    entries = sorted(listing, key=attrgetter("name"))
            except OSError as error:
                self.found.closed.append(Unreadable(folder, error.strerror or str(error)))
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    self.found.hidden += 1
                elif entry.is_symlink():
                    links.append((number, entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    waiting.append((entry.path, f"{resolved.rstrip(os.sep)}{os.sep}{entry.name}"))
                else:
                    self._take(number, entry.path, f"{resolved}{os.sep}{entry.name}")
        self._links.extend(sorted(links))

    def follow_links(self) -> None:
        """Take the targets of links that have not been taken already."""
        while self._links:
            number, path = self._links.popleft()
            target = os.path.realpath(path)
            if not _is_folder(path):
                self._take(number, path, target)
            elif self._is_above(path, target):
                self.found.leave_out(path, f"a link to a folder above it, {target}")
            else:
                self.enter(number, path, target)

    def _take(self, number: int, path: str, resolved: str) -> None:
        if Path(path).suffix.lower() not in self._suffixes:
            self.found.leave_out(path, self._reason)
        elif resolved in self._known:
            self.found.leave_out(path, f"the same file as {self._known[resolved]}")
        else:
            self._known[resolved] = path
            self.found.files[number].append(path)

    def _refuse_same(self, folder: str, resolved: str) -> None:
        same = f"the same folder as {self._known[resolved]}"
        if folder in self._roots:
            raise ExperimentError(f"data.path: {folder} is {same}.")
        self.found.leave_out(folder, same)

    def _is_above(self, link: str, target: str) -> bool:
        below = [os.path.realpath(Path(link).parent), *map(os.path.realpath, self._roots)]
        return any(Path(path).is_relative_to(target) for path in below)


def _is_folder(path: str) -> bool:
    try:
        return stat.S_ISDIR(Path(path).stat().st_mode)
    except OSError:  # a broken, circular or forbidden link: reading it says so
        return False
