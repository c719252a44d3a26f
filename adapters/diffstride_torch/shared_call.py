"""One call of a layer for all the convolutions that read the same tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from diffstride_backends.torch_private import saved_tensors_hooks, version_of
from torch import fx, nn

from diffstride_torch.modules import DiffStride, values_token


class SharedCall:
    """Call of a layer on a tensor that several convolutions read, made once for all of them.

    The first convolution that reads the tensor makes the call, and the last one releases the
    result. The call is made again if the result is no longer what a call would return: after a
    write to the tensor, a step of an optimiser, or a backward pass through the result.

    Parameters
    ----------
    readers : int
        Number of the convolutions.
    """

    def __init__(self, readers: int) -> None:
        self._readers = readers
        self._last: tuple[torch.Tensor, object, torch.Tensor, frozenset[int]] | None = None

    def __reduce__(self) -> tuple[type[SharedCall], tuple[int]]:
        return SharedCall, (self._readers,)

    def forget(self) -> None:
        """Drop the result, so that the layer is called again."""
        self._last = None

    def __call__(self, reader: int, pool: nn.Module, x: torch.Tensor) -> torch.Tensor:
        """Return the output of the layer for a tensor.

        Parameters
        ----------
        reader : int
            Index of the convolution that asks. Each convolution asks once.
        pool : torch.nn.Module
            The layer.
        x : torch.Tensor
        """
        # Read the attribute once: the replicas of `DataParallel` share this object.
        last, state = self._last, _state(pool, x)
        y: torch.Tensor
        if last is None or last[0] is not x or last[1] != state or reader in last[3]:
            y, read = pool(x), frozenset({reader})
            if state is not None and y.grad_fn is not None:
                y.grad_fn.register_prehook(_forgetting(self))
        else:
            y, read = last[2], last[3] | {reader}
        self._last = None if len(read) == self._readers else (x, state, y, read)
        return y


def _forgetting(shared: SharedCall) -> Callable[[object], None]:
    """Return a hook that drops a result once its graph may be gone."""
    # A weak reference: the graph must not keep the object alive that keeps the graph's output.
    reference = weakref.ref(shared)

    def forget(_: object) -> None:
        if (kept := reference()) is not None:
            kept.forget()

    return forget


def _state(pool: nn.Module, x: torch.Tensor | fx.Proxy) -> object:
    """Return a state that differs if a layer would return something else for the same tensor."""
    # Traced tensors have no values, and traced code runs from beginning to end.
    if isinstance(x, fx.Proxy) or torch.compiler.is_compiling():
        return None
    strides = values_token(pool.strides) if isinstance(pool, DiffStride) else None
    # Parts that are checkpointed separately are recomputed separately, so they must not share.
    return torch.is_grad_enabled(), version_of(x), strides, saved_tensors_hooks()
