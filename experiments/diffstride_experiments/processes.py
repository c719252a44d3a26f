"""The processes that share a run."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

import torch
from torch import distributed

from diffstride_experiments.errors import ExperimentError

__all__ = ["Processes"]


@dataclass(frozen=True)
class Processes:
    """The processes of a run, seen from one of them.

    Attributes
    ----------
    device : torch.device
        Device that this process computes on.
    rank, count : int
        Number of this process, and how many there are.
    """

    device: torch.device
    rank: int = 0
    count: int = 1

    @classmethod
    @contextmanager
    def joined(cls, device: str) -> Iterator["Processes"]:
        """Join the processes that torchrun started; without it, this process is the only one.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}
            Device to compute on. Each process on a machine takes its own GPU.

        Yields
        ------
        Processes

        Raises
        ------
        ExperimentError
            If there is no GPU for ``"cuda"``, or if this machine has more processes than GPUs.
        """
        if device == "cuda" and not torch.cuda.is_available():
            raise ExperimentError("device: cuda is not available here; give auto or cpu.")
        on_gpu = device != "cpu" and torch.cuda.is_available()
        local = int(os.environ.get("LOCAL_RANK", 0))
        if on_gpu and local >= torch.cuda.device_count():
            raise ExperimentError(
                f"{torch.cuda.device_count()} GPUs are too few: give torchrun at most that many "
                "processes per machine."
            )
        where = torch.device("cuda", local) if on_gpu else torch.device("cpu")
        if on_gpu:
            torch.cuda.set_device(where)
            _repeat_exactly()
        if "RANK" not in os.environ:
            yield cls(where)
            return
        # The others wait for the first one, which may have a million images to check.
        distributed.init_process_group("nccl" if on_gpu else "gloo", timeout=timedelta(hours=12))
        try:
            yield cls(where, distributed.get_rank(), distributed.get_world_size())
        finally:
            distributed.destroy_process_group()

    @property
    def is_first(self) -> bool:
        """Whether this process writes the files and prints to the terminal."""
        return self.rank == 0

    def total(self, values: torch.Tensor) -> list[float]:
        """Return the sums of a vector's entries over all processes."""
        if self.count > 1:
            distributed.all_reduce(values)
        return values.tolist()

    def share(self, tensors: Iterable[torch.Tensor]) -> None:
        """Copy the first process's values to all processes."""
        if self.count > 1:
            for tensor in tensors:
                distributed.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until all processes have reached this point."""
        if self.count > 1:
            distributed.barrier()


def _repeat_exactly() -> None:
    # cuBLAS needs this, see torch.use_deterministic_algorithms.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
