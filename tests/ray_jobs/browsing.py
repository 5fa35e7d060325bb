"""A real Chromium for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from playwright.sync_api import sync_playwright

PHONE = {"width": 360, "height": 740}


@contextmanager
def chromium() -> Iterator[Any]:
    """Start a browser while the block runs; without one the test is skipped."""
    binary = shutil.which("chromium")
    if binary is None and os.environ.get("DPR_REQUIRE_SERVICES") == "1":
        raise RuntimeError("there is no chromium on this machine; install Debian's package chromium")
    if binary is None:
        pytest.skip("there is no chromium on this machine")
    # the sandbox of Chromium does not work for root
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as running:
        started = running.chromium.launch(executable_path=binary, args=options)
        yield started
        started.close()


@contextmanager
def page_of(browser: Any, url: str, **options: Any) -> Iterator[Any]:
    """Open a page; nothing may be loaded from elsewhere, and nothing may fail in it."""
    service = "/".join(url.split("/")[:3])
    context = browser.new_context(**options)
    page = context.new_page()
    foreign: list[str] = []
    broken: list[str] = []
    own = (service, "data:")
    page.on("request", lambda request: None if request.url.startswith(own) else foreign.append(request.url))
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda message: broken.append(message.text) if "Security Policy" in message.text else None)
    try:
        page.goto(url)
        yield page
        assert (foreign, broken) == ([], [])
    finally:
        context.close()
