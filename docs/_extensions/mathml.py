"""Render mathematics as MathML, by docutils' own converter: pages need no script and no network."""

from __future__ import annotations

import re

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number
from sphinx.util.typing import ExtensionMetadata
from sphinx.writers.html5 import HTML5Translator

_LOGGER = logging.getLogger(__name__)

# TeX asks for large parentheses, which MathML has by itself.
_SIZES = re.compile(r"\\[bB]igg?[lmr]?(?![a-zA-Z])")


def _converted(node: nodes.Node, as_block: bool) -> str:
    tex = _SIZES.sub("", node.astext())
    try:
        return tex2mathml(tex, as_block=as_block)
    except MathError as error:
        _LOGGER.warning("no MathML for %r: %s", tex, error, location=node, type="mathml")
        return f"<code>{nodes.unescape(tex)}</code>"


def _visit_inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(_converted(node, as_block=False))
    raise nodes.SkipNode


def _visit_block(translator: HTML5Translator, node: nodes.math_block) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math-block"))
    translator.body.append(_converted(node, as_block=True))
    if node["number"]:
        number = get_node_equation_number(translator, node)
        translator.body.append(f'<span class="eqno">({number})')
        translator.add_permalink_ref(node, "Link to this equation")
        translator.body.append("</span>")
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app: Sphinx) -> ExtensionMetadata:
    """Make the renderer known to Sphinx as ``mathml``."""
    app.add_html_math_renderer("mathml", (_visit_inline, None), (_visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
