from dataclasses import replace

import pytest
from diffstride_experiments import data
from diffstride_experiments.config import Config

TINY = Config(channels=(4, 4, 4, 4), epochs=2, images=200, batch_size=40, penalty=1.0, threads=1)


@pytest.fixture(scope="session")
def digits():
    """All digits: parsing them takes longer than a tiny run."""
    return data.mnist_data()


@pytest.fixture
def tiny_config(tmp_path, digits, monkeypatch):
    """A run of a few seconds that still goes through everything."""
    monkeypatch.setattr(data, "mnist_data", lambda: digits)
    return replace(TINY, run_dir=tmp_path / "run")
