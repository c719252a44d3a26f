"""The ways of downsampling that an experiment compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from diffstride_core.conventions import DEFAULT_CONVENTION

if TYPE_CHECKING:
    from diffstride_torch.models import Placement, Pooling

__all__ = ["METHODS", "Method", "MethodName"]

MethodName = Literal[
    "conv",
    "spectral",
    "diffstride",
    "diffstride-held",
    "diffstride-penalised",
    "diffstride-budget",
    "diffstride-paper",
    "diffstride-tensorflow",
]


@dataclass(frozen=True)
class Method:
    """One way of downsampling.

    Attributes
    ----------
    name : str
        Key in options, files and metrics.
    label : str
        Name in tables and plots.
    pooling, convention, placement : str
        Arguments for the networks of `diffstride_torch.models`.
    held : bool
        Whether the strides of the layers stay fixed in training.
    penalised : bool
        Whether the loss includes the complexity penalty.
    budgeted : bool
        Whether the loss includes the term that keeps the multiply-adds at a budget.
    """

    name: MethodName
    label: str
    pooling: Pooling
    convention: str = DEFAULT_CONVENTION
    placement: Placement = "before"
    held: bool = False
    penalised: bool = False
    budgeted: bool = False

    @property
    def learns_strides(self) -> bool:
        """Whether training changes the strides."""
        return self.pooling == "diffstride" and not self.held


METHODS: dict[MethodName, Method] = {
    method.name: method
    for method in (
        Method("conv", "strided convolution", "conv"),
        Method("spectral", "spectral pooling", "spectral"),
        Method("diffstride", "DiffStride", "diffstride"),
        Method("diffstride-held", "DiffStride (strides held)", "diffstride", held=True),
        Method("diffstride-penalised", "DiffStride (λJ)", "diffstride", penalised=True),
        Method("diffstride-budget", "DiffStride (budget)", "diffstride", budgeted=True),
        Method("diffstride-paper", "DiffStride (paper)", "diffstride", "paper", "after"),
        Method(
            "diffstride-tensorflow",
            "DiffStride (authors' code)",
            "diffstride",
            "tensorflow",
            "after",
        ),
    )
}
