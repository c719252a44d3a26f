"""The internals that tests may use, caches and block sizes, so that all others can change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from diffstride_core import kernels
from diffstride_core.byte_cache import CACHES, CacheInfo

__all__ = ["CacheInfo", "block_elements", "cache_info", "cache_limit", "clear_caches"]


def cache_info() -> dict[str, CacheInfo]:
    """Return the state of every cache of the loaded modules, by names like ``"bases.tables"``."""
    return {name: cache.info() for name, cache in CACHES.items()}


def clear_caches() -> None:
    """Empty every cache of arrays and of programs."""
    for cache in list(CACHES.values()):
        cache.clear()


@contextmanager
def cache_limit(name: str, most_bytes: int) -> Iterator[None]:
    """Limit the bytes that a cache keeps, as long as the context lasts.

    Parameters
    ----------
    name : str
        A key of `cache_info`.
    most_bytes : int
    """
    cache = CACHES[name]
    before = cache.most_bytes
    cache.most_bytes = most_bytes
    try:
        yield
    finally:
        cache.most_bytes = before


@contextmanager
def block_elements(count: int) -> Iterator[None]:
    """Resize arrays of more than `count` elements in blocks, as long as the context lasts.

    Parameters
    ----------
    count : int
    """
    before = kernels.BLOCK_ELEMENTS
    kernels.BLOCK_ELEMENTS = count
    try:
        yield
    finally:
        kernels.BLOCK_ELEMENTS = before
