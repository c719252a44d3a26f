"""A cache of a function's results that is bounded by their bytes."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import update_wrapper
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import WeakValueDictionary

import numpy as np

R = TypeVar("R")

MOST_BYTES = 64 * 2**20
"""The largest size of each cache.

A network's tables and factors take a few megabytes. Those of a single axis of two thousand samples
take tens of megabytes.
"""


class CacheInfo(NamedTuple):
    """The size of a cache, how often it had to compute, and its limits."""

    entries: int
    nbytes: int
    misses: int
    most_entries: int
    most_bytes: int


class _Key(list[Hashable]):
    """The arguments of a call, hashed once: hashing a plan takes longer than the look-up."""

    __slots__ = ("_hash",)

    def __init__(self, arguments: tuple[Hashable, ...]) -> None:
        super().__init__(arguments)
        self._hash = hash(arguments)

    def __hash__(self) -> int:  # type: ignore[override]
        return self._hash


class ByteBoundCache(Generic[R]):
    """Keep a function's most recently used results, up to a limit on their bytes.

    This is a decorator. It can be called from several threads. A result larger than `most_bytes`
    is not kept.

    Parameters
    ----------
    function : callable
        Takes hashable positional arguments; returns an array, or arrays in nested tuples.
    size : callable, optional
        Takes the same arguments; returns the size of the result in bytes. Needed if the results are
        not arrays.
    most_bytes : int
    most_entries : int
        Limits the number of results too: tiny arrays take more memory than their bytes.

    Attributes
    ----------
    nbytes : int
        Bytes of the results that are kept now.
    """

    __wrapped__: Callable[..., R]

    def __init__(
        self,
        function: Callable[..., R],
        *,
        size: Callable[..., int] | None = None,
        most_bytes: int = MOST_BYTES,
        most_entries: int = 512,
    ) -> None:
        update_wrapper(self, function)
        self._size = size
        self.most_bytes, self.most_entries = most_bytes, most_entries
        self.nbytes = self._misses = 0
        # Least recently used first. An entry contains its own key: looked up by that key, it is
        # found without comparing the arguments again.
        self._entries: OrderedDict[_Key, tuple[_Key, R, int]] = OrderedDict()
        self._renew_lock()
        # A child process must not wait for a thread that it does not have.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)
        module = function.__module__.rpartition(".")[-1]
        CACHES[f"{module}.{function.__qualname__.lstrip('_')}"] = self

    def __call__(self, *args: Hashable) -> R:
        """Return the result kept for the arguments, or call the function."""
        key = _Key(args)
        with self._lock:
            found = self._entries.get(key)
            if found is not None:
                self._entries.move_to_end(found[0])
                return found[1]
            self._misses += 1
        value = self.__wrapped__(*args)
        size = _bytes(value, set()) if self._size is None else self._size(*args)
        if size <= self.most_bytes:
            with self._lock:
                self._keep(key, value, size)
        return value

    def __reduce__(self) -> str:
        return self.__wrapped__.__qualname__  # pickled by name, as functions are

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Remove all results."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def info(self) -> CacheInfo:
        """Return the size of the cache, how often the function was called, and the limits."""
        with self._lock:
            return CacheInfo(
                len(self._entries), self.nbytes, self._misses, self.most_entries, self.most_bytes
            )

    def _keep(self, key: _Key, value: R, size: int) -> None:
        if key in self._entries:  # another thread was faster
            return
        self._entries[key] = key, value, size
        self.nbytes += size
        while self.nbytes > self.most_bytes or len(self._entries) > self.most_entries:
            _, (_, _, freed) = self._entries.popitem(last=False)
            self.nbytes -= freed

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


CACHES: WeakValueDictionary[str, ByteBoundCache[Any]] = WeakValueDictionary()
"""All caches, by module and function, such as ``"bases.tables"``."""


def _bytes(value: Any, counted: set[int]) -> int:
    """Return the bytes of arrays in nested tuples, each counted once."""
    if isinstance(value, tuple):
        return sum([_bytes(entry, counted) for entry in value])
    # A view keeps its whole base array alive.
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    if id(value) in counted:
        return 0
    counted.add(id(value))
    return int(value.nbytes)
