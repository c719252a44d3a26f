"""Kill a training again and again. When resumed, it must end as if nothing had happened.

    python experiments/checks/kill_and_resume.py --kills 20

The script trains on digits twice: once undisturbed, and once killed (SIGKILL) at random moments and
restarted. A checkpoint is written after every step, so many kills happen while one is being
written. In the end, the metrics must be equal byte for byte, and weights and optimiser bit for bit.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from diffstride_experiments.entry import importing

with importing():
    import torch
    from diffstride_experiments.command_line import run_script
    from diffstride_experiments.options import Options
    from pydantic import PositiveInt

METHODS = ("conv", "diffstride")
OPTIONS = [
    "--methods", *METHODS, "--data.train-count", "400", "--data.evaluation-count", "100",
    "--model.channels", "4", "8", "8", "8", "--training.batch-size", "20",
    "--training.checkpoint-seconds", "0", "--optimizer.stride-learning-rate", "1.0",
    "--threads", "1", "--device", "cpu",
]  # fmt: skip


def start(folder: Path, epochs: int) -> subprocess.Popen[bytes]:
    """Start or continue the training."""
    command = [sys.executable, "-m", "diffstride_experiments.train", "--run-dir", str(folder)]
    command += [*OPTIONS, "--training.epochs", str(epochs)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(process: subprocess.Popen[bytes]) -> None:
    """Wait for the end of the training; raise if it failed."""
    output, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"exit {process.returncode}:\n{output.decode(errors='replace')}")


def newest_checkpoint(folder: Path) -> Path | None:
    """Return the checkpoint that was written last, by any method."""
    paths = folder.glob("checkpoints/*/*.pt")
    return max(paths, key=lambda path: (METHODS.index(path.parent.name), path.name), default=None)


def kill_at_random(folder: Path, epochs: int, random_: random.Random) -> bool:
    """Start the training and kill it after its next checkpoint; return False if it had ended."""
    before = newest_checkpoint(folder)
    process = start(folder, epochs)
    while process.poll() is None and newest_checkpoint(folder) == before:
        time.sleep(0.001)
    time.sleep(random_.uniform(0, 0.3))
    if process.poll() is not None:
        finish(process)
        return False
    process.kill()
    process.communicate()
    return True


def same(a: object, b: object) -> bool:
    """Compare states bit for bit, except for the times that training took."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(key == "seconds" or same(a[key], b[key]) for key in a)
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def main(kills: int, epochs: int, seed: int) -> None:
    """Run the check; raise AssertionError if the runs differ."""
    random_ = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        whole, parts = Path(name, "whole"), Path(name, "parts")
        finish(start(whole, epochs))
        for kill in range(1, kills + 1):
            if not kill_at_random(parts, epochs, random_):
                raise AssertionError(f"the run ended before kill {kill}: give more --epochs")
            left = sorted(path.name for path in parts.rglob("*.tmp"))
            print(f"kill {kill} after {newest_checkpoint(parts)}; half-written: {left}", flush=True)
        finish(start(parts, epochs))
        metrics = [(folder / "metrics.jsonl").read_bytes() for folder in (whole, parts)]
        assert metrics[0] == metrics[1], "the metrics differ"
        for method in METHODS:
            states = [
                torch.load(max((folder / "checkpoints" / method).glob("*.pt")), weights_only=True)
                for folder in (whole, parts)
            ]
            assert same(*states), f"{method}: the last checkpoints differ"
    print(f"After {kills} kills the run ended bit for bit as the undisturbed one.")


if __name__ == "__main__":

    class Arguments(Options):
        """Kill a training again and again. When resumed, it must end as if nothing had happened."""

        kills: PositiveInt = 20
        """Number of kills."""

        epochs: PositiveInt = 10
        """Length of the training."""

        seed: int = 0
        """Seed of the moments of the kills."""

    run_script(Arguments, main)
