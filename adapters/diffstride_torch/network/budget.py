"""A term of the loss that holds the cost of a network at a target."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional

from diffstride_core.arguments import real
from diffstride_torch.modules import DiffStride
from diffstride_torch.network.costs import flops_penalty

# Beyond this |e| the pull does not grow, so one step of training never moves a stride far, even if
# the network starts far from its target.
_FULL_PULL = 0.05
_SLOPE = 60.0


class FlopsBudget:
    r"""A loss term that holds the multiply-adds of a network at a target.

    Add it to the loss. With c the multiply-adds per image as counted by `flops_penalty`, T the
    target and e = log(c/T), the term is

    .. math:: 30\,e^2 \;\text{ for } |e| \le 0.05, \quad 3\,|e| - 0.075 \;\text{ otherwise}.

    It pulls the cost towards the target from both sides. It has no state: to resume a run, only the
    strides are needed. At the end of training, the pull equals the gain in the loss from more
    resolution. If this gain is g per unit of log c, with g < 3, then log(c/T) is g/60: for g = 0.3
    the cost ends half a percent above the target.

    Parameters
    ----------
    model : torch.nn.Module
    example_input : Tensor, shape (N, C, ...), or tuple
        As for `flops_penalty`.
    target : "initial" or float
        Multiply-adds per image, above 0, or "initial" for the present cost of the model. To use the
        cost of a model before surgery, pass ``multiply_adds_before`` of the `ReplacementReport`.

    Attributes
    ----------
    target : float
        Multiply-adds per image.
    layers : list of DiffStride
        The layers in the order of execution, each once.

    Raises
    ------
    TypeError
        If the target is neither a number nor a string, or `flops_penalty` would refuse an argument.
    ValueError
        If the target is not positive and finite, is a string other than "initial", or cannot be
        reached by strides within their bounds; or if `flops_penalty` would refuse an argument.

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
                f"{least:,} to {most:,} multiply-adds per image, got {wanted:,}"
            )

    def __call__(self) -> torch.Tensor:
        """Return the loss term at the present strides.

        Returns
        -------
        Tensor, shape ()
            The term, with the strides' dtype. It is 0 at the target.
        """
        excess = torch.log(self._penalty() / self.target)
        aim = torch.zeros_like(excess)
        return _SLOPE * functional.huber_loss(excess, aim, delta=_FULL_PULL)

    def multiply_adds(self) -> int:
        """Return the multiply-adds per image at the present strides."""
        return self._penalty.multiply_adds()

    def of_layer(self, layer: DiffStride) -> int:
        """Return the multiply-adds per image of a layer itself, over all its calls."""
        return self._penalty.of_layer(layer)

    def at_output_of(self, layer: DiffStride) -> int:
        """Return the multiply-adds per image of all that runs at the size of a layer's output."""
        return self._penalty.at_output_of(layer)
