import runpy
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


@pytest.mark.slow
def test_digits_nnx(capsys):
    main = runpy.run_path(str(EXAMPLES / "digits_nnx.py"))["main"]
    (first, second) = main(epochs=2, stride=3.0, penalty=0.1, seed=0)
    assert second > first > 0.2
    last = capsys.readouterr().out.splitlines()[-1]
    assert "strides" in last
    assert "3.00 x 3.00" not in last
    assert int(last.split()[-2]) < 10  # compilations in 124 steps
