"""Load the golden data: what the authors' own code returned, recorded once.

The package carries a subset (see ``golden/README.md``); the full recording has the same layout and
is read by the same functions, from the folder passed in or named by ``DIFFSTRIDE_GOLDEN``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

PACKAGED_FOLDER = Path(__file__).parent / "golden"
FOLDER_VARIABLE = "DIFFSTRIDE_GOLDEN"


@dataclass(frozen=True)
class GoldenConfig:
    """The arguments the authors' layer was built with.

    Attributes
    ----------
    strides : tuple of float
        One per axis (height, width), or a single one where `shared_stride`.
    smoothness : float or None
        None for ``FixedSpectralPooling``, which has none.
    cropping, shared_stride : bool
    limits : (lower, upper)
        None where there is no limit.
    axes : (int, int)
        The array axes of height and width, as their ``data_format`` puts them.
    """

    strides: tuple[float, ...]
    smoothness: float | None
    cropping: bool
    shared_stride: bool
    limits: tuple[float | None, float | None]
    axes: tuple[int, int]


@dataclass(frozen=True)
class GoldenCase:
    """One call of one of the authors' layers, with its gradients, in float32.

    Attributes
    ----------
    id, group : str
    layer : {"DiffStride", "FixedSpectralPooling"}
    config : GoldenConfig
    special : str or None
        Why float32 rounding or a difference of the code decides the case, which is tested apart.
    note : str
    arrays : mapping of str to ndarray
        ``x``, ``g`` (cotangent), ``y``, ``dx``, ``strides_before``, ``strides_after`` (the authors'
        layer raises its strides when called) and, for ``DiffStride``, ``dstrides``.
    dstrides_sum_abs_terms : ndarray or None
        The sum of the absolute values of the terms that make up each stride's gradient: its
        accuracy is relative to this. None where it was not recorded.
    """

    id: str
    group: str
    layer: Literal["DiffStride", "FixedSpectralPooling"]
    config: GoldenConfig
    special: str | None
    note: str
    arrays: Mapping[str, npt.NDArray[np.float32]]
    dstrides_sum_abs_terms: npt.NDArray[np.float64] | None


@dataclass(frozen=True)
class GoldenTrajectory:
    """Some steps of SGD with momentum on one layer's strides.

    The loss is ``mean(y**2)`` before step `switch` and its negative from then on; the update is
    ``v = momentum*v - lr*g``, ``s = clip(s_after_call + v, lower or 1, upper)``.

    Attributes
    ----------
    id : str
    config : GoldenConfig
    lr, momentum : float
    steps, switch : int
    arrays : mapping of str to ndarray
        ``x``; ``strides`` (before each step and after the last, shape ``(steps + 1, n)``);
        ``strides_after_call`` and ``grad``, shape ``(steps, n)``; ``loss``; ``y_shape``.
    """

    id: str
    config: GoldenConfig
    lr: float
    momentum: float
    steps: int
    switch: int
    arrays: Mapping[str, npt.NDArray[Any]]


def default_folder() -> Path:
    """Return the folder named by ``DIFFSTRIDE_GOLDEN`` where that is set, else the packaged one."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else PACKAGED_FOLDER


def load_cases(folder: str | os.PathLike[str] | None = None) -> list[GoldenCase]:
    """Load every case, in the order they were recorded.

    Parameters
    ----------
    folder : path, optional
        A folder with ``manifest.json`` and the arrays it names; :func:`default_folder` if None.
    """
    root = default_folder() if folder is None else Path(folder)
    entries = json.loads((root / "manifest.json").read_text())["cases"]
    arrays = _load_arrays(root, entries)
    return [
        GoldenCase(
            id=entry["id"],
            group=entry["group"],
            layer=entry["layer"],
            config=_config(entry["config"]),
            special=entry["special"],
            note=entry["note"],
            arrays=arrays[entry["id"]],
            dstrides_sum_abs_terms=(
                None
                if entry["dstrides_sum_abs_terms"] is None
                else np.asarray(entry["dstrides_sum_abs_terms"], dtype=np.float64)
            ),
        )
        for entry in entries
    ]


def load_trajectories(folder: str | os.PathLike[str] | None = None) -> list[GoldenTrajectory]:
    """Load every trajectory; `folder` as for :func:`load_cases`, with ``trajectories.json``."""
    root = default_folder() if folder is None else Path(folder)
    entries = json.loads((root / "trajectories.json").read_text())
    arrays = _load_arrays(root, entries)
    return [
        GoldenTrajectory(
            id=entry["id"],
            config=_config(entry["config"]),
            lr=entry["lr"],
            momentum=entry["momentum"],
            steps=entry["steps"],
            switch=entry["switch"],
            arrays=arrays[entry["id"]],
        )
        for entry in entries
    ]


def _load_arrays(
    root: Path, entries: list[dict[str, Any]]
) -> dict[str, dict[str, npt.NDArray[Any]]]:
    """Load the arrays of all entries, stored as ``ID/NAME`` in the files that they name."""
    arrays: dict[str, dict[str, npt.NDArray[Any]]] = {entry["id"]: {} for entry in entries}
    for file in sorted({entry["file"] for entry in entries}):
        with np.load(root / file) as archive:
            for key in archive.files:
                entry_id, name = key.split("/")
                # A file may also hold what another manifest, or none, lists.
                if entry_id in arrays:
                    arrays[entry_id][name] = archive[key]
    return arrays


def _config(recorded: Mapping[str, Any]) -> GoldenConfig:
    """Translate the authors' constructor arguments."""
    strides = (
        recorded["strides"] if isinstance(recorded["strides"], list) else [recorded["strides"]]
    )
    shared = recorded.get("shared_stride", False)
    return GoldenConfig(
        # Given two strides, the authors' shared layer keeps the first.
        strides=tuple(strides[:1] if shared else strides),
        smoothness=recorded.get("smoothness_factor"),
        cropping=recorded.get("cropping", True),
        shared_stride=shared,
        limits=(recorded.get("lower_limit_stride"), recorded.get("upper_limit_stride")),
        axes={"channels_first": (-2, -1), "channels_last": (-3, -2)}[recorded["data_format"]],
    )
