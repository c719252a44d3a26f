"""A term of the loss that holds what a network costs at a target."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from diffstride_core.arguments import real
from diffstride_torch.modules import DiffStride
from diffstride_torch.network.costs import flops_penalty

# Beyond this the pull grows no further: what a step of training does to a stride stays bounded,
# however far a network starts from its target.
_FULL_PULL = 0.05
_SLOPE = 60.0


class FlopsBudget:
    r"""A loss term that holds the multiply-adds of a network at a target.

    With the multiply-adds c per image of `flops_penalty`, the target T and e = log(c/T),

    .. math:: 30\,e^2 \;\text{ for } |e| \le 0.05, \quad 3\,|e| - 0.075 \;\text{ beyond},

    which pulls from both sides. It has no state: a run that is resumed needs nothing but the
    strides. Training ends where the pull equals what the loss would gain by more resolution. If
    that is g per unit of log c, with g < 3, the cost ends g/60 above the target in logarithm: half
    a percent for g = 0.3.

    Parameters
    ----------
    model : torch.nn.Module
    example_input : Tensor, shape (N, C, ...), or tuple
        As for `flops_penalty`, which counts.
    target : "initial" or float
        Multiply-adds per image, above 0; "initial" for those of the model as it is. For those of a
        model before surgery give ``multiply_adds_before`` of the `ReplacementReport`.

    Attributes
    ----------
    target : float
        Multiply-adds per image.
    layers : list of DiffStride
        In the order of execution, each once.

    Raises
    ------
    TypeError
        If the target is neither a number nor a string, and as `flops_penalty` does.
    ValueError
        If the target is not positive and finite, another string than "initial", or outside what
        the strides can reach within their bounds; and as `flops_penalty` does.

    Examples
    --------
    >>> import torch
    >>> from diffstride_torch import FlopsBudget
    >>> from diffstride_torch.models import small_resnet
    >>> budget = FlopsBudget(small_resnet(), torch.randn(1, 1, 32, 32))
    >>> budget.multiply_adds() == budget.target, budget().item()
    (True, 0.0)
    """

    def __init__(
        self, model: nn.Module, example_input: Any, target: float | str = "initial"
    ) -> None:
        wanted = None
        if not isinstance(target, str):
            wanted = real("target", target)
            if not 0 < wanted < float("inf"):
                raise ValueError(
                    f"target must be a finite number of multiply-adds above 0, got {target!r}"
                )
        elif target != "initial":
            raise ValueError(
                f"target must be 'initial' or a number of multiply-adds, got {target!r}"
            )
        self._penalty = flops_penalty(model, example_input)
        self.layers: list[DiffStride] = self._penalty.layers
        self.target = float(self._penalty.initial) if wanted is None else wanted
        if wanted is None:
            return
        least, most = self._penalty.multiply_adds_range()
        if not least <= wanted <= most:
            raise ValueError(
                "target must be within what the strides can reach, from "
                f"{least:,} to {most:,} multiply-adds per image, got {wanted:,.0f}"
            )

    def __call__(self) -> torch.Tensor:
        """Return the loss term at the present strides.

        Returns
        -------
        Tensor, shape ()
            Of the strides' dtype; 0 at the target.
        """
        excess = torch.log(self._penalty() / self.target)
        aim = torch.zeros_like(excess)
        return _SLOPE * functional.huber_loss(excess, aim, delta=_FULL_PULL)

    def multiply_adds(self) -> int:
        """Return the multiply-adds per image at the present strides."""
        return self._penalty.multiply_adds()
