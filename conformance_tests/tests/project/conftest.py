"""The documentation's site, and its pages in a browser."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """Build the site, unless it was; the notebooks have the outputs they came with."""
    if built := os.environ.get("DIFFSTRIDE_SITE"):
        return Path(built)
    pytest.importorskip("myst_nb")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-b", "html", "-W", "--keep-going", "-q"]
    command += ["-d", str(folder / "doctrees"), str(ROOT / "docs"), str(folder / "html")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return folder / "html"


@pytest.fixture
def open_page(browser, site):
    """Return what opens a page at a width in pixels, and returns the browser."""

    def opened(page, width=1280):
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        for log in ("browser", "performance"):
            browser.get_log(log)  # which empties it
        browser.get((site / f"{page}.html").as_uri())
        return browser

    return opened


@pytest.fixture
def asked_for(browser):
    """Return what lists the addresses that were asked for since a page was opened."""

    def addresses():
        entries = browser.get_log("performance")
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    return addresses
