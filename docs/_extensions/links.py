"""Links that Markdown and docstrings have for other readers, made to work in the site."""

from __future__ import annotations

import os
from pathlib import Path

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.transforms import SphinxTransform
from sphinx.util.typing import ExtensionMetadata


class PagesOutside(SphinxTransform):
    """Make downloads of links to Markdown files outside the site.

    MyST does that for other files, but takes these for pages.
    """

    default_priority = 500

    def apply(self) -> None:
        """Replace the links of one page."""
        here = Path(self.env.doc2path(self.env.docname)).parent
        for link in list(self.document.findall(addnodes.pending_xref)):
            target = Path(link["reftarget"] + ".md")
            if link.get("refdomain") == "doc" and target.is_absolute() and target.is_file():
                download = addnodes.download_reference(
                    "", "", *link.children, reftarget=os.path.relpath(target, here)
                )
                link.replace_self(download)


def public_name(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Look a name up in the package that exports it: docstrings name it as its module does."""
    if node.get("refdomain") != "py" or not node.get("py:module"):
        return None
    package = node["py:module"].partition(".")[0]
    return env.domains.python_domain.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        f"{package}.{node['reftarget']}",
        node,
        content,
    )


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect both to Sphinx."""
    app.add_transform(PagesOutside)
    app.connect("missing-reference", public_name)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
