"""The playground: its script, its style and what it shows, which the build computes."""

from __future__ import annotations

import hashlib
import sys
from importlib.metadata import version
from pathlib import Path

import diffstride_backends
import diffstride_numpy
import diffstride_plotting
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.typing import ExtensionMetadata

import diffstride_core

_LOGGER = logging.getLogger(__name__)
_DOCS = Path(__file__).parents[1]
_PAGE = "playground"
_PACKAGES = (diffstride_core, diffstride_backends, diffstride_numpy, diffstride_plotting)
_DISTRIBUTIONS = ("numpy", "scipy", "matplotlib", "pillow", "scikit-learn")


def _digest() -> str:
    """Return what changes when anything does that the data depends on."""
    digest = hashlib.sha256(" ".join(map(version, _DISTRIBUTIONS)).encode())
    files = [_DOCS / "make_playground.py", *(_DOCS / "playground").glob("*.wav")]
    for package in _PACKAGES:
        assert package.__file__ is not None
        files += sorted(Path(package.__file__).parent.rglob("*.py"))
    for file in files:
        digest.update(file.read_bytes())
    return digest.hexdigest()


def add_files(
    app: Sphinx, pagename: str, templatename: str, context: object, doctree: nodes.document | None
) -> None:
    """Let that page alone load the script and the style."""
    if pagename == _PAGE:
        app.add_css_file("playground/playground.css")
        app.add_js_file("playground/playground.js")


def write_data(app: Sphinx, exception: Exception | None) -> None:
    """Compute the data, unless the folder has it from an earlier build."""
    if exception is not None or app.builder.format != "html":
        return
    folder = Path(app.outdir) / "_static" / "playground" / "data"
    stamp, digest = folder / "made_from", _digest()
    if stamp.is_file() and stamp.read_text() == digest:
        return
    sys.path.insert(0, str(_DOCS))
    import make_playground

    _LOGGER.info("computing what the playground shows: about half a minute")
    make_playground.main(folder)
    stamp.write_text(digest)


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect both to Sphinx."""
    app.connect("html-page-context", add_files)
    app.connect("build-finished", write_data)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
