"""The plans of one layer, and the one rule by which they are refreshed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import reduce
from typing import Any

from diffstride_core.arguments import axis_sizes, check_strides, normalized_axes
from diffstride_core.plan import Bounds, Plan
from diffstride_core.planning import plan_diff_stride
from diffstride_core.settings import Settings, declared_bounds

# A layer meets few sizes in training; evaluation at every size there is must not pile up plans.
_MOST_SIZES = 16


class PlanCache:
    """The plans of one layer.

    A plan stays valid while the token stays equal. The token is whatever tells a framework, without
    reading device memory, that no stride has changed; when it differs, the strides are read once
    and the plans of all sizes seen are made anew. Adapters differ only in when they call
    `refresh`.

    A copy, or a cache restored from a pickle, starts empty.

    Parameters
    ----------
    settings : Settings
    entries : int
        The number of stride parameters: one per axis or one.
    """

    def __init__(self, settings: Settings, entries: int) -> None:
        self._settings = settings
        self._entries = entries
        self._token: Hashable = None
        self._strides: tuple[float, ...] | None = None
        self._plans: dict[tuple[tuple[int, ...], tuple[int, ...]], Plan] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return PlanCache, (self._settings, self._entries)

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

    def update(self, token: Hashable, strides: tuple[float, ...] | None) -> None:
        """Bring the plans up to date with strides that have been read; see `refresh`."""
        if strides is not None:
            check_strides(strides, len(self._settings.axes))
        if strides is None or strides != self._strides:
            self._plans = {key: self._make(*key, strides) for key in self._plans}
        self._strides, self._token = strides, token

    def plan(self, shape: Sequence[int]) -> Plan:
        """Return the plan for an input of the given shape, as of the last `refresh`."""
        axes = normalized_axes(self._settings.axes, shape)
        key = axes, axis_sizes(axes, shape)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._make(*key, self._strides)
            if len(self._plans) == _MOST_SIZES:
                del self._plans[next(iter(self._plans))]
            self._plans[key] = plan
        return plan

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

    def _make(
        self, axes: tuple[int, ...], sizes: tuple[int, ...], strides: tuple[float, ...] | None
    ) -> Plan:
        shared = self._entries == 1
        return plan_diff_stride(self._settings, axes, sizes, strides, shared=shared)
