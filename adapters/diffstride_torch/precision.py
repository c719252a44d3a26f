"""Modules whose numbers must not lose precision."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


class KeepsPrecision(torch.nn.Module):
    """A module whose parameters and buffers move, but are never converted to half precision."""

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            moved = fn(tensor)
            return tensor.to(moved.device) if moved.dtype.itemsize < 4 else moved

        return super()._apply(keep_precision, recurse)  # type: ignore[no-untyped-call]
