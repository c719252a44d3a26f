import os
import shutil

import pytest
import torch

# Before JAX is imported: several devices, which tests of sharding and of other devices need.
DEVICES = "--xla_force_host_platform_device_count=4"
os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}"


BROWSERS = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
CHROMIUM, DRIVER = next(filter(None, BROWSERS), None), shutil.which("chromedriver")


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    # A second thread costs these small arrays a hundred times what they take.
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def browser():
    """Headless Chromium, which keeps logs of its console and of what pages ask for."""
    if not (CHROMIUM and DRIVER):
        required = os.environ.get("DIFFSTRIDE_REQUIRE_BROWSER")
        (pytest.fail if required else pytest.skip)(
            "chromium and chromedriver are not both installed"
        )
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()
