"""Runs the checks of the Keras layer, in a process for each backend: Keras has one in a process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CHECKS = sorted(Path(__file__).parent.glob("checks_*.py"))


def run(command, backend, folder):
    """Run Python in a process of its own and a folder, in which Keras's settings are too."""
    environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(folder)}
    command = [sys.executable, *command]
    return subprocess.run(
        command, env=environment, cwd=folder, capture_output=True, text=True, timeout=1800
    )


# Beside those marked slow: what takes longest, and is nearly the same with the other backend.
TAKES_LONG = {("jax", "checks_training"), ("jax", "checks_kit"), ("torch", "checks_training")}


def amounts():
    """Yield what is run, of each backend and file the quick checks and the slow ones."""
    for backend in ("jax", "torch"):
        for checks in CHECKS:
            for marked in ("not slow", "slow"):
                takes_long = marked == "slow" or (backend, checks.stem) in TAKES_LONG
                marks = [pytest.mark.slow] if takes_long else []
                name = f"{backend}-{checks.stem}-{marked}"
                yield pytest.param(backend, checks, marked, marks=marks, id=name)


@pytest.mark.parametrize(("backend", "checks", "marked"), [*amounts()])
def test_checks_pass(backend, checks, marked, tmp_path):
    if marked == "slow" and "mark.slow" not in checks.read_text():
        pytest.skip("has no slow ones")
    command = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "-n", "0", "-m", marked]
    # Keras's own, of NumPy 2.
    command += ["-W", "ignore:__array__ implementation:DeprecationWarning", str(checks)]
    done = run(command, backend, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("backend", [pytest.param("jax", marks=pytest.mark.slow), "torch"])
def test_example_of_the_page(backend, tmp_path):
    page = (ROOT / "docs/keras.md").read_text()
    blocks = [block.partition("```")[0] for block in page.split("```python\n")[1:]]
    assert blocks
    # The page sets the backend itself.
    code = "\n".join(blocks).replace('"jax"  # or "torch"', f'"{backend}"')
    script = tmp_path / "page.py"
    script.write_text(code)
    done = run(["-W", "error::UserWarning", str(script)], backend, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("backend", ["numpy", "tensorflow"])
def test_other_backends_are_refused_by_name(backend, tmp_path):
    done = run(["-c", "import diffstride_keras"], backend, tmp_path)
    message = f"needs one of Keras's backends 'jax' and 'torch', got '{backend}'"
    assert message in done.stderr.splitlines()[-1]
    assert "ImportError" in done.stderr.splitlines()[-1]
    assert "KERAS_BACKEND" in done.stderr.splitlines()[-1]
