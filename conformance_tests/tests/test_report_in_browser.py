"""The report as a page, opened in a browser."""

import os
import shutil

import pytest
from diffstride_conformance import html_report
from diffstride_conformance.verify import Comparison, Report

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

COMPARISONS = (
    Comparison("numpy", "float64", "one", "output", 0.0),
    Comparison("numpy", "float64", "two", "output", 0.25),
    Comparison("torch", "float64", "one", "output", 0.002),
    Comparison("torch", "float64", "two", "output", 17.0, "output (float64): <b>worst</b> at (0,)"),
    Comparison("numpy / torch", "float64", "one", "output", 0.01),
)


@pytest.fixture(scope="module")
def browser():
    if not (CHROMIUM and DRIVER):
        required = os.environ.get("DIFFSTRIDE_REQUIRE_BROWSER")
        (pytest.fail if required else pytest.skip)("neither chromium nor chromedriver is installed")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def test_report(browser, tmp_path):
    from selenium.webdriver.common.by import By

    def found(selector):
        return browser.find_elements(By.CSS_SELECTOR, selector)

    page = tmp_path / "report.html"
    facts = {"Python": "3.11", "numpy": "2.4"}
    html_report.write(
        Report(facts, COMPARISONS, {"cupy": "not installed"}, {"jax": "not installed"}), page
    )
    browser.get(page.as_uri())
    assert browser.title == "DiffStride conformance: failed"
    assert found("#verdict")[0].text == "failed"
    assert "3.11" in found("#facts")[0].text
    assert "missing: not installed" in found("#facts")[0].text
    (failure,) = found("#failures li")
    assert "--case two" in failure.text
    assert "<b>worst</b>" in failure.text
    cells = found("#map i")
    assert [cell.get_attribute("title") for cell in cells] == [
        "one: 0",
        "two: 0.25",
        "one: 0.002",
        "two: 17",
    ]
    colours = [cell.value_of_css_property("background-color") for cell in cells]
    assert len(set(colours)) == 4
    assert [table.text.count("output") for table in found("table")] == [1, 1]
    # Its own file, and nothing from anywhere else.
    requests = [
        entry["message"]
        for entry in browser.get_log("performance")
        if '"Network.requestWillBeSent"' in entry["message"] and '"url":"http' in entry["message"]
    ]
    assert requests == []
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
