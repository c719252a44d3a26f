"""Render formulas with KaTeX, whose files come with the site: pages fetch nothing from elsewhere.

``docs/_static/katex`` is the npm package katex 0.19.1 without what pages do not load: its minified
script and style sheet, its fonts as WOFF2, and its licence. To take another version, replace these
files by those of ``npm pack katex@VERSION``, folder ``package/dist``.

A page has its formulas as TeX, which ``formulas.js`` hands to KaTeX when the page is loaded. Only
pages with formulas load either script.
"""

from __future__ import annotations

from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.math import get_node_equation_number
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator


def _visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    tex = translator.encode(node.astext())
    translator.body.append(f'<span class="formula">{tex}</span>')
    raise nodes.SkipNode


def _visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="formula-block"))
    tex = translator.encode(node.astext())
    translator.body.append(f'<div class="formula">{tex}</div>')
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def _load_katex(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    if tree is not None and app.env.domains.math_domain.has_equations(page):
        app.add_css_file("katex/katex.min.css")
        app.add_js_file("katex/katex.min.js", loading_method="defer")
        app.add_js_file("formulas.js", loading_method="defer")


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make the renderer known to Sphinx as ``katex``."""
    app.add_html_math_renderer("katex", (_visit_inline, None), (_visit_block, None))
    app.connect("html-page-context", _load_katex)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
