"""The benchmark for GPUs is rehearsed on the CPU: nobody has time for its mistakes on a GPU."""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

GPU = Path(__file__).parents[3] / "benchmarks/gpu.py"


def rehearse(*sections):
    command = [sys.executable, str(GPU), "--cpu", "--sections", *sections]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def rows_of(section):
    command = [sys.executable, str(GPU), "--cpu", "--section", section]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])["rows"]


@pytest.mark.skipif(find_spec("cupy") is not None, reason="CuPy is installed: no section fails")
def test_a_section_that_fails_leaves_the_others():
    before = set(GPU.parent.glob("results/*"))
    done = rehearse("kit-cupy", "layers")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("kit-cupy: RuntimeError: ")
    assert "2x4x16x16" in done.stdout
    assert set(GPU.parent.glob("results/*")) == before


@pytest.mark.slow
@pytest.mark.parametrize("section", ["kit-torch", "kit-torch-tf32", "kit-jax"])
def test_the_kit_is_rehearsed(section):
    for row in rows_of(section):
        assert row["cases"] >= 3
        assert row["failures"] == []
        assert row["worst error, tolerances"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("section", ["jax", "steps", "synchronisation"])
def test_the_measurements_are_rehearsed(section):
    assert rows_of(section)
