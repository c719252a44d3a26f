"""Values and pullbacks for frameworks without automatic differentiation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffstride_backends.protocol import Pullback


def value(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]],
    plan: Any,
    *arrays: Any,
) -> Any:
    """Evaluate the forward pass alone."""
    return forward(backend, plan, *arrays)


def value_and_pullback(
    backend: Any,
    forward: Callable[..., Any],
    vjp: Callable[..., tuple[Any, ...]],
    plan: Any,
    *arrays: Any,
) -> tuple[Any, Pullback[Any]]:
    """Evaluate the forward pass and return it with its pullback, which keeps the inputs alone."""
    y = forward(backend, plan, *arrays)
    shape, dtype = y.shape, y.dtype

    def pullback(g: Any) -> tuple[Any, ...]:
        """Return the gradients of the inputs for the cotangent `g` of the output."""
        if not hasattr(g, "shape") or tuple(g.shape) != tuple(shape) or g.dtype != dtype:
            raise ValueError(
                f"g must have the output's shape {tuple(shape)} and dtype {dtype}, got "
                f"{getattr(g, 'shape', type(g).__name__)} and {getattr(g, 'dtype', None)}"
            )
        return vjp(backend, plan, g, *arrays, needs=(True,) * len(arrays))

    return y, pullback
