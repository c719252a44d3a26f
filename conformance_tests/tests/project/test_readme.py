"""The code of README and pages runs, prints what they show, and their numbers are true."""

import json
import re
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from diffstride_numpy import output_sizes, spectral_pool
from support.documents import blocks_of, check_blocks

ROOT = Path(__file__).parents[3]
README = ROOT / "README.md"
SIZES = (ROOT / "docs/sizes.md").read_text()
ROWS = re.findall(r"^\| (\d+) \| ([\d.]+) \| (\d+) \| (\d+) \| (\d+) \|$", SIZES, re.M)

PAGES = {
    page.relative_to(ROOT).as_posix(): blocks
    for page in [README, *sorted((ROOT / "docs").rglob("*.md"))]
    if (blocks := blocks_of(page))
}
del PAGES["docs/cupy.md"]  # needs a GPU; test_cupy.py runs it
del PAGES["docs/keras.md"]  # needs a process for each of Keras's backends; test_backends.py runs it
# The first compiles a training step for each size, the second trains a network.
TAKES_LONG = {"docs/start/jax.md", "docs/torch/fine_tuning.md"}


# The exporter's and Lightning's own.
@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize(
    "page",
    [pytest.param(page, marks=[pytest.mark.slow] if page in TAKES_LONG else []) for page in PAGES],
)
def test_examples_of_a_page_print_what_it_shows(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    check_blocks(ROOT / page, PAGES[page])


def test_pages_with_examples_are_found():
    found = {"README.md", "docs/index.md", "docs/jax.md", "docs/torch/training.md"}
    assert found <= set(PAGES)


def test_an_output_that_is_old_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python\nx = 1\nprint(x)\n```\n\n```text\n2\n```\n")
    with pytest.raises(AssertionError, match="line 2: the block prints\n1\n"):
        check_blocks(page, blocks_of(page))


def test_readme_links_every_page():
    pages = [page.relative_to(ROOT).as_posix() for page in (ROOT / "docs").rglob("*.md")]
    assert len(pages) > 30
    assert [page for page in pages if f"]({page})" not in README.read_text()] == []


def anchors_of(page):
    """Return the anchors that a code host gives a page's headings."""
    prose = re.sub(r"```.*?```", "", page.read_text(), flags=re.S)
    headings = re.findall(r"^#+ (.*)$", prose, re.M)
    texts = (re.sub(r"\[(.*?)\]\(.*?\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", text).replace(" ", "-") for text in texts}


@pytest.mark.parametrize("page", [README, *sorted((ROOT / "docs").rglob("*.md"))], ids=str)
def test_anchors_are_headings(page):
    # The site's build checks them too, and takes labels that a code host does not know.
    missing = []
    for path, anchor in re.findall(r"\]\(([\w./-]*)#([^)]+)\)", page.read_text()):
        target = page.parent / path if path else page
        is_term = target.name == "glossary.md" and anchor.startswith("term-")  # the site's alone
        if not is_term and anchor not in anchors_of(target):
            missing.append(f"{path}#{anchor}")
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
        assert ", ".join(map(str, expected)) in SIZES


def compared_networks():
    """Return the table of the README, from the study's outcomes."""
    file = ROOT / "experiments/results/robustness-images/outcomes.jsonl"
    cells = defaultdict(list)
    for line in file.read_text().splitlines():
        outcome = json.loads(line)
        cells[tuple(outcome["labels"])].append(outcome)

    def cell(outcomes):
        accuracy, cost = (
            np.mean([outcome[name] for outcome in outcomes])
            for name in ("accuracy", "multiply_adds")
        )
        return f"{100 * accuracy:.1f} at {cost / 1e6:.1f}"

    starts, networks = (list(dict.fromkeys(names)) for names in zip(*cells, strict=True))
    lines = [["initial strides", *networks], ["---"] + ["---:"] * len(networks)]
    lines += [[start, *(cell(cells[start, network]) for network in networks)] for start in starts]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def test_compared_networks():
    assert compared_networks() in README.read_text()
