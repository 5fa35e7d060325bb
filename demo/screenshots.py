"""Take the pictures of the two pages that docs/ holds, from a service over the demo's nights.

    python -m demo.screenshots docs

It needs Playwright and a Chromium (Debian's package chromium).
"""

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Final

from PIL import Image
from playwright.sync_api import Browser, ViewportSize, sync_playwright

from demo.nights import RECIPE, make_nights
from demo.run_demo import ask
from dpr.errors import DprError
from dpr.recipe_service import ServeConfig
from ray_jobs.serve.service import serve_store

FOLDER: Final = RECIPE.parents[1] / ".demo" / "nights"
QUESTIONS: Final = RECIPE.with_name("questions.jsonl")
PORT: Final = 8123
SHADOW_SHARE: Final = 0.2
"""Higher than the default, so that some of the few questions are compared with exact search."""
ROUNDS: Final = 6
"""How many times all questions of the demo are asked before the pictures are taken."""
COLOURS: Final = 64
"""Colours of a picture; so few make its file a third as large."""
SIZE: Final = ViewportSize(width=960, height=900)
PICTURES: Final = {
    "search-light": ("/?mode=hybrid&query=How+do+I+count+how+often+each+word+occurs%3F", "#hits li"),
    "status-dark": ("/status", "#latency svg"),
}
"""Name of a picture and its colour scheme → path of a page, and the element that appears when the page is complete."""


def take(url: str, folder: Path) -> None:
    """Take all pictures of a service."""
    binary = shutil.which("chromium")
    if binary is None:
        raise DprError("there is no chromium on this machine; install Debian's package chromium")
    folder.mkdir(parents=True, exist_ok=True)
    # the sandbox of Chromium does not work for root
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as running:
        browser = running.chromium.launch(executable_path=binary, args=options)
        for name, (path, complete) in PICTURES.items():
            _take(browser, f"{url}{path}", complete, folder / f"{name}.png")
        browser.close()


def _take(browser: Browser, url: str, complete: str, file: Path) -> None:
    context = browser.new_context(viewport=SIZE, color_scheme="dark" if file.stem.endswith("dark") else "light")
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector(complete)
    page.reload()  # the first search in a mode waits until what it needs is compiled
    page.wait_for_selector(complete)
    page.screenshot(path=file)
    Image.open(file).convert("RGB").quantize(COLOURS).save(file, optimize=True)
    context.close()


def main() -> int:
    """Make the nights, serve them, ask questions and take the pictures; print an error as one line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("folder", type=Path, help="Where the pictures go.")
    folder: Path = parser.parse_args().folder
    try:
        store = make_nights(FOLDER)
        with serve_store(store, ServeConfig(port=PORT, shadow_share=SHADOW_SHARE)) as url:
            for line in QUESTIONS.read_text(encoding="utf-8").splitlines() * ROUNDS:
                ask(url, json.loads(line)["question"])
            take(url, folder)
    except DprError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
