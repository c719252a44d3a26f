"""Links that Markdown and docstrings have for other readers, made to work in the site."""

from __future__ import annotations

import os
import re
import sys
from importlib import import_module
from inspect import ismodule
from operator import attrgetter
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.autosummary import ImportExceptionGroup, import_by_name
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.nodes import make_refnode
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


class Terms(SphinxPostTransform):
    """Let Markdown links lead to terms of the glossary: ``[window](glossary.md#term-window)``.

    MyST looks for headings alone. A term that is not there is left to it, which warns.
    """

    default_priority = 5  # before MyST's

    def run(self, **_options: Any) -> None:
        """Replace the links of one page."""
        terms = {
            anchor: page
            for (kind, _), (page, anchor) in self.env.domains.standard_domain.objects.items()
            if kind == "term"
        }
        for link in list(self.document.findall(addnodes.pending_xref)):
            anchor = link.get("reftargetid")
            if link.get("refdomain") == "doc" and terms.get(anchor) == link["reftarget"]:
                link.replace_self(
                    make_refnode(
                        self.app.builder,
                        self.env.docname,
                        terms[anchor],
                        anchor,
                        [child.deepcopy() for child in link.children],
                    )
                )


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


def name_in_module(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Look a name up as Python does, in the module that defines what the docstring documents.

    A name that this module has from another library has no entry to link: it is shown as code.
    """
    if node.get("refdomain") != "py" or (module := _defining_module(node)) is None:
        return None
    head, _, rest = node["reftarget"].partition(".")
    try:
        found = getattr(module, head)
        if rest:
            attrgetter(rest)(found)
    except AttributeError:
        return None
    home = found.__name__ if ismodule(found) else getattr(found, "__module__", "")
    if not home.startswith("diffstride"):
        return content
    target = home if ismodule(found) else f"{home}.{getattr(found, '__qualname__', head)}"
    return env.domains.python_domain.resolve_xref(
        env,
        node["refdoc"],
        app.builder,
        node["reftype"],
        f"{target}.{rest}" if rest else target,
        node,
        content,
    )


def name_without_entry(
    app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, content: nodes.Element
) -> nodes.Element | None:
    """Show a name that has no entry to link; return None, so that Sphinx warns, if it should.

    Arguments, attributes and symbols are emphasised: identifiers in lower case, unless a function
    of the same package has that name, and single letters. Names of other libraries are shown as
    code, if these have them.
    """
    if node.get("refdomain") != "py" or node["reftype"] != "obj":
        return None
    name = node["reftarget"]
    if re.fullmatch(r"[a-z_][a-z0-9_]*|[A-Za-z]", name):
        packages = {
            _package(full)
            for full, entry in env.domains.python_domain.objects.items()
            if entry.objtype == "function" and full.rpartition(".")[2] == name
        }
        is_function = _package(node.get("py:module") or "") in packages
        return None if is_function else nodes.emphasis("", content.astext())
    return content if not name.startswith("diffstride") and _exists(name) else None


def _defining_module(node: nodes.Node) -> ModuleType | None:
    """Return the module that defines the object whose description a node is in, if any."""
    while (node := node.parent) is not None:
        if isinstance(node, addnodes.desc) and isinstance(node[0], addnodes.desc_signature):
            signature = node[0]
            if not (signature.get("module") and signature.get("fullname")):
                return None
            # The class of a method: that of an inherited one would be where its base is.
            name = signature["class"] or signature["fullname"]
            found = getattr(import_module(signature["module"]), name, None)
            return sys.modules.get(getattr(found, "__module__", None) or signature["module"])
    return None


def _package(name: str) -> str:
    return name.partition(".")[0]


def _exists(name: str) -> bool:
    try:
        import_by_name(name)
    except ImportExceptionGroup:
        return False
    return "." in name


def setup(app: Sphinx) -> ExtensionMetadata:
    """Connect all of them to Sphinx."""
    app.add_transform(PagesOutside)
    app.add_post_transform(Terms)
    app.connect("missing-reference", public_name)
    app.connect("missing-reference", name_in_module)
    app.connect("missing-reference", name_without_entry)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
