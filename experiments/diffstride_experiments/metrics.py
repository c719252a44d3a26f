"""Metrics of the epochs, for programs and for TensorBoard."""

import json
import shutil
from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffstride_experiments.atomic import naming, replacing

__all__ = ["MetricsWriter"]


class MetricsWriter:
    """Writer of a run's metrics as JSON lines and, if TensorBoard is installed, as its events.

    Parameters
    ----------
    folder : Path
        Folder of the run. ``metrics.jsonl`` has one line for each epoch of each method;
        ``tensorboard/METHOD`` has the same metrics as curves.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def write_lines(self, histories: Iterable[Sequence[dict[str, Any]]]) -> None:
        """Write the metrics of all epochs as JSON lines.

        The whole file is written each time. Appended lines could be lost or duplicated when a run
        is stopped between its checkpoint and its metrics.
        """
        lines = (json.dumps(metrics) + "\n" for history in histories for metrics in history)
        with replacing(self._folder / "metrics.jsonl") as file:
            file.write("".join(lines).encode())

    def write_events(self, metrics: dict[str, Any]) -> None:
        """Append one epoch's metrics to its method's curves.

        Each epoch has its own event file, which tells TensorBoard to discard what an interrupted
        run has already written for this epoch. Without TensorBoard, nothing is written.
        """
        if find_spec("tensorboard") is None:
            return

        from torch.utils.tensorboard import SummaryWriter

        epoch = metrics["epoch"]
        folder = self._folder / "tensorboard" / metrics["method"]
        # TensorBoard cannot write to a folder whose name is not UTF-8.
        with naming(folder), TemporaryDirectory() as unfinished:
            folder.mkdir(parents=True, exist_ok=True)
            with SummaryWriter(unfinished, purge_step=epoch) as writer:
                for name in ("train_loss", "train_accuracy", "loss", "accuracy"):
                    writer.add_scalar(name, metrics[name], epoch)
                for place, strides in enumerate(metrics["strides"], 1):
                    for axis, stride in zip(("height", "width"), strides, strict=True):
                        writer.add_scalar(f"strides/{place} {axis}", stride, epoch)
            for events in Path(unfinished).iterdir():
                shutil.move(events, folder / events.name)
