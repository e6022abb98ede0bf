"""The two pages that describe the API, in a real browser: drawn whole, from our own files alone."""

from typing import Any

import pytest

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.xdist_group("platform")]


@pytest.fixture
def foreign(page: Any, live_platform: str) -> list[str]:
    """The addresses of other hosts that the page asked for."""
    asked: list[str] = []
    ours = (live_platform, "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(ours) else asked.append(request.url))
    return asked


def test_swagger_lists_the_operations_and_tries_them_with_the_session(
    page: Any, foreign: list[str], complaints: list[str]
):
    page.goto("/docs")
    page.get_by_text("List your API keys").wait_for()
    page.get_by_placeholder("Filter by tag").fill("organizations")
    page.get_by_role("button", name="post /api/v1/organizations", exact=True).click()
    page.get_by_role("button", name="Try it out").click()
    page.locator("textarea.body-param__text").fill('{"name": "Made in Swagger"}')
    with page.expect_response("**/api/v1/organizations") as answered:
        page.get_by_role("button", name="Execute").click()
    assert answered.value.status == 201
    page.locator(".live-responses-table", has_text="made-in-swagger").wait_for()
    assert complaints == [] and foreign == []


def test_redoc_describes_the_operations_and_searches_them(page: Any, foreign: list[str], complaints: list[str]):
    page.goto("/redoc")
    page.get_by_role("heading", name="List your API keys").wait_for()
    page.get_by_role("textbox").fill("refresh token")
    page.get_by_role("search").get_by_text("Exchange a refresh token").wait_for()
    assert complaints == [] and foreign == []
