"""Functions and cases for the tests of the PyTorch functions."""

import pytest

ENGINES = ("matmul", "fft")

each_engine = pytest.mark.parametrize("method", ENGINES)
