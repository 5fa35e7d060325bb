"""The page at /, in a real Chromium: what a user types, clicks and sees."""

import re
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from starlette.testclient import TestClient

from dpr.formats.snapshots import publish_body
from dpr.operations.follow import Follower
from ray_jobs.serve.app import make_app
from ray_jobs.serve.keys import KeyRing, add_key
from tests.collection import Collection
from tests.ray_jobs.browsing import PHONE, chromium, page_of
from tests.ray_jobs.serve_api import make_collection, served

pytestmark = [pytest.mark.without_ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_collection(tmp_path_factory.mktemp("page"), encoder)


@pytest.fixture(scope="module")
def follower(collection: Collection) -> Iterator[Follower]:
    with Follower(collection.store, poll_seconds=0.2) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def search(page: Any, query: str) -> None:
    page.fill("#query", query)
    page.press("#query", "Enter")
    wait_for_status(page, "hits")


def wait_for_status(page: Any, text: str) -> None:
    page.wait_for_function("text => document.querySelector('#status').textContent.includes(text)", arg=text)


def address_of(page: Any) -> dict[str, list[str]]:
    return parse_qs(urlsplit(page.url).query)


@pytest.mark.parametrize("page", ["/", "/status"])
def test_a_page_is_made_of_files_of_the_service_alone(follower: Follower, page: str) -> None:
    client = TestClient(make_app(follower))
    kinds = {"": "text/html", ".css": "text/css", ".js": "text/javascript"}
    waiting, seen = [page], set()
    while waiting:
        path = waiting.pop()
        seen.add(path)
        answer = client.get(path)
        kind = kinds[PurePosixPath(path).suffix]
        assert (answer.status_code, answer.headers["Content-Type"]) == (200, f"{kind}; charset=utf-8")
        assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)|innerHTML", answer.text)
        waiting += {found for found in re.findall(r'"(/page/[^"]+)"', answer.text) if found not in seen}
    assert "default-src 'none'; script-src 'self'" in client.get(page).headers["Content-Security-Policy"]
    assert {PurePosixPath(path).suffix for path in seen} == set(kinds)


def test_what_is_searched_is_shown_and_can_be_shared(browser: Any, follower: Follower) -> None:
    app = make_app(follower)
    expected = TestClient(app).post("/v1/search", json={"query": "w1 w2 W3", "k": 4, "mode": "hybrid"}).json()
    with served(app) as url, page_of(browser, url) as page:
        page.select_option("#mode", "hybrid")
        page.fill("#k", "4")
        search(page, "w1 w2 W3")
        hits = expected["results"][0]["hits"]
        assert [text.split()[-1] for text in page.locator("#hits h2").all_inner_texts()] == [hit["id"] for hit in hits]
        first = page.locator("#hits li").first
        marked = {text.lower() for text in page.locator("#hits mark").all_inner_texts()}
        assert marked <= {"w1", "w2", "w3"}
        assert marked
        cells = first.locator("table tr").all_inner_texts()
        assert cells[0].split() == ["dense", "bm25", "hybrid"]
        sides = (hits[0]["dense"], hits[0]["bm25"], hits[0])
        assert cells[1].split()[1:] == [str(side["rank"] or "–") for side in sides]
        shown = [float(cell) for cell in cells[2].split()[1:]]
        assert shown == pytest.approx([side["score"] for side in sides], abs=1e-2)
        status = page.inner_text("#status")
        assert all(part in status for part in ("4 hits", "snapshot 1", expected["encoder_id"], "encode", "total"))
        shared = page.url
        assert address_of(page) == {"query": ["w1 w2 W3"], "mode": ["hybrid"], "k": ["4"]}
        search(page, "w9")
        page.go_back()
        wait_for_status(page, "4 hits")
        assert page.input_value("#query") == "w1 w2 W3"
        with page_of(browser, url) as other:
            other.goto(shared)
            wait_for_status(other, "4 hits")
            assert other.locator("#hits h2").all_inner_texts() == page.locator("#hits h2").all_inner_texts()


def test_filters_errors_and_keys_of_the_keyboard(browser: Any, follower: Follower) -> None:
    with served(make_app(follower)) as url, page_of(browser, url) as page:
        search(page, "w1 w2")
        page.locator(".values button", has_text="lang: de").first.click()
        page.wait_for_function("() => document.querySelectorAll('#hits li').length === 10")
        wait_for_status(page, "filter")
        assert page.input_value("#filter") == '{"lang":"de"}'
        texts = page.locator("#hits .values").all_inner_texts()
        assert texts
        assert all("lang: de" in text for text in texts)
        for wrong, sentence in (
            ("{", "the filter is not JSON"),
            ('{"lnag": 1}', "its extra columns are lang (string), year (integer)"),
        ):
            page.fill("#filter", wrong)
            page.press("#filter", "Enter")
            page.wait_for_function("text => document.querySelector('#error').textContent.includes(text)", arg=sentence)
            assert page.locator("#hits li").count() == 0
        page.fill("#filter", "")
        search(page, "w1 w2")
        assert page.is_hidden("#error")
        page.keyboard.press("Escape")
        for _ in range(2):
            page.keyboard.press("j")
        focused = "[...document.querySelectorAll('#hits li')].indexOf(document.activeElement)"
        assert page.evaluate(focused) == 1
        page.keyboard.press("k")
        assert page.evaluate(focused) == 0
        page.keyboard.press("/")
        assert page.evaluate("document.activeElement.id") == "query"
        assert page.input_value("#query") == "w1 w2"


def test_a_phone_in_the_dark_needs_no_scrolling_sideways(browser: Any, follower: Follower) -> None:
    with served(make_app(follower)) as url:
        grounds = set()
        for scheme in ("dark", "light"):
            with page_of(browser, url, viewport=PHONE, color_scheme=scheme) as page:
                page.select_option("#mode", "hybrid")
                search(page, "w1 w2")
                assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2


def test_a_service_with_keys_asks_for_one(browser: Any, follower: Follower, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "alice", "search")
    with served(make_app(follower, keys=KeyRing(tmp_path / "keys"))) as url, page_of(browser, url) as page:
        page.fill("#query", "w1")
        page.press("#query", "Enter")
        page.wait_for_selector("#door:visible")
        assert "this service answers to keys only" in page.inner_text("#error")
        page.fill("#key", key)
        page.press("#key", "Enter")
        wait_for_status(page, "10 hits")
        assert page.is_hidden("#door")
        assert key not in page.url


def test_a_new_snapshot_is_shown_by_the_next_search(browser: Any, collection: Collection, follower: Follower) -> None:
    with served(make_app(follower)) as url, page_of(browser, url) as page:
        search(page, "w1")
        assert "snapshot 1" in page.inner_text("#status")
        publish_body(collection.store, collection.body(1), 1, run_id="later", inputs=None)
        while follower.state.live != 2 or follower.state.loading:
            time.sleep(0.05)
        search(page, "w1 w2")
        wait_for_status(page, "snapshot 2")
