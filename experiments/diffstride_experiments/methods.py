"""The ways of downsampling that an experiment compares."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from diffstride_torch.models import Pooling

__all__ = ["METHODS", "Method", "MethodName"]

MethodName = Literal[
    "conv",
    "spectral",
    "diffstride-paper",
    "diffstride-relative",
    "diffstride-penalised",
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
    pooling, convention : str
        Arguments of the networks of `diffstride_torch.models`.
    penalised : bool
        Whether the loss adds the complexity penalty.
    """

    name: MethodName
    label: str
    pooling: Pooling
    convention: str = "paper"
    penalised: bool = False


METHODS: dict[MethodName, Method] = {
    method.name: method
    for method in (
        Method("conv", "strided convolution", "conv"),
        Method("spectral", "spectral pooling", "spectral"),
        Method("diffstride-paper", "DiffStride (paper)", "diffstride"),
        Method("diffstride-relative", "DiffStride (relative)", "diffstride", "relative"),
        Method("diffstride-penalised", "DiffStride (relative, λJ)", "diffstride", "relative", True),
        Method("diffstride-tensorflow", "DiffStride (authors' code)", "diffstride", "tensorflow"),
    )
}
