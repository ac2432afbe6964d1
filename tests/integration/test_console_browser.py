"""The console in a real browser: a headless Chromium, driven by Selenium."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import chromium
from running import StartDaemon
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait
from wire import turn

from ruvd.rpc.identity import tokens
from ruvd.rpc.identity.caller import Role
from ruvd.v1 import session_service_pb2 as pb

pytestmark = pytest.mark.skipif(
    shutil.which("chromedriver") is None, reason="needs Debian's chromium and chromium-driver"
)
SECONDS = 60
COUNT = 1005
FLAGS = (
    "--engine", "echo", "--echo-delay-seconds", "0.05", "--max-sessions", "2000",
    "--console-listen", "127.0.0.1:0",
)  # fmt: skip
_MILLISECONDS = (
    "const e = performance.getEntriesByType('navigation')[0]; return e.domComplete - e.startTime;"
)


def text(browser: Chrome) -> str:
    return browser.find_element(By.TAG_NAME, "body").text


def until(browser: Chrome, holds: Callable[[], bool]) -> None:
    WebDriverWait(browser, SECONDS, 0.1).until(lambda _: holds())


def is_loaded_within_a_second(browser: Chrome) -> bool:
    """Loads the page again. On a busy machine only some of many times may be short."""
    browser.refresh()
    milliseconds = browser.execute_script(_MILLISECONDS)
    print(f"the page was loaded and drawn in {milliseconds:.0f} ms")
    return bool(milliseconds < 1000)


def see_the_pages(browser: Chrome, url: str, token: str) -> None:
    """Looks at all that the console shows while a stream runs."""
    browser.get(f"{url}/")
    assert "talk" not in browser.page_source
    assert browser.find_elements(By.TAG_NAME, "td") == []
    scheme, _, address = url.partition("://")
    browser.get(f"{scheme}://ann:{token}@{address}/")
    until(browser, lambda: "user of ann" in text(browser))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#sessions tbody tr")) == 1000
    until(browser, lambda: is_loaded_within_a_second(browser))
    browser.find_element(By.ID, "next").click()
    until(browser, lambda: "First page" in text(browser))
    assert len(browser.find_elements(By.CSS_SELECTOR, "#sessions tbody tr")) == COUNT - 1000
    browser.get(f"{url}/live")
    until(browser, lambda: "word1 " in text(browser))
    before = len(text(browser))
    until(browser, lambda: len(text(browser)) > before)
    browser.find_element(By.LINK_TEXT, "talk").click()
    until(browser, lambda: "Running now" in text(browser))
    until(browser, lambda: "There are new exchanges" in text(browser))
    browser.find_element(By.LINK_TEXT, "reload").click()
    until(browser, lambda: "word99" in text(browser))
    bars = [
        [float(part.get_attribute("width") or 0) for part in bar.find_elements(By.TAG_NAME, "rect")]
        for bar in browser.find_elements(By.CSS_SELECTOR, "section.exchange svg.bar")
    ]
    assert bars
    assert all(len(parts) == 3 for parts in bars)
    assert max(sum(parts) for parts in bars) == pytest.approx(100, abs=0.1)  # the longest turn
    browser.get(f"{url}/health")
    assert "store" in text(browser)
    log = browser.get_log("browser")  # type: ignore[no-untyped-call]  # it has no types
    complaints = [each["message"] for each in log]
    assert [each for each in complaints if "status of 401" not in each] == []


async def test_a_browser_shows_1000_sessions_a_stream_live_and_nothing_without_identity(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    token, line = tokens.create("ann", Role.USER)
    file = tmp_path / "tokens"
    file.write_text(f"{line}\n")
    metadata = (("authorization", f"Bearer {token}"),)
    async with daemon(*FLAGS, "--tokens-file", str(file)) as running, running.stub() as stub:
        url = f"http://{(await running.logged('serving the console'))['address']}"
        for number in range(COUNT - 1):
            request = pb.CreateSessionRequest(session_id=f"s{number}", labels={"app": "shop"})
            await stub.CreateSession(request, metadata=metadata)
        first = stub.Complete(turn("hello there", "talk"), metadata=metadata)
        assert [event async for event in first]

        async def stream() -> None:
            words = " ".join(f"word{number}" for number in range(100))
            while True:
                async for _ in stub.Complete(turn(words, "talk"), metadata=metadata):
                    pass

        with chromium(tmp_path / "profile") as browser:
            looked = asyncio.create_task(asyncio.to_thread(see_the_pages, browser, url, token))
            streaming = asyncio.create_task(stream())
            try:
                await looked
            finally:
                streaming.cancel()
                await asyncio.gather(streaming, return_exceptions=True)


async def test_a_page_says_when_the_daemon_has_gone_and_goes_on_when_it_is_back(
    daemon: StartDaemon, tmp_path: Path
) -> None:
    def see(browser: Chrome, *, away: bool) -> None:
        until(browser, lambda: browser.find_element(By.ID, "away").is_displayed() is away)

    with chromium(tmp_path / "profile") as browser:
        async with daemon(*FLAGS) as running:
            address = (await running.logged("serving the console"))["address"]
            await asyncio.to_thread(browser.get, f"http://{address}/live")
            await asyncio.to_thread(see, browser, away=False)
            folder = running.folder
        await asyncio.to_thread(see, browser, away=True)
        async with daemon(*FLAGS[:-1], address, folder=folder):
            await asyncio.to_thread(see, browser, away=False)
