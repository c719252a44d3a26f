"""The plans of one layer, and the one rule by which they are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
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


class PlanCache:
    """The plans of one layer.

    A plan stays valid while the strides stay as they were read last. Frameworks whose layers hold
    their strides call `refresh` before each use, with a token that tells, without reading device
    memory, that no stride has changed; when it differs, the strides are read once and the plans of
    all sizes seen are made anew. Frameworks that compile a function for what is static in its
    arguments leave a cache as it is and replace it by a `refreshed` one: two caches are equal if
    they hold the same plan for every size that either has seen, so that a compiled function serves
    until a size changes.

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
        self._plans: dict[_Sizes, Plan] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self._settings, self._entries, self._strides)

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        if not isinstance(other, PlanCache) or hash(self) != hash(other):
            return False
        if (self._settings, self._entries) != (other._settings, other._entries):
            return False
        seen = [*self._plans, *other._plans]
        return all(self._plan(*sizes) == other._plan(*sizes) for sizes in seen)

    def __hash__(self) -> int:
        # Nothing that changes while sizes are seen.
        return hash((self._settings, self._entries))

    @property
    def settings(self) -> Settings:
        """What the layer was made with besides its strides."""
        return self._settings

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
        if self._token is None or token != self._token:
            self.update(token, read())
        while len(self._plans) > _MOST_SIZES:
            del self._plans[next(iter(self._plans))]

    def update(self, token: Hashable, strides: tuple[float, ...] | None) -> None:
        """Bring the plans up to date with strides that have been read; see `refresh`."""
        if strides is not None:
            check_strides(strides, len(self._settings.axes))
        if strides is None or strides != self._strides:
            self._plans = {key: self._make(*key, strides) for key in self._plans}
        self._strides, self._token = strides, token

    def refreshed(self, strides: tuple[float, ...]) -> PlanCache:
        """Return the cache for other values of the strides, with plans for all sizes seen."""
        if strides == self._strides:
            return self
        other = PlanCache(self._settings, self._entries, self._strides)
        other._plans = dict(self._plans)
        other.update(None, strides)
        return other

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape, as of the last `refresh`."""
        axes = normalized_axes(self._settings.axes, shape)
        return self._plan(axes, axis_sizes(axes, shape))

    def bounds(self) -> tuple[Bounds, ...]:
        """Return the bounds of the stride of each axis that hold for all sizes seen."""
        declared = declared_bounds(self._settings)
        return tuple(
            reduce(
                Bounds.intersect, (plan.axes[i].bounds for plan in self._plans.values()), declared
            )
            for i in range(len(self._settings.axes))
        )

    def project(self, strides: tuple[float, ...]) -> tuple[float, ...]:
        """Return values of the stride parameters put within the bounds."""
        # A shared stride has the same bounds on every axis.
        bounds = self.bounds()[: self._entries]
        return tuple(bound.apply(stride) for bound, stride in zip(bounds, strides, strict=True))

    def _plan(self, axes: tuple[int, ...], sizes: tuple[int, ...]) -> Plan:
        plan = self._plans.get((axes, sizes))
        if plan is None:
            plan = self._plans[axes, sizes] = self._make(axes, sizes, self._strides)
        return plan

    def _make(
        self, axes: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[float, ...] | None
    ) -> Plan:
        shared = self._entries == 1
        return plan_diff_stride(self._settings, axes, sizes, strides, shared=shared)
