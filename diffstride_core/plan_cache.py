"""The plans of one layer, and the one rule by which they are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

from diffstride_core.arguments import axis_sizes, check_strides, normalized_axes
from diffstride_core.plan import Bounds, Plan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import Settings, declared_bounds

# A layer meets few sizes in training; evaluation at every size there is must not pile up plans.
_MOST_SIZES = 16

_Sizes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The axes of an array, counted from the end, and the sizes along them."""


@dataclass
class _Entry:
    """A plan, and whether its size has been seen since the last projection.

    A flag that `PlanCache.plan` sets without reading it: a compiler such as torch.compile repeats
    in every compiled call what traced code writes, but makes what it reads a condition of the
    compiled code, which would be recompiled after a projection.
    """

    plan: Plan
    seen: bool = False


class PlanCache:
    """The plans of one layer.

    A plan stays valid while the strides stay as they were read last. Frameworks whose layers hold
    their strides call `refresh` before each use, with a token that tells, without reading device
    memory, that no stride has changed; when it differs, the strides are read once and the plans of
    all sizes seen are rebuilt. Frameworks that compile a function for what is static in its
    arguments leave a cache as it is and replace it by a `refreshed` one: two caches are equal if
    they hold the same plan for every size that either has seen, so that a compiled function serves
    until a size changes.

    The bounds of the strides are those of the sizes seen since the last `project`: where an inner
    map has changed its size, its old size bounds nothing any more, as if training had been resumed.
    Where no size has been seen since, as by a compiled function that is not traced again, they stay
    what they were at that projection. Equality does not depend on them.

    A copy, or a cache restored from a pickle, has seen no size and knows no token.

    Parameters
    ----------
    settings : Settings
    entries : int
        The number of stride parameters: one per axis or one.
    strides : tuple of float, optional
        Their values, where they are known.
    """

    def __init__(
        self, settings: Settings, entries: int, strides: tuple[float, ...] | None = None
    ) -> None:
        self._settings = settings
        self._entries = entries
        self._token: Hashable = None
        self._strides = strides
        self._plans: dict[_Sizes, _Entry] = {}
        self._bounds = (declared_bounds(settings),) * len(settings.axes)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self._settings, self._entries, self._strides)

    def __repr__(self) -> str:
        settings = self._settings
        return (
            f"PlanCache(strides={self._strides}, convention={settings.convention.name!r}, "
            f"smoothness={settings.smoothness:g})"
        )

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, PlanCache) or hash(self) != hash(other):
            return False
        if (self._settings, self._entries) != (other._settings, other._entries):
            return False
        seen = [*self._plans, *other._plans]
        return all(self._entry(*sizes).plan == other._entry(*sizes).plan for sizes in seen)

    def __hash__(self) -> int:
        # Nothing that changes while sizes are seen.
        return hash((self._settings, self._entries))

    @property
    def settings(self) -> Settings:
        """What the layer was made with besides its strides."""
        return self._settings

    @property
    def strides(self) -> tuple[float, ...] | None:
        """The values of the stride parameters, as of the last `refresh`; None if it had none."""
        return self._strides

    def is_as_of(self, token: Hashable) -> bool:
        """Return whether no stride has changed since the last `refresh`, which had the token."""
        return self._token is not None and token == self._token

    def refresh(self, token: Hashable, read: Callable[[], tuple[float, ...] | None]) -> None:
        """Bring the plans up to date with the strides.

        Parameters
        ----------
        token : hashable
            Equal to the last one exactly if no stride has changed since.
        read : callable
            Returns the values of the strides, None if they have none; called only if they have
            changed.

        Raises
        ------
        ValueError
            If a stride is NaN or infinite.
        """
        if not self.is_as_of(token):
            self.update(token, read())
        self._forget()

    def update(self, token: Hashable, strides: tuple[float, ...] | None) -> None:
        """Bring the plans up to date with strides that have been read; see `refresh`."""
        if strides is not None:
            check_strides(strides, len(self._settings.axes))
        if strides is None or strides != self._strides:
            self._plans = {
                key: _Entry(self._make(*key, strides), entry.seen)
                for key, entry in self._plans.items()
            }
        self._strides, self._token = strides, token

    def refreshed(self, strides: tuple[float, ...]) -> PlanCache:
        """Return the cache for other values of the strides.

        It has plans for all sizes seen and the same bounds.
        """
        if strides == self._strides:
            return self
        other = PlanCache(self._settings, self._entries, self._strides)
        other._plans, other._bounds = self._plans, self._bounds
        other.update(None, strides)  # replaces the entries, and leaves ours as they are
        other._forget()
        return other

    def plan_of(self, shape: Sequence[int], strides: tuple[float, ...] | None) -> Plan:
        """Return the plan for an input of the given shape, whose size counts as seen.

        Parameters
        ----------
        shape : sequence of int
        strides : tuple of float or None
            Their values, which leave the cache's own as they are; None where they are traced, for
            the plan of the values read last.
        """
        plan = self.plan(shape)
        return plan if strides is None else self.refreshed(strides).plan(shape)

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape, as of the last `refresh`.

        The input's size counts as seen.
        """
        axes = normalized_axes(self._settings.axes, shape)
        entry = self._entry(axes, axis_sizes(axes, shape))
        entry.seen = True
        return entry.plan

    def holds(self, plan: Plan) -> bool:
        """Return whether a plan is the one for its sizes as of the last `refresh`.

        The sizes do not count as seen.
        """
        axes = tuple(axis.axis for axis in plan.axes)
        return self._entry(axes, tuple(axis.size for axis in plan.axes)).plan == plan

    def seen(self) -> tuple[Plan, ...]:
        """Return the plans for the sizes seen since the last projection, oldest first."""
        return tuple(entry.plan for entry in self._plans.values() if entry.seen)

    def newest(self) -> Plan | None:
        """Return the plan for the size that was new last, of those `seen` or else of all."""
        plans = self.seen() or tuple(entry.plan for entry in self._plans.values())
        return plans[-1] if plans else None

    def bounds(self) -> tuple[Bounds, ...]:
        """Return the bounds of the stride of each axis.

        Those that hold for all sizes seen since the last projection; where there are none, those of
        that projection.
        """
        seen = self.seen()
        if not seen:
            return self._bounds
        declared = declared_bounds(self._settings)
        return tuple(
            reduce(Bounds.intersect, (plan.axes[i].bounds for plan in seen), declared)
            for i in range(len(self._settings.axes))
        )

    def project(self, strides: tuple[float, ...]) -> tuple[float, ...]:
        """Return values of the stride parameters put within the bounds.

        The sizes seen until now bound no later projection, unless none is seen in between.
        """
        bounds = self.bounds_to_project()
        return tuple(bound.apply(stride) for bound, stride in zip(bounds, strides, strict=True))

    def bounds_to_project(self) -> tuple[Bounds, ...]:
        """Return the bounds of each stride parameter, for a projection that is made of them.

        See `project`, which makes one of values on the host.
        """
        self._bounds = self.bounds()
        for entry in self._plans.values():
            entry.seen = False
        # A shared stride has the same bounds on every axis.
        return self._bounds[: self._entries]

    def _forget(self) -> None:
        """Forget sizes of which there are too many."""
        while len(self._plans) > _MOST_SIZES:
            # The oldest of those that bound nothing, else the oldest.
            del self._plans[min(self._plans, key=lambda sizes: self._plans[sizes].seen)]

    def _entry(self, axes: tuple[int, ...], sizes: tuple[int, ...]) -> _Entry:
        entry = self._plans.get((axes, sizes))
        if entry is None:
            entry = _Entry(self._make(axes, sizes, self._strides))
            self._plans[axes, sizes] = entry
        return entry

    def _make(
        self, axes: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[float, ...] | None
    ) -> Plan:
        shared = self._entries == 1
        return plan_diff_stride(self._settings, axes, sizes, strides, shared=shared)
