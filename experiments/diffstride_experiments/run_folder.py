"""The folder that keeps a run: what is in it, and whether a run may go on in it."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from diffstride_experiments.atomic import replacing
from diffstride_experiments.config import Config
from diffstride_experiments.errors import ExperimentError

__all__ = ["RunFolder"]


class RunFolder:
    """Files of one run.

    Parameters
    ----------
    config : Config
        Options of the run. They are written to the folder, or compared with those already there.

    Raises
    ------
    ExperimentError
        If the folder holds a run with other options, or its configuration cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self.path = config.run_dir
        self._claim(config.resolved())

    def _claim(self, options: dict[str, Any]) -> None:
        path = self.path / "config.json"
        if not path.exists():
            self.write_text("config.json", json.dumps(options, indent=2) + "\n")
            return
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ExperimentError(
                f"{path} is damaged: {error}. Choose another --run-dir."
            ) from error
        changed = [
            f"  {name}: {earlier.get(name)} there, {options.get(name)} now"
            for name in sorted(earlier.keys() | options.keys())
            if earlier.get(name) != options.get(name)
        ]
        if changed:
            raise ExperimentError(
                f"{self.path} holds a run with other options:\n"
                + "\n".join(changed)
                + "\nGive the same options to go on with it, or choose another --run-dir."
            )

    def checkpoint(self, method: str) -> Path:
        """Return where a method's checkpoint is kept."""
        return self.path / "checkpoints" / f"{method}.pt"

    def write_text(self, name: str, text: str) -> Path:
        """Write a file atomically and return its path."""
        path = self.path / name
        with replacing(path) as file:
            file.write(text.encode())
        return path

    def write_metrics(self, metrics: Iterable[dict[str, Any]]) -> None:
        """Write all epochs' metrics as JSON lines.

        The whole file is written each time. Lines that were appended could be lost or doubled when
        a run is stopped between its checkpoint and its metrics.
        """
        self.write_text("metrics.jsonl", "".join(json.dumps(line) + "\n" for line in metrics))
