"""A headless Chromium that a test drives, with a profile of its own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

# It reaches no other machine, draws without a graphics card, and needs no large /dev/shm, which
# containers lack.
_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--window-size=1280,800",
)


@contextmanager
def chromium(profile: Path, *flags: str) -> Iterator[Chrome]:
    """Runs a Chromium until the block is left. Needs Debian's chromium-driver."""
    driver = shutil.which("chromedriver")
    assert driver is not None
    options = ChromeOptions()
    for flag in (*_FLAGS, f"--user-data-dir={profile}", *flags):
        options.add_argument(flag)
    browser = Chrome(options=options, service=Service(driver))
    try:
        yield browser
    finally:
        browser.quit()
