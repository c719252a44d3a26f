"""The folder that keeps a run: what is in it, and whether a run may go on in it."""

from diffstride_experiments.atomic import replacing
from diffstride_experiments.checkpoint import Checkpoints
from diffstride_experiments.config import Config, differences, fingerprint, read_recipe
from diffstride_experiments.errors import ExperimentError
from diffstride_experiments.methods import Method
from diffstride_experiments.processes import Processes

__all__ = ["RunFolder"]


class RunFolder:
    """Files of one run.

    Parameters
    ----------
    config : Config
        Options of the run. They are written to the folder as a recipe, or compared with those that
        are there already.

    Raises
    ------
    ExperimentError
        If the folder holds a run with other options, or its options cannot be read.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.path = config.run_dir
        if self.path.exists() and not self.path.is_dir():
            raise ExperimentError(f"run_dir: {self.path} is a file, give a folder.")
        self._claim()
        self._remove_unfinished()

    def _claim(self) -> None:
        path = self.path / "config.toml"
        if not path.exists():
            self.write_text("config.toml", self._config.to_toml())
            return
        changed = differences(read_recipe(path), self._config)
        if changed:
            raise ExperimentError(
                f"{self.path} holds a run with other options:\n  "
                + "\n  ".join(changed)
                + "\nGive the same options to go on with it, or choose another --run-dir."
            )

    def _remove_unfinished(self) -> None:
        # What a run that was killed had begun to write, and nothing else: the folder may hold more.
        for name in ("config.toml", "metrics.jsonl", "results.*", "checkpoints/*/*.pt"):
            for unfinished in self.path.glob(f"{name}.[0-9]*.tmp"):
                unfinished.unlink()

    def checkpoints(self, method: Method, processes: Processes) -> Checkpoints:
        """Return where a method's checkpoints are kept, for these processes."""
        owner = (
            f"{method.name} with options {fingerprint(self._config)} in {processes.count} "
            f"processes on {processes.device.type}"
        )
        return Checkpoints(self.path / "checkpoints" / method.name, owner)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        with replacing(self.path / name) as file:
            file.write(text.encode())
