"""Write the packaged subset of the golden data from the full recording.

Usage: ``python make_golden_subset.py FULL_FOLDER``

Every special case, the smallest case of each group, a few chosen by hand and all trajectories are
taken first, then the remaining cases by size, the smallest first, for as long as they fit.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

SUBSET_FOLDER = Path(__file__).parent / "diffstride_conformance" / "golden"
ARRAYS_FILE = "golden.npz"
CHOSEN_BY_HAND = (
    "024_D_33x47",  # height and width odd
    "044_D_32x32",  # no cropping, even sizes, gradients in both strides
    "056_D_32x32",  # smoothness 1
    "075_D_32x32",  # beyond the upper limit
    "108_F_33x47",  # fixed pooling of odd sizes
)
MOST_BYTES = 1_950_000
"""Of arrays before compression; noise in float32 hardly compresses. The folder stays below 2 MB."""


def read_arrays(folder: Path, entry: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
    """Read one entry's arrays under their full names, ``ID/NAME``."""
    with np.load(folder / entry["file"]) as archive:
        return {key: archive[key] for key in archive.files if key.startswith(entry["id"] + "/")}


def main() -> None:
    """Choose the entries, then write the arrays and the two manifests."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("full_folder", type=Path)
    folder: Path = parser.parse_args().full_folder

    manifest = json.loads((folder / "manifest.json").read_text())
    trajectories = json.loads((folder / "trajectories.json").read_text())
    arrays_of = {
        entry["id"]: read_arrays(folder, entry) for entry in [*manifest["cases"], *trajectories]
    }
    bytes_of = {
        entry_id: sum(array.nbytes for array in arrays.values())
        for entry_id, arrays in arrays_of.items()
    }

    by_size = sorted(manifest["cases"], key=lambda case: bytes_of[case["id"]])
    smallest_of_group = {case["group"]: case["id"] for case in reversed(by_size)}
    chosen = {entry["id"] for entry in trajectories}
    chosen |= {case["id"] for case in manifest["cases"] if case["special"] is not None}
    chosen |= set(CHOSEN_BY_HAND)
    chosen |= set(smallest_of_group.values())
    for case in by_size:
        if sum(bytes_of[entry_id] for entry_id in chosen) + bytes_of[case["id"]] > MOST_BYTES:
            break
        chosen.add(case["id"])

    cases = [{**case, "file": ARRAYS_FILE} for case in manifest["cases"] if case["id"] in chosen]
    # The recording lists a trajectory's numbers in its manifest too; the arrays are enough.
    described = [
        {
            **{key: value for key, value in entry.items() if not isinstance(value, list)},
            "file": ARRAYS_FILE,
        }
        for entry in trajectories
    ]
    arrays: dict[str, Any] = {
        key: array
        for entry in [*cases, *described]
        for key, array in arrays_of[entry["id"]].items()
    }

    SUBSET_FOLDER.mkdir(exist_ok=True)
    np.savez_compressed(SUBSET_FOLDER / ARRAYS_FILE, **arrays)
    for name, content in (
        ("manifest.json", {"source": manifest["source"], "cases": cases}),
        ("trajectories.json", described),
    ):
        (SUBSET_FOLDER / name).write_text(json.dumps(content, indent=1) + "\n")
    print(f"{len(cases)} of {len(manifest['cases'])} cases, {len(described)} trajectories")


if __name__ == "__main__":
    main()
