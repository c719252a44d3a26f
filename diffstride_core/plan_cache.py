"""The plans of one layer, and the rule for refreshing them."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, TypeAlias

from diffstride_core.arguments import axis_sizes, check_strides, normalized_axes
from diffstride_core.plan import Bounds, Plan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import Settings, declared_bounds

# A layer meets few sizes in training. Evaluation at many sizes must not pile up plans.
_MOST_SIZES = 16

_Sizes: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]
"""The axes of an array, counted from the end, and the sizes along them."""


@dataclass
class _Entry:
    """A plan, and whether its size has been seen since the last projection.

    `PlanCache.plan` sets the flag without reading it. A compiler such as torch.compile repeats the
    writes of traced code in every compiled call, but it makes what the code reads a condition of
    the compiled code. A flag that is read would cause a recompilation after a projection.
    """

    plan: Plan
    seen: bool = False


class PlanCache:
    """The plans of one layer.

    A plan is valid until the strides change. Frameworks whose layers hold their strides call
    `refresh` before each use, with a token that tells whether a stride has changed, without reading
    device memory. If the token differs, the strides are read once, and the plans of all sizes seen
    are made again.

    Frameworks that compile a function for the static part of its arguments do not change a cache.
    They replace it with a `refreshed` one. Two caches are equal if they hold the same plan for
    every size that either has seen, so that a compiled function can be used until a size changes.

    The bounds of the strides are those of the sizes seen since the last `project`. If an inner map
    has changed its size, its old size no longer bounds anything, as if training had been resumed.
    If no size has been seen since, for example because a compiled function was not traced again,
    the bounds stay what they were at that projection. Equality does not depend on the bounds.

    A copy, or a cache restored from a pickle, has seen no size and has no token.

    Parameters
    ----------
    settings : Settings
    entries : int
        Number of stride parameters: one per axis, or one.
    strides : tuple of float, optional
        Their values, if they are known.
    """

    def __init__(
        self, settings: Settings, entries: int, strides: tuple[float, ...] | None = None
    ) -> None:
        self._settings = settings
        self._entries = entries
        axes = settings.axes
        self._are_normalized = max(axes) < 0 and len(set(axes)) == len(axes)
        self._token: Hashable = None
        self._strides = strides
        self._plans: dict[_Sizes, _Entry] = {}
        self._bounds = (declared_bounds(settings),) * len(settings.axes)

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self._settings, self._entries, self._strides)

    def __repr__(self) -> str:
        return f"PlanCache({', '.join([f'last_read={self._strides}', *self._settings.shown()])})"

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
        # Hash nothing that changes when a new size is seen.
        return hash((self._settings, self._entries))

    @property
    def settings(self) -> Settings:
        """The settings of the layer, that is, everything but its strides."""
        return self._settings

    @property
    def strides(self) -> tuple[float, ...] | None:
        """The values of the stride parameters at the last `refresh`; None if they had none."""
        return self._strides

    def is_as_of(self, token: Hashable) -> bool:
        """Return whether the token is that of the last `refresh`: no stride has changed since."""
        return self._token is not None and token == self._token

    def refresh(self, token: Hashable, read: Callable[[], tuple[float, ...] | None]) -> None:
        """Bring the plans up to date with the strides.

        Parameters
        ----------
        token : hashable
            Equal to the last token exactly if no stride has changed since.
        read : callable
            Returns the values of the strides, or None if they have no values. It is called only if
            they have changed.

        Raises
        ------
        ValueError
            If a stride is NaN or infinite.
        """
        if not self.is_as_of(token):
            self.update(token, read())
        self._forget()

    def update(self, token: Hashable, strides: tuple[float, ...] | None) -> None:
        """Bring the plans up to date with strides that were read already; see `refresh`."""
        if strides is not None:
            check_strides(strides, len(self._settings.axes))
        if strides is None or strides != self._strides:
            self._plans = {
                key: _Entry(self._make(*key, strides), entry.seen)
                for key, entry in self._plans.items()
            }
        self._strides, self._token = strides, token

    def refreshed(self, strides: tuple[float, ...]) -> PlanCache:
        """Return a cache for other values of the strides.

        It has plans for all sizes seen, and the same bounds.
        """
        if strides == self._strides:
            return self
        other = PlanCache(self._settings, self._entries, self._strides)
        other._plans, other._bounds = self._plans, self._bounds
        other.update(None, strides)  # replaces its entries; ours do not change
        other._forget()
        return other

    def plan_of(self, shape: Sequence[int], strides: tuple[float, ...] | None) -> Plan:
        """Return the plan for an input of the given shape, and count its size as seen.

        Parameters
        ----------
        shape : sequence of int
        strides : tuple of float or None
            Values of the strides. The cache's own values do not change. None if the strides are
            traced: the plan is then the one for the values read last.
        """
        plan = self.plan(shape)
        return plan if strides is None else self.refreshed(strides).plan(shape)

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape, at the strides of the last `refresh`.

        The input's size counts as seen.
        """
        axes = self._settings.axes
        if not self._are_normalized or len(shape) < -min(axes):
            axes = normalized_axes(axes, shape)
        sizes = axis_sizes(axes, shape)
        entry = self._plans.get((axes, sizes))
        if entry is None:
            normalized_axes(axes, shape)  # checks the sizes
            entry = self._entry(axes, sizes)
        entry.seen = True
        return entry.plan

    def holds(self, plan: Plan) -> bool:
        """Return whether a plan is the one for its sizes at the strides of the last `refresh`.

        The sizes do not count as seen.
        """
        axes = tuple(axis.axis for axis in plan.axes)
        return self._entry(axes, tuple(axis.size for axis in plan.axes)).plan == plan

    def seen(self) -> tuple[Plan, ...]:
        """Return the plans for the sizes seen since the last projection, oldest first."""
        return tuple(entry.plan for entry in self._plans.values() if entry.seen)

    def newest(self) -> Plan | None:
        """Return the plan for the newest size: of those `seen`, or, if there are none, of all."""
        plans = self.seen() or tuple(entry.plan for entry in self._plans.values())
        return plans[-1] if plans else None

    def bounds(self) -> tuple[Bounds, ...]:
        """Return the bounds of the stride of each axis.

        They hold for all sizes seen since the last projection. If there are none, they are the
        bounds of that projection.
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
        """Return the values of the stride parameters clipped to the bounds.

        The sizes seen so far do not bound later projections, unless no size is seen in between.
        """
        bounds = self.bounds_to_project()
        return tuple(bound.apply(stride) for bound, stride in zip(bounds, strides, strict=True))

    def bounds_to_project(self) -> tuple[Bounds, ...]:
        """Return the bounds of each stride parameter, for a caller that clips the values itself.

        This counts as a projection. See `project`, which clips values on the host.
        """
        self._bounds = self.bounds()
        for entry in self._plans.values():
            entry.seen = False
        # A shared stride has the same bounds on every axis.
        return self._bounds[: self._entries]

    def _forget(self) -> None:
        """Forget sizes if there are too many."""
        while len(self._plans) > _MOST_SIZES:
            # The oldest of the sizes that bound nothing, or else the oldest of all.
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
