"""Comparing the final states of trainings."""

from typing import Any

import torch
from diffstride_experiments.config import Config


def last_state(config: Config, method: str) -> dict[str, Any]:
    """Return the last checkpoint of a method, without the time that training took."""
    path = max((config.run_dir / "checkpoints" / method).glob("*.pt"))
    state = torch.load(path, weights_only=True)["state"]
    del state["seconds"]
    return state


def assert_same(found: Any, expected: Any) -> None:
    """Compare states bit for bit."""
    assert type(found) is type(expected)
    if isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected)
    else:
        assert found == expected


def assert_runs_ended_alike(found: Config, expected: Config) -> None:
    """Compare metrics and last checkpoints of two runs."""
    metrics = [(config.run_dir / "metrics.jsonl").read_bytes() for config in (found, expected)]
    assert metrics[0] == metrics[1]
    for method in expected.methods:
        assert_same(last_state(found, method), last_state(expected, method))
