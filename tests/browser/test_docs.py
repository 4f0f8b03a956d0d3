"""Swagger UI and Redoc in a real browser: they work, and nothing leaves this machine."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser import chromium
from tests.serving import Server

CONFIG = """
default_models = false
[[models]]
id = "sandbox"
backend = "sandbox"
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("docs"), config=CONFIG) as server:
        yield server


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium.chromium(), args=chromium.arguments())
        yield browser
        browser.close()


@pytest.fixture
def page(browser: Browser, server: Server) -> Iterator[Page]:
    """A page that fails the test when it asks another machine for anything, or when its scripts complain."""
    page = browser.new_page()
    outside: list[str] = []
    complaints: list[str] = []
    page.on("request", lambda request: outside.append(request.url) if not _is_ours(request.url, server) else None)
    page.on("console", lambda message: complaints.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    yield page
    page.close()
    assert outside == []
    assert complaints == []


def _is_ours(url: str, server: Server) -> bool:
    return url.startswith((server.base_url, "data:", "blob:"))


def test_swagger_lists_every_operation_and_calls_one(page: Page, server: Server) -> None:
    page.goto(f"{server.base_url}/docs")
    page.wait_for_selector(".opblock")
    _, document = server.get("/openapi.json")
    operations = sum(len(path) for path in document["paths"].values())
    assert page.locator(".opblock").count() == operations
    page.locator(".opblock-summary-path", has_text="/livez").click()
    page.locator("button.execute").click()
    page.wait_for_selector("text=Server response")
    page.wait_for_selector(".live-responses-table .response-col_status >> text=200")


def test_redoc_shows_the_document(page: Page, server: Server) -> None:
    page.goto(f"{server.base_url}/redoc")
    page.wait_for_selector("h2:has-text('Create a chat completion')")
