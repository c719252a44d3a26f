"""One convention is the default everywhere, and the one that it has replaced is named nowhere."""

import ast
import importlib
import inspect
import os
import re
from pathlib import Path

import diffstride_jax
import diffstride_numpy
import diffstride_torch
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffstride_conformance import oracle
from diffstride_jax import equinox_modules, nnx_modules
from diffstride_torch import models

from diffstride_core.conventions import CONVENTIONS, DEFAULT_CONVENTION

ROOT = Path(__file__).parents[3]

# --- The removed name ----------------------------------------------------------------------------

REMOVED = "relative"

# The word as a name, not as the adjective: quoted, in brackets or a cell of a table, given as a
# convention, before "convention" or "one", joined by hyphens, and the class.
AS_A_NAME = re.compile(
    rf"""["'`]{REMOVED}\\?["'`]"""
    rf"""|\bconvention\s*[=:]\s*{REMOVED}\b|\b{REMOVED}\s+(?:convention|one\b)"""
    rf"""|\({REMOVED}\b(?! to\b)"""
    rf"""|\|\s*{REMOVED}\s*\|"""
    rf"""|\w-{REMOVED}\b(?!-to\b)|\b{REMOVED}-(?!to\b)\w"""
    rf"""|\b{REMOVED.title()}\(|\bclass {REMOVED.title()}\b"""
)

FOLDERS = (
    ".github",
    "adapters",
    "backends",
    "benchmarks",
    "conformance_tests",
    "diffstride_core",
    "docs",
    "experiments",
)
TEXTS = {".cff", ".css", ".html", ".ipynb", ".js", ".json", ".jsonl", ".md", ".py", ".toml"}
TEXTS |= {".txt", ".yaml", ".yml"}


def texts():
    """Yield every file with text in it but those that tell what became of the old name."""
    yield from (path for path in ROOT.iterdir() if path.suffix in TEXTS and path.is_file())
    for top in FOLDERS:
        for folder, folders, names in os.walk(ROOT / top):
            # KaTeX's files are not the project's own.
            skipped = ("__pycache__", "runs", "katex")
            folders[:] = [name for name in folders if name not in skipped]
            yield from (Path(folder) / name for name in names if Path(name).suffix in TEXTS)


def is_exempt(path):
    tells = path.name == "CHANGELOG.md" or path.match("docs/migration*.md")
    return tells or path == Path(__file__)


def lines_with_the_removed_name(text):
    """Return the numbers of the lines, from 1, on which the removed convention is named."""
    return sorted({text.count("\n", 0, found.start()) + 1 for found in AS_A_NAME.finditer(text)})


@pytest.mark.parametrize(
    ("text", "is_named"),
    [
        ('convention="relative"', True),
        (r"\"convention=\"relative\"\n\"", True),
        ("the 'relative' convention", True),
        ("size-48-2.0-convention=relative-method=matmul", True),
        ("| `relative` |", True),
        ("in the relative\nconvention", True),
        ("20, 14, 10 in the relative one", True),
        ("DiffStride (relative), more", True),
        ("`diffstride-relative`", True),
        ("size N | paper | relative | pooling", True),
        ('"2d-relative-backward"', True),
        ("class Relative(Convention):", True),
        ("time, relative to our layer on PyTorch", False),
        ("largest error (relative to the reference's magnitude)", False),
        ("path.relative_to(ROOT)", False),
        ("a relative error of 1e-13", False),
        ("Relative to the largest magnitude", False),
    ],
)
def test_a_name_is_told_from_the_adjective(text, is_named):
    assert bool(lines_with_the_removed_name(text)) == is_named


def test_the_removed_convention_is_named_nowhere():
    paths = list(texts())
    assert len(paths) > 200
    named = {}
    for path in paths:
        if not is_exempt(path):
            lines = lines_with_the_removed_name(path.read_text("utf-8"))
            if lines:
                named[path.relative_to(ROOT).as_posix()] = lines
    assert named == {}


def test_the_removed_convention_is_refused_as_any_unknown_one():
    host, tensor = np.ones((16, 16)), torch.ones(1, 3, 16, 16)
    array = jnp.ones((16, 16))
    for make in (
        lambda name: diffstride_numpy.diff_stride(host, 2.0, convention=name),
        lambda name: diffstride_numpy.output_sizes((16, 16), 2.0, convention=name),
        lambda name: diffstride_numpy.explain(host, 2.0, convention=name),
        lambda name: diffstride_numpy.DiffStride(2.0, convention=name),
        lambda name: diffstride_torch.diff_stride(tensor, 2.0, convention=name),
        lambda name: diffstride_torch.spectral_pool(tensor, 2.0, convention=name),
        lambda name: diffstride_torch.DiffStride2d(2.0, convention=name),
        lambda name: diffstride_torch.SpectralPool2d(2.0, convention=name),
        lambda name: diffstride_torch.DiffStrideConv2d(3, 4, 3, convention=name),
        lambda name: models.resnet18(convention=name),
        lambda name: models.small_resnet(convention=name),
        lambda name: diffstride_torch.replace_downsampling(
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1)), tensor, convention=name
        ),
        lambda name: diffstride_jax.diff_stride(array, 2.0, convention=name),
        lambda name: nnx_modules.DiffStride(2.0, convention=name),
        lambda name: equinox_modules.SpectralPool(2.0, convention=name),
    ):
        messages = []
        for name in (REMOVED, "unknown"):
            with pytest.raises(ValueError, match=r"^convention must be one of") as caught:
                make(name)
            messages.append(str(caught.value))
        names = ", ".join(map(repr, CONVENTIONS))
        assert messages[0] == f"convention must be one of {names}, got '{REMOVED}'"
        assert messages[1] == messages[0].replace(REMOVED, "unknown")


# --- The default ---------------------------------------------------------------------------------

MODULES = (
    "diffstride_backends.functional",
    "diffstride_core.settings",
    "diffstride_jax",
    "diffstride_jax.equinox_modules",
    "diffstride_jax.nnx_modules",
    "diffstride_numpy",
    "diffstride_torch",
    "diffstride_torch.models",
)

# What holds the convention of a call that was made.
RECORDS = {"Explanation", "Settings"}

# What reproduces the paper or the authors' code, and so may have a default of its own: nothing.
REPRODUCTIONS = set()


def public_callables():
    """Yield (name, object) of every public function, class and method."""
    for module in map(importlib.import_module, MODULES):
        for name, value in inspect.getmembers(module):
            if name.startswith("_") or not (inspect.isfunction(value) or inspect.isclass(value)):
                continue
            if not value.__module__.startswith("diffstride_"):
                continue
            yield f"{module.__name__}.{name}", value
            if inspect.isclass(value):
                for method, function in inspect.getmembers(value, inspect.isfunction):
                    if not method.startswith("_"):
                        yield f"{module.__name__}.{name}.{method}", function


def test_every_public_convention_has_the_default():
    found = {}
    for name, value in public_callables():
        try:
            parameters = inspect.signature(value).parameters
        except ValueError:  # classes without a signature of their own
            continue
        if "convention" in parameters and value.__name__ not in RECORDS:
            found[name] = parameters["convention"].default
    assert len(found) > 20
    others = {name for name, default in found.items() if default != DEFAULT_CONVENTION}
    assert others == REPRODUCTIONS


def convention_defaults(tree):
    """Yield (line, default) for each argument and class attribute `convention` that has one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            positional = [*node.args.posonlyargs, *node.args.args]
            pairs = [
                *zip(reversed(positional), reversed(node.args.defaults), strict=False),
                *zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True),
            ]
            yield from (
                (argument.lineno, default)
                for argument, default in pairs
                if argument.arg == "convention" and default is not None
            )
        elif isinstance(node, ast.AnnAssign):
            is_default = ast.unparse(node.target) == "convention" and node.value is not None
            yield from [(node.lineno, node.value)] * is_default


PACKAGES = ("diffstride_core", "backends", "adapters", "experiments", "benchmarks")


def test_every_default_is_the_constant():
    # Private helpers, experiments and benchmarks too: where it is repeated, it can be forgotten.
    found, others = 0, []
    for top in PACKAGES:
        for path in (ROOT / top).rglob("*.py"):
            for line, default in convention_defaults(ast.parse(path.read_text("utf-8"))):
                found += 1
                if ast.unparse(default) != "DEFAULT_CONVENTION":
                    others.append(f"{path.relative_to(ROOT)}:{line}: {ast.unparse(default)}")
    assert found > 20
    assert others == []


def test_the_oracle_has_the_same_default():
    # Written down in it, since it takes nothing from the core.
    defaults = [
        inspect.signature(value).parameters["convention"].default
        for _, value in inspect.getmembers(oracle, inspect.isfunction)
        if "convention" in inspect.signature(value).parameters and value.__name__[0] != "_"
    ]
    assert len(defaults) > 5
    assert set(defaults) == {DEFAULT_CONVENTION}


def test_layers_are_made_with_the_default():
    x = torch.ones(2, 3, 32, 32)
    for layer in (
        diffstride_numpy.DiffStride(2.0),
        diffstride_torch.DiffStride2d(2.0),
        diffstride_torch.SpectralPool2d(2.0),
        diffstride_torch.DiffStrideConv2d(3, 4, 3).pool,
        nnx_modules.DiffStride(2.0),
        equinox_modules.DiffStride(2.0),
        *diffstride_torch.replace_downsampling(
            torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, 2, 1)), x
        ).layers,
        *(m for m in models.resnet18().modules() if isinstance(m, diffstride_torch.DiffStride2d)),
    ):
        assert f"convention={DEFAULT_CONVENTION!r}" in repr(layer)
    assert diffstride_numpy.explain(np.ones(16), 2.0, axes=-1).convention == DEFAULT_CONVENTION
