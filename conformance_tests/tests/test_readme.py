"""The README's code runs and its numbers are true."""

import re
from pathlib import Path

import numpy as np
import pytest
from diffstride_numpy import output_sizes, spectral_pool

ROOT = Path(__file__).parents[2]
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


def test_examples_of_the_page_on_jax_run_in_their_order():
    page = (ROOT / "docs/jax.md").read_text()
    blocks = re.findall(r"```python\n(.*?)```", page, re.S)
    assert len(blocks) == 3
    exec(compile("\n".join(blocks), "docs/jax.md", "exec"), {})


def test_table_of_sizes():
    assert len(ROWS) == 8
    for size, stride, *expected in ROWS:
        shape, stride = (int(size), int(size)), float(stride)
        found = [
            output_sizes(shape, stride)[0],
            output_sizes(shape, stride, convention="relative")[0],
            spectral_pool(np.zeros(shape), stride).shape[0],
        ]
        assert found == list(map(int, expected))


def test_sizes_of_three_layers():
    for convention, expected in (("paper", (24, 20, 18)), ("relative", (20, 14, 10))):
        size, sizes = 32, []
        for _ in range(3):
            (size, _) = output_sizes((size, size), 2.0, convention=convention)
            sizes.append(size)
        assert tuple(sizes) == expected
        assert ", ".join(map(str, expected)) in README
