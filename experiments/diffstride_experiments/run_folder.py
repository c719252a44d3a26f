"""The folder of a run: its files, and whether a run may continue in it."""

from collections.abc import Iterator
from contextlib import contextmanager

from diffstride_experiments.atomic import replacing
from diffstride_experiments.checkpoint import Checkpoints
from diffstride_experiments.config import Config, differences, fingerprint, read_recipe
from diffstride_experiments.errors import ExperimentError, UsageError
from diffstride_experiments.locking import locked
from diffstride_experiments.methods import Method
from diffstride_experiments.processes import Processes

__all__ = ["RunFolder"]


class RunFolder:
    """Files of one run.

    Parameters
    ----------
    config : Config
        Options of the run.
    """

    def __init__(self, config: Config) -> None:
        self._config = config
        self.path = config.run_dir
        self._claimed = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep other runs out of the folder, and check that this one may run in it.

        Raises
        ------
        UsageError
            If the folder has a run of an earlier version, or if its options cannot be read.
        ExperimentError
            If another run uses the folder, if it has a run with other options, or if it cannot be
            written.
        """
        with locked(self.path, "run_dir"):
            self._check_options()
            self._remove_unfinished()
            try:
                yield
            finally:
                self._withdraw()

    def claim(self) -> None:
        """Write the options to the folder as a recipe, unless they are already there.

        From then on, a run with other options is refused. Call this just before the first
        checkpoint is written: a start that fails earlier leaves nothing that could be mixed with
        another run.
        """
        if not (self.path / "config.toml").exists():
            self._claimed = True
            self.write_text("config.toml", self._config.to_toml())

    def _withdraw(self) -> None:
        """Remove the options again if the first checkpoint could not be written."""
        if self._claimed and not any(self.path.glob("checkpoints/*/*.pt")):
            (self.path / "config.toml").unlink(missing_ok=True)

    def _check_options(self) -> None:
        path = self.path / "config.toml"
        if not path.exists():
            return
        try:
            earlier = read_recipe(path)
        except UsageError as error:
            raise UsageError(
                f"run_dir: {self.path} holds a run with options that this version does not accept "
                f"({str(error).rstrip('.')}); choose another --run-dir."
            ) from error
        # Every run records the placement of its layers. Before that was an option, it was another.
        has_network = "model" in earlier.model_fields_set
        if has_network and "placement" not in earlier.model.model_fields_set:
            raise UsageError(
                f"run_dir: {self.path} holds a run of an earlier version, with different networks; "
                "choose another --run-dir."
            )
        changed = differences(earlier, self._config)
        if changed:
            raise ExperimentError(
                f"run_dir: {self.path} holds a run with other options ({'; '.join(changed)}); to "
                "continue it, give the same options; otherwise choose another --run-dir."
            )

    def _remove_unfinished(self) -> None:
        # Files that a killed run had begun to write. Other files in the folder are left alone.
        for name in ("config.toml", "metrics.jsonl", "results.*", "checkpoints/*/*.pt"):
            for unfinished in self.path.glob(f"{name}.[0-9]*.tmp"):
                unfinished.unlink()

    def checkpoints(self, method: Method, processes: Processes) -> Checkpoints:
        """Return the checkpoints of a method, for these processes."""
        owner = (
            f"{method.name} with options {fingerprint(self._config)} in {processes.count} "
            f"processes on {processes.device.type}"
        )
        return Checkpoints(self.path / "checkpoints" / method.name, owner)

    def write_text(self, name: str, text: str) -> None:
        """Write a file atomically."""
        with replacing(self.path / name) as file:
            file.write(text.encode())
