"""A headless Chromium with an empty profile, for the tests of pages."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = None if CHROMIUM and DRIVER else "chromium and chromedriver (scripts/setup_browser.sh)"

# No background services: nothing but the page itself may want the network.
_FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-quic",
    "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Page:
    """A page opened from disk in one browser."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def open(self, path: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Open a report and wait until it stands."""
        self.driver.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        self.driver.get(path.resolve().as_uri())
        self.until("return document.documentElement.dataset.ready === 'true'")

    def js(self, code: str, *arguments: Any) -> Any:
        """Run a function body in the page; its result."""
        return self.driver.execute_script(code, *arguments)

    def until(self, code: str, seconds: float = 10.0) -> Any:
        """Wait until a function body returns something true; that."""
        ends = time.monotonic() + seconds
        while not (value := self.js(code)):
            assert time.monotonic() < ends, f"{code} is not true; console: {self.console()}"
            time.sleep(0.02)
        return value

    def text(self, selector: str) -> str:
        """The text of the first element that a selector finds."""
        return str(self.js("return document.querySelector(arguments[0]).textContent", selector))

    def count(self, selector: str) -> int:
        """How many elements a selector finds."""
        return int(self.js("return document.querySelectorAll(arguments[0]).length", selector))

    def set(self, name: str, value: str) -> None:
        """Give a filter of the transcripts a value, as a reader does."""
        self.js(
            "const input = document.querySelector(`#browser [name=${arguments[0]}]`);"
            "input.value = arguments[1];"
            "const event = input.tagName === 'SELECT' ? 'change' : 'input';"
            "input.dispatchEvent(new Event(event, {bubbles: true}))",
            name, value,
        )  # fmt: skip

    def press(self, *keys: str) -> None:
        """Press keys, one after the other."""
        from selenium.webdriver.common.action_chains import ActionChains

        for key in keys:
            ActionChains(self.driver).send_keys(key).perform()

    def console(self) -> list[str]:
        """What the console said since it was last asked: errors and warnings."""
        return [entry["message"] for entry in self.driver.get_log("browser")]


@contextmanager
def browser(profile: Path) -> Iterator[Page]:
    """A browser with an empty profile."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.binary_location = str(CHROMIUM)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(str(DRIVER)))
    try:
        yield Page(driver)
    finally:
        driver.quit()
