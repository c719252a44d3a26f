"""Load the golden data: recorded results of the authors' own code.

The package contains a subset (see ``golden/README.md``). The full recording has the same layout,
and the same functions read it, from the folder that is passed to them or that ``DIFFSTRIDE_GOLDEN``
names.
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
    """Arguments that the authors' layer was built with.

    Attributes
    ----------
    strides : tuple of float
        One stride per axis (height, width), or a single stride if `shared_stride`.
    smoothness : float or None
        None for ``FixedSpectralPooling``, which has no smoothness.
    cropping, shared_stride : bool
    limits : (lower, upper)
        Limits of the strides. None means no limit.
    axes : (int, int)
        Array axes of height and width, according to the authors' ``data_format``.
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
        Why float32 rounding or a difference between the codes decides the case. Such cases are
        tested separately.
    note : str
    arrays : mapping of str to ndarray
        ``x``, ``g`` (cotangent), ``y``, ``dx``, ``strides_before``, ``strides_after`` (the authors'
        layer raises its strides when it is called) and, for ``DiffStride``, ``dstrides``.
    dstrides_sum_abs_terms : ndarray or None
        Sum of the absolute values of the terms of each stride's gradient. The accuracy of the
        gradient is relative to this sum. None if it was not recorded.
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
    """Some steps of SGD with momentum on the strides of one layer.

    The loss is ``mean(y**2)`` before step `switch` and its negative from then on. The update is
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
    """Return the folder that ``DIFFSTRIDE_GOLDEN`` names if it is set, else the packaged one."""
    named = os.environ.get(FOLDER_VARIABLE)
    return Path(named) if named else PACKAGED_FOLDER


def load_cases(folder: str | os.PathLike[str] | None = None) -> list[GoldenCase]:
    """Load every case, in the order of recording.

    Parameters
    ----------
    folder : path, optional
        Folder with ``manifest.json`` and the arrays that it names. Default: :func:`default_folder`.
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
    """Load every trajectory, from ``trajectories.json`` in a folder as in :func:`load_cases`."""
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
    """Load the arrays of all entries, which are stored as ``ID/NAME`` in the entries' files."""
    arrays: dict[str, dict[str, npt.NDArray[Any]]] = {entry["id"]: {} for entry in entries}
    for file in sorted({entry["file"] for entry in entries}):
        with np.load(root / file) as archive:
            for key in archive.files:
                entry_id, name = key.split("/")
                # A file may also contain arrays that this manifest does not list.
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
        # If the authors' shared layer is given two strides, it keeps the first.
        strides=tuple(strides[:1] if shared else strides),
        smoothness=recorded.get("smoothness_factor"),
        cropping=recorded.get("cropping", True),
        shared_stride=shared,
        limits=(recorded.get("lower_limit_stride"), recorded.get("upper_limit_stride")),
        axes={"channels_first": (-2, -1), "channels_last": (-3, -2)}[recorded["data_format"]],
    )
