"""Modules that the user names for surgery."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from difflib import get_close_matches

from torch import nn

from diffstride_torch.network.downsampling import AntiAliasingSpectralPool
from diffstride_torch.sliding import sliding_kernel_of

_ALLOWED = (
    "strided convolutions, average and max poolings of torch.nn, and AntiAliasingSpectralPool"
)


def strided_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return a model's strided convolutions and poolings by their names, each once."""
    return {name: module for name, module in model.named_modules() if name and _is_strided(module)}


def _is_strided(module: nn.Module) -> bool:
    if isinstance(module, AntiAliasingSpectralPool):
        return True
    sliding = sliding_kernel_of(module)
    return sliding is not None and max(sliding.stride) > 1


def some_of(names: Iterable[str]) -> str:
    """Return a few names, and how many more there are."""
    every = list(map(repr, names))
    shown, more = ", ".join(every[:8]), len(every) - 8
    return f"{shown} and {more} more" if more > 0 else shown


def modules_of(model: nn.Module, argument: str, names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the modules whose names an argument holds.

    Raises
    ------
    TypeError
        If a name is not a string.
    ValueError
        If the model has no such module.
    """
    known = dict(model.named_modules(remove_duplicate=False))
    found: dict[str, nn.Module] = {}
    for name in (names,) if isinstance(names, str) else tuple(names):
        if not isinstance(name, str):
            raise TypeError(f"{argument} must hold names of modules, got {name!r}")
        if not name or name not in known:
            close = get_close_matches(name, known, n=3)
            hint = f"; did you mean {', '.join(close)}?" if close else ""
            raise ValueError(f"{argument}: the model has no module {name!r}{hint}")
        found[name] = known[name]
    return found


def modules_to_replace(model: nn.Module, only: Iterable[str]) -> dict[str, nn.Module]:
    """Return the strided operations with the given names, each once.

    Raises
    ------
    TypeError, ValueError
        If `modules_of` would refuse a name, there is no name, or a module does not downsample.
    """
    named = modules_of(model, "only", only)
    if not named:
        raise ValueError("only must hold at least one name of a module, got none")
    for name, module in named.items():
        if not _is_strided(module):
            inside = [f"{name}.{inner}" for inner in strided_modules(module)]
            hint = f"; in it are {some_of(inside)}" if inside else ""
            raise ValueError(
                f"only: {name!r} is a {type(module).__name__} that does not downsample; allowed "
                f"are {_ALLOWED}{hint}"
            )
    return {name: module for module, name in {m: name for name, m in named.items()}.items()}


def modules_that_share(
    model: nn.Module, shared: Iterable[Iterable[str]], named: Mapping[str, nn.Module]
) -> list[list[nn.Module]]:
    """Return the modules that are to share a stride, for each list of names.

    Raises
    ------
    TypeError, ValueError
        If `modules_of` would refuse a name; or if a list has fewer than two modules, a module that
        is not to be replaced, or a module that is also in another list.
    """
    lists: Sequence[object] = (shared,) if isinstance(shared, str) else tuple(shared)
    found: list[list[nn.Module]] = []
    for names in lists:
        if isinstance(names, str) or not isinstance(names, Iterable):
            raise TypeError(f"shared must hold lists of names of modules, got {names!r}")
        together = modules_of(model, "shared", names)
        for name, module in together.items():
            if module not in named.values():
                raise ValueError(f"shared: {name!r} is not in only, which holds {some_of(named)}")
            if any(module in other for other in found):
                raise ValueError(f"shared: {name!r} is in more than one list")
        if len(set(together.values())) < 2:
            raise ValueError(f"shared: a list must hold at least two modules, got {list(together)}")
        found.append(list(together.values()))
    return found
