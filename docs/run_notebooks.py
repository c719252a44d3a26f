"""Execute the notebooks in place, from top to bottom, as ``make docs`` does.

``python docs/run_notebooks.py [NOTEBOOK...]``; without names all of ``docs/notebooks``. Of the
metadata only what a notebook needs is kept, so that a file changes where its outputs do.
"""

import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent / "notebooks"
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}


def execute(path: Path) -> None:
    """Execute a notebook, and write it back with its outputs."""
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        kernel_name=KERNEL["name"],
        timeout=300,
        record_timing=False,
        coalesce_streams=True,
        store_widget_state=False,
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    notebook.metadata = {"kernelspec": KERNEL, "language_info": {"name": "python"}}
    nbformat.write(notebook, path)


def main(paths: list[Path]) -> None:
    """Execute the notebooks one after another."""
    for path in paths or sorted(FOLDER.glob("*.ipynb")):
        begun = time.perf_counter()
        execute(path)
        print(f"{path.name}: {time.perf_counter() - begun:.0f} s")


if __name__ == "__main__":
    main([Path(name) for name in sys.argv[1:]])
