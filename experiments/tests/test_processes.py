"""Training in several processes."""

import json
import subprocess
import sys

import pytest

OPTIONS = [
    "--methods", "diffstride", "--data.train-count", "160", "--data.evaluation-count",
    "41", "--model.channels", "4", "4", "4", "4", "--training.batch-size", "40",
    "--training.epochs", "2", "--threads", "1", "--device", "cpu",
]  # fmt: skip
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def train(folder, *launcher):
    command = [*(launcher or [sys.executable]), "-m", "diffstride_experiments.train"]
    command += ["--run-dir", str(folder), *OPTIONS]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    alone = train(tmp_path / "alone")
    both = train(tmp_path / "both", *TORCHRUN)
    again = train(tmp_path / "again", *TORCHRUN)
    assert again == both
    for found, expected in zip(both, alone, strict=True):
        # Each process has the batch statistics of its own half.
        assert found["train_loss"] == pytest.approx(expected["train_loss"], rel=0.1)
        for one, other in zip(found["strides"], expected["strides"], strict=True):
            assert one == pytest.approx(other, abs=0.2)
    # All 41 samples were counted once, by two processes.
    assert both[-1]["accuracy"] * 41 == pytest.approx(round(both[-1]["accuracy"] * 41))
