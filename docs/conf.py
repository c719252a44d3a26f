"""Settings of Sphinx; ``make docs`` builds the site."""

import os
import sys
from pathlib import Path

from diffstride_core import __version__

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # else importing modules looks for others
os.environ.setdefault("KERAS_BACKEND", "jax")
sys.path.insert(0, str(Path(__file__).parent / "_extensions"))

project = "DiffStride"
author = "The DiffStride developers"
project_copyright = "The DiffStride developers"
release = version = __version__

extensions = [
    "formulas",
    "links",
    "myst_nb",
    "numpydoc",
    "playground",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx_copybutton",
]
exclude_patterns = ["**/.ipynb_checkpoints"]
nitpicky = True

# Pages are Markdown that a code host shows too.
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3

# `make docs` executes the notebooks; building the site shows what they have.
nb_execution_mode = "off"
nb_ipywidgets_js = {}  # which would be fetched from the network

# Docstrings: `name` links what is documented. Arguments and names of other libraries have no entry
# and need none (_extensions/links.py); any other name without one is an error.
default_role = "py:obj"
autodoc_typehints = "none"  # numpydoc's sections have the types
autodoc_mock_imports = ["cupy"]
suppress_warnings = ["ref.citation"]  # a list of references, not of footnotes
autosummary_generate = False  # the API has a page for each package, not one for each object
numpydoc_show_class_members = False

html_theme = "furo"
html_title = "DiffStride"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_math_renderer = "katex"
html_copy_source = False
html_show_sphinx = False
