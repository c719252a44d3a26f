"""What the distribution holds, what importing it loads, and which package may know which."""

from __future__ import annotations

import ast
import email
import email.message
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[3]

# Where each package of the distribution lives in the source tree.
PACKAGES = {
    "diffstride_core": ROOT / "diffstride_core",
    "diffstride_backends": ROOT / "backends/diffstride_backends",
    "diffstride_plotting": ROOT / "backends/diffstride_plotting",
    "diffstride_numpy": ROOT / "adapters/diffstride_numpy",
    "diffstride_torch": ROOT / "adapters/diffstride_torch",
    "diffstride_jax": ROOT / "adapters/diffstride_jax",
    "diffstride_cupy": ROOT / "adapters/diffstride_cupy",
    "diffstride_keras": ROOT / "adapters/diffstride_keras",
    "diffstride_conformance": ROOT / "conformance_tests/diffstride_conformance",
    "diffstride_experiments": ROOT / "experiments/diffstride_experiments",
}
ADAPTERS = {
    "diffstride_numpy",
    "diffstride_torch",
    "diffstride_jax",
    "diffstride_cupy",
    "diffstride_keras",
}

# The packages of the distribution that each may import, itself aside. Conformance reaches the
# adapters through the registry alone, so that it runs with whichever frameworks are installed.
MAY_IMPORT = {
    "diffstride_core": set(),
    "diffstride_backends": {"diffstride_core"},
    "diffstride_plotting": {"diffstride_core"},
    "diffstride_numpy": {"diffstride_core", "diffstride_backends", "diffstride_plotting"},
    "diffstride_torch": {"diffstride_core", "diffstride_backends", "diffstride_plotting"},
    "diffstride_jax": {"diffstride_core", "diffstride_backends"},
    "diffstride_cupy": {"diffstride_core", "diffstride_backends"},
    # JAX or PyTorch, whichever Keras runs on, it reaches through the registry.
    "diffstride_keras": {"diffstride_core", "diffstride_backends"},
    "diffstride_conformance": {"diffstride_core", "diffstride_backends"},
    "diffstride_experiments": {
        "diffstride_core",
        "diffstride_backends",
        "diffstride_plotting",
        *ADAPTERS,
    },
}

# Import name -> the family that X_backend.py and X_private.py are named after.
FRAMEWORKS = {
    "torch": "torch",
    "torchvision": "torch",
    "jax": "jax",
    "jaxlib": "jax",
    "flax": "jax",
    "equinox": "jax",
    "cupy": "cupy",
    "cupyx": "cupy",
    "keras": "keras",
}

# The families that a whole package may import, wherever in it.
FRAMEWORKS_OF_PACKAGE = {
    "diffstride_core": set(),
    "diffstride_backends": set(),
    "diffstride_plotting": set(),
    "diffstride_numpy": set(),
    "diffstride_torch": {"torch"},
    "diffstride_jax": {"jax"},
    "diffstride_cupy": {"cupy"},
    "diffstride_keras": {"keras"},
    "diffstride_conformance": set(),
    "diffstride_experiments": {"torch"},
}

EXTRAS = {
    "torch",
    "jax",
    "flax",
    "equinox",
    "keras",
    "cupy-cuda12x",
    "cupy-cuda13x",
    "conformance",
    "plot",
    "demo",
    "audio",
    "onnx",
    "tensorboard",
    "experiments",
    "docs",
    "dev",
}
# A lower bound above these would shut out releases that the project says it supports.
HIGHEST_FLOOR = {
    "torch": Version("2.11"),
    "jax": Version("0.10"),
    "cupy-cuda12x": Version("14"),
    "cupy-cuda13x": Version("14"),
}

# The engines evaluate whatever mask and size rule they are handed; only these files of the core
# know a convention by name.
FILES_THAT_NAME_CONVENTIONS = {
    f"conventions/{name}.py" for name in ("__init__", "nominal", "paper", "tensorflow")
}
CONVENTION_NAMES = re.compile("nominal|paper|tensorflow", re.IGNORECASE)


# --- what is built ---------------------------------------------------------------------------


def build(kind: str, out: Path) -> Path:
    """Build one distribution of the source tree without network; return its path."""
    command = [sys.executable, "-m", "build", f"--{kind}", "--no-isolation", "--outdir"]
    command += [str(out), str(ROOT)]
    # Not from the source tree: a folder build/ there could be taken for the tool.
    done = subprocess.run(command, cwd=out, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = out.iterdir()
    return built


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[zipfile.ZipFile]:
    with zipfile.ZipFile(build("wheel", tmp_path_factory.mktemp("wheel"))) as archive:
        yield archive


@pytest.fixture(scope="module")
def metadata(wheel: zipfile.ZipFile) -> email.message.Message:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(wheel.read(name))


@pytest.fixture(scope="module")
def requirements(metadata: email.message.Message) -> list[Requirement]:
    return [Requirement(line) for line in metadata.get_all("Requires-Dist", [])]


def test_wheel_top_level_names(wheel: zipfile.ZipFile, metadata: email.message.Message) -> None:
    top_level = {name.split("/")[0] for name in wheel.namelist()}
    assert top_level == {*PACKAGES, f"diffstride-{metadata['Version']}.dist-info"}


def test_wheel_holds_exactly_the_packages_files(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in wheel.namelist() if ".dist-info/" not in name} == expected


@pytest.mark.parametrize("package", PACKAGES)
def test_wheel_package_is_importable_and_typed(wheel: zipfile.ZipFile, package: str) -> None:
    assert {f"{package}/__init__.py", f"{package}/py.typed"} <= set(wheel.namelist())


def test_wheel_holds_licence(wheel: zipfile.ZipFile, metadata: email.message.Message) -> None:
    (name,) = (n for n in wheel.namelist() if n.endswith(".dist-info/licenses/LICENSE"))
    assert wheel.read(name) == (ROOT / "LICENSE").read_bytes()
    assert metadata["License-Expression"] == "Apache-2.0"


def test_wheel_holds_golden_data(wheel: zipfile.ZipFile) -> None:
    golden = [n for n in wheel.namelist() if n.startswith("diffstride_conformance/golden/")]
    assert any(name.endswith(".npz") for name in golden)
    assert any(name.endswith("README.md") for name in golden)


def test_wheel_holds_no_tests(wheel: zipfile.ZipFile) -> None:
    parts = [Path(name) for name in wheel.namelist()]
    assert [str(p) for p in parts if p.name == "conftest.py" or p.match("test_*.py")] == []
    assert [str(p) for p in parts if "tests" in p.parts] == []


def test_sdist_is_complete_and_clean(tmp_path: Path) -> None:
    with tarfile.open(build("sdist", tmp_path)) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "CHANGELOG.md",
        "CITATION.cff",
        "LICENSE",
        "Makefile",
        "README.md",
        "constraints.txt",
        "pyproject.toml",
        "conformance_tests/tests/project/test_packaging.py",
        "conformance_tests/diffstride_conformance/py.typed",
    } <= names
    unwanted = {".venv", ".git", "runs", "dist", "build", "__pycache__"}
    assert [name for name in names if unwanted & set(Path(name).parts)] == []


def test_metadata_name_and_python(metadata: email.message.Message) -> None:
    assert metadata["Name"] == "diffstride"
    assert metadata["Requires-Python"] == ">=3.11"


def test_metadata_runtime_dependencies(requirements: list[Requirement]) -> None:
    runtime = {r.name for r in requirements if "extra" not in str(r.marker)}
    assert runtime == {"array-api-compat", "numpy", "scipy"}


def test_metadata_extras(metadata: email.message.Message) -> None:
    assert set(metadata.get_all("Provides-Extra", [])) == EXTRAS


def test_metadata_pins_and_caps_nothing(requirements: list[Requirement]) -> None:
    assert [str(r) for r in requirements if any(s.operator != ">=" for s in r.specifier)] == []


@pytest.mark.parametrize("name", HIGHEST_FLOOR)
def test_metadata_floors(requirements: list[Requirement], name: str) -> None:
    floors = [Version(s.version) for r in requirements if r.name == name for s in r.specifier]
    assert floors
    assert max(floors) <= HIGHEST_FLOOR[name]


def test_one_version_everywhere(metadata: email.message.Message) -> None:
    import diffstride_core

    citation = re.findall(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text("utf-8"), re.M)
    changelog = re.findall(r"^## \[(\S+)\]", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert diffstride_core.__version__ == metadata["Version"]
    assert citation == [metadata["Version"]]
    assert changelog[0] == metadata["Version"]


def test_readme_names_both_commands() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert "make demo" in readme
    assert "make test" in readme


# --- what an import loads --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("package", "unwanted"),
    [
        ("diffstride_core", {"torch", "jax", "cupy"}),
        ("diffstride_backends", {"torch", "jax", "cupy"}),
        ("diffstride_backends.registry", {"torch", "jax", "cupy"}),
        ("diffstride_numpy", {"torch", "jax", "cupy"}),
        ("diffstride_torch", {"jax", "cupy"}),
        ("diffstride_jax", {"torch", "cupy"}),
        ("diffstride_cupy", {"torch", "jax"}),
        ("diffstride_conformance", {"torch", "jax", "cupy"}),
    ],
)
def test_import_loads_no_other_framework(package: str, unwanted: set[str]) -> None:
    check_import_loads_none_of(package, unwanted, dict(os.environ))


# Keras itself imports JAX whatever it runs on.
@pytest.mark.parametrize(("backend", "unwanted"), [("jax", {"torch", "cupy"}), ("torch", {"cupy"})])
def test_import_loads_the_backend_of_keras_alone(
    backend: str, unwanted: set[str], tmp_path: Path
) -> None:
    environment = {**os.environ, "KERAS_BACKEND": backend, "KERAS_HOME": str(tmp_path)}
    check_import_loads_none_of("diffstride_keras", unwanted, environment)


def check_import_loads_none_of(
    package: str, unwanted: set[str], environment: dict[str, str]
) -> None:
    # The unwanted modules are replaced by ones that refuse to load, so that an attempt shows even
    # where the framework is missing and the package would have caught the ImportError. Asking
    # whether a framework is installed stays allowed.
    code = f"""
import sys
from importlib.machinery import ModuleSpec

attempts = set()

class Refuse:
    def find_spec(self, name, path=None, target=None):
        return ModuleSpec(name, self) if name in {unwanted!r} else None

    def create_module(self, spec):
        attempts.add(spec.name)
        raise ImportError(f"{{spec.name}} is refused")

    def exec_module(self, module):
        pass

sys.meta_path.insert(0, Refuse())
import {package}
print(*(attempts | ({unwanted!r} & set(sys.modules))))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == []


# --- which package may know which ------------------------------------------------------------


def python_files(package: str) -> list[Path]:
    files = sorted(PACKAGES[package].rglob("*.py"))
    assert files, f"{package} has no Python file"
    return files


def absolute_imports(path: Path) -> set[str]:
    """Every module that a file imports by an absolute name, type-checking blocks included."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            assert node.module is not None
            found.add(node.module)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func
            called = called.id if isinstance(called, ast.Name) else called
            name = node.args[0]
            # A name worked out at run time passes: that is how the registry loads a backend.
            if (
                called in {"import_module", "__import__"}
                and isinstance(name, ast.Constant)
                and isinstance(name.value, str)
                and not name.value.startswith(".")
            ):
                found.add(name.value)
    return found


def imported_packages(path: Path) -> set[str]:
    return {module.partition(".")[0] for module in absolute_imports(path)}


def test_every_package_of_the_tree_is_known() -> None:
    # A package that is missing from the tables above would escape all the tests below.
    shells = [ROOT, *(ROOT / top for top in ("backends", "adapters"))]
    shells += [ROOT / "conformance_tests", ROOT / "experiments"]
    found = {p.parent for shell in shells for p in shell.glob("*/__init__.py")}
    assert found == set(PACKAGES.values())


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_towards_the_core(package: str) -> None:
    allowed = {package} | MAY_IMPORT[package]
    # The folders themselves are importable as empty namespaces in an editable install.
    ours = {*PACKAGES, "backends", "adapters", "conformance_tests", "experiments"}
    wrong = {
        str(path.relative_to(ROOT)): sorted(names)
        for path in python_files(package)
        if (names := (imported_packages(path) & ours) - allowed)
    }
    assert wrong == {}


@pytest.mark.parametrize("package", PACKAGES)
def test_frameworks_are_imported_only_where_they_belong(package: str) -> None:
    wrong = {}
    for path in python_files(package):
        allowed = set(FRAMEWORKS_OF_PACKAGE[package])
        if package == "diffstride_backends":
            family, _, part = path.stem.partition("_")
            if part in ("backend", "private"):
                allowed.add(family)
        found = imported_packages(path) & set(FRAMEWORKS)
        if names := {name for name in found if FRAMEWORKS[name] not in allowed}:
            wrong[str(path.relative_to(ROOT))] = sorted(names)
    assert wrong == {}


def test_core_imports_nothing_but_numpy_and_its_namespaces() -> None:
    allowed = {*sys.stdlib_module_names, "numpy", "array_api_compat", "diffstride_core"}
    wrong = {
        path.name: sorted(names)
        for path in python_files("diffstride_core")
        if (names := imported_packages(path) - allowed)
    }
    assert wrong == {}


def test_one_private_module_imports_array_api_compat() -> None:
    importers = [
        path
        for package in PACKAGES
        for path in python_files(package)
        if "array_api_compat" in imported_packages(path)
    ]
    assert len(importers) == 1, importers
    assert importers[0].is_relative_to(PACKAGES["diffstride_core"])
    assert importers[0].name.startswith("_")
    assert importers[0].name != "__init__.py"


def test_no_module_is_named_after_a_framework() -> None:
    # With its folder on the path, such a file would be imported in the framework's place. The
    # folder of the tests is on no path.
    names = {*FRAMEWORKS, "numpy", "scipy"}
    tests = ROOT / "conformance_tests/tests"
    options = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["pytest"]
    assert "conformance_tests/tests" not in options["ini_options"]["pythonpath"]
    folders = ("diffstride_core", "backends", "adapters", "conformance_tests", "experiments")
    files = [
        p
        for folder in folders
        for p in (ROOT / folder).rglob("*")
        if p.stem in names and p.parent != tests
    ]
    assert [str(p.relative_to(ROOT)) for p in files if p.is_dir() or p.suffix == ".py"] == []


def strings_in_code(path: Path) -> Iterator[tuple[int, str]]:
    """Each identifier and string of a file with its line; comments and docstrings left out."""
    tree = ast.parse(path.read_text("utf-8"))
    docstrings = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                docstrings.add(first.value)
    for node in ast.walk(tree):
        if node in docstrings:
            continue
        for _, value in ast.iter_fields(node):
            for text in value if isinstance(value, list) else [value]:
                if isinstance(text, str):
                    yield getattr(node, "lineno", 0), text


def test_engines_never_see_a_conventions_name() -> None:
    engines = [
        path
        for path in python_files("diffstride_core")
        if path.relative_to(PACKAGES["diffstride_core"]).as_posix()
        not in FILES_THAT_NAME_CONVENTIONS
    ]
    named = [
        f"{path.name}:{line}: {text}"
        for path in engines
        for line, text in [(0, path.stem), *strings_in_code(path)]
        if CONVENTION_NAMES.search(text)
    ]
    assert engines
    assert named == []


def test_files_that_name_conventions_still_do() -> None:
    # Else the exception above has outlived its reason.
    for name in FILES_THAT_NAME_CONVENTIONS:
        path = PACKAGES["diffstride_core"] / name
        assert any(CONVENTION_NAMES.search(text) for _, text in strings_in_code(path))
