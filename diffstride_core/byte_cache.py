"""A cache of arrays that is bounded by their bytes, whatever their number."""

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
"""What each cache keeps at most.

A network's tables and factors take a few megabytes; those of one axis of two thousand samples take
tens.
"""


class CacheInfo(NamedTuple):
    """What a cache keeps, and how often it had to compute."""

    entries: int
    nbytes: int
    misses: int
    most_entries: int
    most_bytes: int


class _Key(list[Hashable]):
    """The arguments of a call, hashed once: the hash of a plan takes longer than the look-up."""

    __slots__ = ("_hash",)

    def __init__(self, arguments: tuple[Hashable, ...]) -> None:
        super().__init__(arguments)
        self._hash = hash(arguments)

    def __hash__(self) -> int:  # type: ignore[override]
        return self._hash


class ByteBoundCache(Generic[R]):
    """Keep what a function returned for the arguments that were used last, as far as bytes allow.

    A decorator, safe to call from several threads. What alone takes more than `most_bytes` is not
    kept.

    Parameters
    ----------
    function : callable
        Of hashable arguments by position; returns an array, or arrays in nested tuples.
    size : callable, optional
        Returns the bytes that the result for the same arguments takes, for results that are no
        arrays.
    most_bytes : int
    most_entries : int
        Arrays that are tiny take more memory than their bytes.

    Attributes
    ----------
    nbytes : int
        What is kept now.
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
        # Least recently used first. An entry has its own key, by which it is found without
        # comparing the arguments again.
        self._entries: OrderedDict[_Key, tuple[_Key, R, int]] = OrderedDict()
        self._renew_lock()
        # A child process must not wait for a thread that it does not have.
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._renew_lock)
        module = function.__module__.rpartition(".")[-1]
        CACHES[f"{module}.{function.__qualname__.lstrip('_')}"] = self

    def __call__(self, *args: Hashable) -> R:
        """Return what is kept for the arguments, or call the function."""
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
        return self.__wrapped__.__qualname__  # By name, as a function.

    def __len__(self) -> int:
        return len(self._entries)

    def clear(self) -> None:
        """Keep nothing of what was kept."""
        with self._lock:
            self._entries.clear()
            self.nbytes = 0

    def info(self) -> CacheInfo:
        """Return what is kept, and how often the function had to be called."""
        with self._lock:
            return CacheInfo(
                len(self._entries), self.nbytes, self._misses, self.most_entries, self.most_bytes
            )

    def _keep(self, key: _Key, value: R, size: int) -> None:
        if key in self._entries:  # from another thread
            return
        self._entries[key] = key, value, size
        self.nbytes += size
        while self.nbytes > self.most_bytes or len(self._entries) > self.most_entries:
            _, (_, _, freed) = self._entries.popitem(last=False)
            self.nbytes -= freed

    def _renew_lock(self) -> None:
        self._lock = threading.Lock()


CACHES: WeakValueDictionary[str, ByteBoundCache[Any]] = WeakValueDictionary()
"""Those that there are, by module and function, such as ``"bases.tables"``."""


def _bytes(value: Any, counted: set[int]) -> int:
    """Return the bytes of arrays in nested tuples, each counted once."""
    if isinstance(value, tuple):
        return sum([_bytes(entry, counted) for entry in value])
    # A view keeps all of what it is a view of.
    while isinstance(value, np.ndarray) and isinstance(value.base, np.ndarray):
        value = value.base
    if id(value) in counted:
        return 0
    counted.add(id(value))
    return int(value.nbytes)
