"""The report as a page, opened in a browser."""

import json
import math

import pytest
from diffstride_conformance import html_report
from diffstride_conformance.verify import Comparison, Report

WORST = "output (float64): <b>worst</b> at (0,)"
COMPARISONS = (
    Comparison("numpy", "float64", "one", "output", 0.0),
    Comparison("numpy", "float64", "two", "output", 0.25),
    Comparison("torch", "float64", "one", "output", 0.002),
    Comparison("torch", "float64", "two", "output", 17.0, WORST),
    Comparison("torch", "float64", "two", "dx", 1e-9),
    Comparison("torch", "float32", "two", "dx", math.inf, "dx: shape (3,), expected (4,)"),
    Comparison("numpy / torch", "float64", "one", "output", 0.01),
)


@pytest.fixture(scope="module")
def page(browser, tmp_path_factory):
    """Open the page, and return what finds elements on it."""
    from selenium.webdriver.common.by import By

    report = Report(
        {"Python": "3.11", "numpy": "2.4", "torch": "2.13"},
        COMPARISONS,
        absent={"cupy": "no GPU"},
        missing={"jax": "not installed"},
        not_offered={"numpy": ("automatic differentiation",)},
        options={"numpy": "--backends numpy", "torch": "--backends torch"},
        seconds=12.3,
    )
    path = tmp_path_factory.mktemp("report") / "report.html"
    html_report.write(report, path)
    browser.get(path.as_uri())
    return lambda selector: browser.find_elements(By.CSS_SELECTOR, selector)


def test_header(browser, page):
    assert browser.title == "DiffStride conformance: failed"
    assert page("#verdict")[0].text == "failed"
    assert "7 comparisons in 12 seconds, 2 failures" in page("p")[0].text
    facts = page("#facts")[0].text
    for fact in ("3.11", "not offered: automatic differentiation", "absent: no GPU"):
        assert fact in facts
    assert [card.text for card in page("#facts .missing")] == ["jax\nmissing: not installed"]


def test_failures(page):
    first, second = page("#failures li")
    assert WORST in first.text
    assert "diffstride-verify --backends torch --dtype float64 --case two" in first.text
    assert "expected (4,)" in second.text


def test_tables(page):
    def rows(selector):
        return [row.text.split() for row in page(f"{selector} tbody tr")]

    assert [heading.text for heading in page("#reference h3")] == ["float64", "float32"]
    assert rows("#reference") == [["output", "0.25", "17"], ["dx", "1e-09"], ["dx", "inf"]]
    assert [cell.text for cell in page("#reference td.failed")] == ["17", "inf"]
    assert [heading.text.split() for heading in page("#pairs th")][1] == ["numpy", "torch"]
    assert rows("#pairs") == [["output", "0.01"]]


def test_map_of_errors(page):
    assert [caption.text.split()[0] for caption in page("#map figcaption")] == ["output", "dx"]
    cells = page("#map i:not(.none)")
    titles = [cell.get_attribute("title") for cell in cells]
    assert titles == ["one: exact", "two: 0.25", "one: 0.002", "two: 17", "two: 1e-09", "two: inf"]
    colours = [cell.value_of_css_property("background-color") for cell in cells]
    exact, large, small, failed, tiny, failed_too = colours
    assert failed == failed_too
    assert len({exact, large, small, failed, tiny}) == 5
    assert all(cell.size["width"] >= 3 and cell.size["height"] >= 10 for cell in cells)


def test_colours_follow_the_scheme(browser, page):
    def ground(scheme):
        feature = {"name": "prefers-color-scheme", "value": scheme}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
        return page("body")[0].value_of_css_property("background-color")

    assert ground("light") != ground("dark")


def test_the_page_is_all_there_is(browser, page):
    messages = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = {
        message["params"]["request"]["url"].partition(":")[0]
        for message in messages
        if message["method"] == "Network.requestWillBeSent"
    }
    assert urls <= {"file", "data"}
    assert "file" in urls
    assert browser.get_log("browser") == []
    assert page("script, link[rel=stylesheet], img") == []
