"""``python -m diffstride_core``."""

import subprocess
import sys

import pytest

from diffstride_core import __main__ as self_check
from diffstride_core import __version__, window


def test_it_prints_what_there_is_and_passes():
    command = [sys.executable, "-m", "diffstride_core"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert lines[0] == f"diffstride {__version__}"
    names = [line.split()[0] for line in lines[2:]]
    assert names[:4] == ["numpy", "torch", "jax", "cupy"]
    assert lines[-1].startswith("self-check        passed")


def test_it_imports_no_framework():
    code = (
        "import sys; sys.argv = ['x']; from diffstride_core.__main__ import main; main();"
        "sys.exit(bool({'torch', 'jax', 'cupy'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_wrong_mask_fails_it(monkeypatch, capsys):
    original = window.clamp
    monkeypatch.setattr(window, "clamp", lambda *a, **k: original(*a, **k) * 1.001)
    monkeypatch.setattr(sys, "argv", ["diffstride_core"])
    if self_check.main() == 0:
        pytest.fail(capsys.readouterr().out)
    assert "FAILED" in capsys.readouterr().out
