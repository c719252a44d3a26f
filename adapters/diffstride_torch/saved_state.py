"""What a layer's state dict holds besides the strides: the settings that give them a meaning."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffstride_backends.torch_backend import whole

from diffstride_core.planning import callers_level

KEY = "_extra_state"
"""PyTorch's key for the extra state of a module in a state dict, after the module's prefix."""

_LENGTH = 256

_warned_in: list[str] | None = None


def encoded(arguments: Mapping[str, Any]) -> torch.Tensor:
    """Return a layer's arguments as the character codes of their JSON, padded with blanks.

    The result is a tensor, since many readers of state dicts know nothing else: safetensors,
    averaging, sharding. Its length is always the same, since ``torch.distributed.checkpoint`` reads
    into the tensors of the present state. Its entries are wider than bytes, so that sums over
    several models do not overflow.

    Parameters
    ----------
    arguments : mapping of str to plain values

    Returns
    -------
    torch.Tensor, shape (256,)
        New tensor of dtype int32 on the CPU. Safetensors would take two tensors that share memory
        for one.
    """
    codes = json.dumps(arguments).ljust(_LENGTH).encode("ascii")
    return torch.tensor(list(codes), dtype=torch.int32, device="cpu")


def decoded(state: object) -> dict[str, Any] | None:
    """Return the arguments that a tensor holds, or None if it has no values, as on "meta".

    Parameters
    ----------
    state : torch.Tensor, shape (F,)
        Result of `encoded`, with any dtype, on any device: conversions and averages leave it
        readable.

    Raises
    ------
    ValueError
        If the state is anything else.
    """
    if isinstance(state, torch.Tensor):
        if state.is_meta:
            return None
        codes = whole(state.detach()).to("cpu", torch.float64).round().to(torch.uint8)
        try:
            arguments = json.loads(bytes(codes.tolist()).decode("ascii"))
        except (TypeError, ValueError):
            arguments = None
        if isinstance(arguments, dict):
            return arguments
    raise ValueError(
        "extra state must be a tensor as get_extra_state returns it, the codes of JSON, got "
        f"{_described(state)}"
    )


def check(state: object, own: Mapping[str, Any], prefix: str = "") -> None:
    """Raise ValueError if a saved layer had other arguments than the one to be loaded.

    Parameters
    ----------
    state : torch.Tensor
        Result of `encoded`.
    own : mapping of str to plain values
        The arguments of the layer to be loaded.
    prefix : str
        Prefix of the layer's keys in the state dict.
    """
    layer = f"layer {prefix[:-1]!r}" if prefix else "the layer"
    try:
        saved = decoded(state)
    except ValueError as error:
        raise ValueError(f"{layer}: {error}") from None
    if saved is not None and saved != own:
        raise ValueError(
            f"{layer} was saved with {_as_keywords(saved)}, but has {_as_keywords(own)}, so the "
            "same weights would compute something else. Make the layer with the saved settings; to "
            f"load the weights anyway, leave the keys that end in {KEY!r} out of the state"
        )


def warn_unchecked(own: Mapping[str, Any], prefix: str, load: list[str]) -> None:
    """Warn, once per model, that a state dict lacks the settings of its strides.

    Parameters
    ----------
    own : mapping of str to plain values
        The arguments of the layer that is being loaded.
    prefix : str
        Prefix of the layer's keys in the state dict.
    load : list of str
        Any of the lists that PyTorch passes from module to module. It tells one call of
        ``load_state_dict`` from another.
    """
    global _warned_in
    if _warned_in is load:
        return
    _warned_in = load  # Held, so that no later call has a list at the same address.
    layer = f"layer {prefix[:-1]!r}" if prefix else "the layer"
    warnings.warn(
        f"the state holds strides, but not the convention and smoothness they were learnt with: "
        f"{layer} uses its own, {_as_keywords(own)}, and so do the model's other layers. If the "
        "strides were learnt with other settings, this model computes something different from the "
        "one that was saved",
        stacklevel=callers_level(),
    )


def _as_keywords(arguments: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in arguments.items())


def _described(state: object) -> str:
    if isinstance(state, torch.Tensor):
        return f"a tensor of shape {tuple(state.shape)} and dtype {state.dtype}"
    return type(state).__name__
