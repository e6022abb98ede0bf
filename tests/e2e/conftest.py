"""A real browser, signed in to the running platform, that notes whatever its console complains about."""

import re
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
POLICY = re.compile(r"style-src 'self'(;|$)")
SECONDS = 1000


@pytest.fixture
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed; install the package chromium to run the browser tests")
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def complaints() -> list[str]:
    return []


@pytest.fixture
def page(browser: Any, live_platform: str, complaints: list[str]) -> Any:
    """A signed-in page that notes every error and warning of its console."""
    context = browser.new_context(base_url=live_platform, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    opened.set_default_timeout(60 * SECONDS)
    opened.on("console", lambda told: complaints.append(told.text) if told.type in ("error", "warning") else None)
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    answer = opened.goto("/")
    assert POLICY.search(answer.headers["content-security-policy"])
    opened.get_by_label("Username").fill("admin")
    opened.get_by_label("Password").fill("password-1234")
    opened.get_by_role("button", name="Sign in").click()
    opened.get_by_role("heading", name="Main", level=1).wait_for()
    return opened
