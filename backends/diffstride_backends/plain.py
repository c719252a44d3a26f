"""The switch between an attached derivative and the framework's own."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class PlainAutodiff(threading.local):
    """Let the framework differentiate the forward pass itself, without the attached derivative.

    A call returns a context. In JAX, forward-mode differentiation (``jvp``, ``jacfwd``,
    ``hessian``) needs it. In PyTorch, forward mode is detected without it. The results are the
    same; time and memory are those of automatic differentiation. Each thread has its own switch. It
    is not a context variable, since torch.compile does not read those.

    Parameters
    ----------
    module : str
        Name of the module that holds the switch as ``plain_autodiff``.

    Attributes
    ----------
    enabled : bool
        Whether the thread is within the context.
    """

    enabled = False

    def __init__(self, module: str) -> None:
        self.__module__ = module

    def __reduce__(self) -> str:
        return "plain_autodiff"  # by name, like a function: a copy would switch nothing

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Return the context."""
        before, self.enabled = self.enabled, True
        try:
            yield
        finally:
            self.enabled = before
