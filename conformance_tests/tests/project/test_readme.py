"""The README's code runs and its numbers are true."""

import re
from pathlib import Path

import numpy as np
import pytest
from diffstride_numpy import output_sizes, spectral_pool

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.S)
ROWS = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \|$", README, re.M)


def test_readme_has_an_example_for_each_framework():
    assert [re.search(r"diffstride_(\w+)", block).group(1) for block in BLOCKS] == [
        "torch",
        "jax",
        "numpy",
    ]


@pytest.mark.parametrize("block", BLOCKS, ids=["torch", "jax", "numpy"])
def test_example_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


PAGES = {
    page.relative_to(ROOT / "docs").as_posix(): blocks
    for page in sorted((ROOT / "docs").rglob("*.md"))
    if (blocks := re.findall(r"```python\n(.*?)```", page.read_text(), re.S))
}
del PAGES["cupy.md"]  # needs a GPU; test_cupy.py runs it
del PAGES["keras.md"]  # needs a process for each of Keras's backends; test_backends.py runs it


# The exporter's own.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("page", PAGES)
def test_examples_of_a_page_run_in_their_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    exec(compile("\n".join(PAGES[page]), page, "exec"), {})


def test_pages_with_examples_are_found():
    assert {"index.md", "jax.md", "mathematics.md", "torch/training.md"} <= set(PAGES)


def test_readme_links_every_page():
    folders = {"docs": ROOT / "docs", "docs/torch": ROOT / "docs/torch"}
    missing = [
        f"{folder}/{page.name}"
        for folder, path in folders.items()
        for page in path.glob("*.md")
        if f"]({folder}/{page.name})" not in README
    ]
    assert missing == []


def test_table_of_sizes():
    assert len(ROWS) == 8
    for size, stride, *expected in ROWS:
        shape, stride = (int(size), int(size)), float(stride)
        found = [
            output_sizes(shape, stride)[0],
            output_sizes(shape, stride, convention="paper")[0],
            spectral_pool(np.zeros(shape), stride).shape[0],
        ]
        assert found == list(map(int, expected))


def test_sizes_of_three_layers():
    for convention, expected in (("nominal", (16, 8, 4)), ("paper", (24, 20, 18))):
        size, sizes = 32, []
        for _ in range(3):
            (size, _) = output_sizes((size, size), 2.0, convention=convention)
            sizes.append(size)
        assert tuple(sizes) == expected
        assert ", ".join(map(str, expected)) in README
