import os
import socket
import sys

import pytest
from diffstride_experiments.data import walk
from diffstride_experiments.data.walk import Unreadable, find_files
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.text import printable


@pytest.fixture
def root(tmp_path):
    """Folder with a/1.x, a/2.x and b/1.x."""
    top = tmp_path / "top"
    for name in ("a/1.x", "a/2.x", "b/1.x"):
        touch(top / name)
    return top


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def find(*roots):
    return find_files(roots, {".x"}, "x file")


def names(found, root):
    return [str(path).removeprefix(f"{root}/") for path in found.files[0]]


@pytest.mark.parametrize(
    ("link", "target"),
    [
        ("a/up", "top"),
        ("a/up", "top/a"),
        ("a/up", ""),  # above all folders
        ("latest", "top/b"),
        ("0", "top/a"),  # sorted before its target
        ("a/0.x", "top/b/1.x"),
    ],
)
def test_links_to_what_is_there_do_not_multiply_files(root, tmp_path, link, target):
    (root / link).symlink_to(tmp_path / target)
    found = find(root)
    assert names(found, root) == ["a/1.x", "a/2.x", "b/1.x"]
    assert found.folders == [["a", "b"]]
    (line,) = found.left_out
    assert line.startswith(f"{root / link}: ")
    assert str(tmp_path / target) in line


def test_links_to_files_and_folders_elsewhere_are_followed_once(root, tmp_path):
    touch(tmp_path / "store/c/3.x")
    (tmp_path / "store/c/back").symlink_to(tmp_path / "store")
    (root / "c").symlink_to(tmp_path / "store/c")
    (root / "d").symlink_to(tmp_path / "store")
    (root / "a/4.x").symlink_to(touch(tmp_path / "4"))
    found = find(root)
    assert names(found, root) == ["a/1.x", "a/2.x", "a/4.x", "b/1.x", "c/3.x"]
    assert found.folders == [["a", "b", "c", "d"]]
    assert found.left_out == [
        f"{root}/c/back: a link to a folder above it, {tmp_path}/store",
        f"{root}/d/c: the same folder as {root}/c",
    ]


def test_hidden_files_and_folders_are_counted_but_may_be_linked_to(root, tmp_path):
    touch(root / ".git/objects/1.x")
    touch(root / "a/.1.x")
    (root / "a/3.x").symlink_to(root / ".git/objects/1.x")
    found = find(root)
    assert names(found, root) == ["a/1.x", "a/2.x", "a/3.x", "b/1.x"]
    assert (found.hidden, found.left_out) == (2, [])
    assert found.remarks() == [
        "Hidden files and folders, their names begin with a dot, skipped: 2."
    ]


def test_all_other_files_are_named_and_what_has_the_suffix_is_taken(root, monkeypatch):
    for name in ("Thumbs.db", "b/notes", "a/3.X"):
        touch(root / name)
    (root / "a/lost.x").symlink_to(root / "nowhere")
    (root / "a/loop.x").symlink_to(root / "a/loop.x")
    (root / "lost").symlink_to(root / "nowhere")
    os.mkfifo(root / "pipe")
    monkeypatch.chdir(root)  # names of sockets must be short
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    found = find(root)
    assert names(found, root) == ["a/1.x", "a/2.x", "a/3.X", "a/loop.x", "a/lost.x", "b/1.x"]
    assert found.left_out == [
        f"{root / name}: no x file by its name"
        for name in ("Thumbs.db", "b/notes", "lost", "pipe", "socket")
    ]


def test_folder_that_may_not_be_read_is_named(root, monkeypatch):
    scandir = os.scandir

    def refusing(folder):
        if str(folder).endswith("/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(folder)

    monkeypatch.setattr(walk.os, "scandir", refusing)
    found = find(root)
    assert names(found, root) == ["a/1.x", "a/2.x"]
    assert list(map(str, found.closed)) == [f"{root}/b: Permission denied"]
    assert found.folders == [["a", "b"]]


def test_several_folders_share_no_file(root, tmp_path):
    other = tmp_path / "other"
    touch(other / "a/5.x")
    (other / "a/6.x").symlink_to(root / "a/1.x")
    (root / "a/0.x").symlink_to(other / "a/5.x")
    found = find(root, other)
    assert [len(part) for part in found.files] == [3, 1]
    assert len(found.left_out) == 2
    (tmp_path / "third").symlink_to(root)
    with pytest.raises(ExperimentError, match=f"third is the same folder as {root}"):
        find(root, tmp_path / "third")


def test_names_that_are_not_utf8_are_found_and_printable(root):
    touch(root / os.fsdecode(b"a/caf\xe9.x"))
    touch(root / os.fsdecode(b"a/caf\xe9"))
    found = find(root)
    assert len(found.files[0]) == 4
    assert found.left_out == [rf"{root}/a/caf\udce9: no x file by its name"]
    assert printable("é→") == "é→"


@pytest.mark.skipif(sys.platform == "win32", reason="names have no such characters")
def test_names_with_newlines_are_told_in_one_line(root):
    touch(root / "a\n\x1b[31m.txt")
    assert find(root).left_out == [f"{root}/a\\n\\x1b[31m.txt: no x file by its name"]
    assert str(Unreadable("a\nb", "bad\u2028data")) == r"a\nb: bad\u2028data"
