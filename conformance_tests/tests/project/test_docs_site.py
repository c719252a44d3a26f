"""The documentation's site is built without a warning and its pages are good in a browser."""

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]

# Some pages of each kind, and their headings.
PAGES = {
    "index": "DiffStride",
    "mathematics": "The mathematics",
    "plain_sums": "As plain sums",
    "choosing": "Choosing convention, placement, smoothness, norm and learning rate",
    "performance": "How fast, and why",
    "torch/surgery": "Adding DiffStride to an existing model",
    "notebooks/2_how_a_stride_gets_a_gradient": "2. How a stride gets a gradient",
    "api/numpy": "NumPy",
    "api/torch": "PyTorch",
}

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("page", PAGES)
def test_page(open_page, page):
    browser = open_page(page)
    heading = browser.execute_script("return document.querySelector('h1').firstChild.data")
    assert heading == PAGES[page]
    assert PAGES[page] in browser.title
    broken = "return [...document.images].filter(i => !i.naturalWidth).map(i => i.src)"
    assert browser.execute_script(broken) == []
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("page", PAGES)
def test_page_asks_nothing_of_the_network(open_page, asked_for, page):
    open_page(page)
    urls = asked_for()
    assert urls
    assert [url for url in urls if not url.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("page", ["index", "mathematics", "performance"])
def test_page_is_no_wider_than_the_window(open_page, page, width):
    browser = open_page(page, width)
    page = "document.documentElement"
    content, window = browser.execute_script(f"return [{page}.scrollWidth, {page}.clientWidth]")
    assert content <= window
    # All but a scroll bar.
    assert width - 20 <= window <= width


@pytest.mark.parametrize(
    ("page", "least"), [("mathematics", 10), ("notebooks/2_how_a_stride_gets_a_gradient", 3)]
)
def test_formulas_are_rendered(open_page, site, page, least):
    browser = open_page(page)
    formulas = browser.execute_script(
        "return [...document.querySelectorAll('.formula')].map(f => [f.offsetWidth,"
        " f.offsetHeight, f.querySelector('.katex-html')?.textContent])"
    )
    assert len(formulas) >= least
    assert all(width > 3 and height > 5 for width, height, _ in formulas)
    assert [text for *_, text in formulas if text is None or "\\" in text] == []
    # The fonts come with the site, and so does KaTeX's licence.
    fonts = browser.execute_async_script(
        "const done = arguments[0]; document.fonts.ready.then(fonts => done("
        "[...fonts].filter(f => f.status === 'loaded').map(f => f.family)))"
    )
    assert "KaTeX_Main" in fonts
    assert (site / "_static/katex/LICENSE").is_file()
    assert "$" not in browser.execute_script(
        "return [...document.querySelectorAll('article p')].map(p => p.innerText).join(' ')"
    )


def test_links_lead_somewhere(site):
    missing = set()
    for page in site.rglob("*.html"):
        for link in re.findall(r'(?:href|src)="([^"#?]+)', page.read_text("utf-8")):
            if not re.match(r"\w+:", link) and not (page.parent / link).exists():
                missing.add((page.relative_to(site).as_posix(), link))
    assert missing == set()


def test_every_recipe_and_script_that_a_page_names_comes_with_the_site(site):
    names = {path.name for path in (site / "_downloads").rglob("*") if path.is_file()}
    assert {"oracle.py", "digits.toml", "CHANGELOG.md", "README.md", "layers.py"} <= names


def test_support_range_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"]
    floors = {"Python": project["requires-python"].removeprefix(">=")}
    names = {"numpy": "NumPy", "scipy": "SciPy", "torch": "PyTorch", "jax": "JAX", "flax": "Flax"}
    names |= {"equinox": "Equinox", "cupy-cuda12x": "CuPy", "matplotlib": "Matplotlib"}
    names |= {"keras": "Keras"}
    for extra in ("torch", "flax", "equinox", "keras", "cupy-cuda12x", "plot"):
        for requirement in (*project["dependencies"], *extras[extra]):
            name, floor = requirement.split(">=")
            floors[names.get(name, name)] = floor
    page = (ROOT / "docs/support.md").read_text()
    assert dict(re.findall(r"^\| ([\w-]+) \| ([\d.]+) \|", page, re.M)) == floors
