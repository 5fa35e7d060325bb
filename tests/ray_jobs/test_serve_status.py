"""GET /v1/status, and the page at /status in a real Chromium."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dpr.formats import layout
from dpr.formats.snapshots import publish_body
from dpr.operations.follow import Follower
from ray_jobs.serve.app import make_app
from ray_jobs.serve.keys import KeyRing, add_key
from ray_jobs.serve.status_route import Watch
from tests.collection import Collection
from tests.ray_jobs.browsing import PHONE, chromium, page_of
from tests.ray_jobs.serve_api import served
from tests.tiny import random_texts

pytestmark = [pytest.mark.without_ray, pytest.mark.slow]
RECALLS = (0.9, 0.94, 0.92)
"""Of the snapshots, as if their gates had measured this."""
ACCURACIES = ({"1": 0.5, "20": 0.8}, {"1": 0.55, "20": 0.8}, {"1": 0.6, "20": 0.9})


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    made = Collection(tmp_path_factory.mktemp("status"), encoder, random_texts(30))
    body = made.night().snapshot.body
    # the snapshot of the night itself makes room for those of known figures
    made.file("snapshots/00000001.json").unlink()
    for number, (recall, accuracy) in enumerate(zip(RECALLS, ACCURACIES, strict=True)):
        gate = body.gate.model_copy(update={"recall": recall, "new_recall": None, "accuracy_index": accuracy})
        known = body.model_copy(update={"gate": gate})
        publish_body(made.store, known, number or None, run_id="known", inputs=None, note="by hand" if number else "")
    return made


@pytest.fixture(scope="module")
def follower(collection: Collection) -> Iterator[Follower]:
    with Follower(collection.store, poll_seconds=0.2) as made:
        yield made


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as started:
        yield started


def wait_for(page: Any, selector: str, text: str) -> None:
    page.wait_for_function(
        "([selector, text]) => document.querySelector(selector)?.textContent.includes(text)", arg=[selector, text]
    )


def test_it_counts_what_was_asked(follower: Follower) -> None:
    client = TestClient(make_app(follower, watch=Watch(0.0, lambda: {"running": 2, "starting": 1})))
    for body, status in (({"query": "w1"}, 200), ({"query": "w2"}, 200), ({"query": ""}, 422)):
        assert client.post("/v1/search", json=body).status_code == status
    found = client.get("/v1/status").json()
    health = client.get("/v1/health").json()
    assert found["health"] | {"timings_ms": None} == health | {"timings_ms": None}
    assert (found["replicas"], found["waiting"]) == ({"running": 2, "starting": 1}, 0)
    assert found["requests"] == {"200": 2, "422": 1}
    assert sum(bucket["searches"] for bucket in found["latency"]) == 3
    bounds = [bucket["up_to_ms"] for bucket in found["latency"]]
    assert bounds[-1] is None
    assert bounds[:-1] == sorted(bounds[:-1])
    assert found["shadow"] == {"compared": 0, "skipped": 0, "failed": 0, "recall": None}
    assert client.get("/v1/status").json()["replica"] == found["replica"]
    assert TestClient(make_app(follower)).get("/v1/status").json()["replicas"] is None


def test_snapshots_come_with_what_their_gates_measured(follower: Follower) -> None:
    listed = TestClient(make_app(follower)).get("/v1/snapshots").json()["snapshots"]
    assert [(each["recall"], each["accuracy"], each["new_recall"]) for each in reversed(listed)] == [
        (recall, accuracy, None) for recall, accuracy in zip(RECALLS, ACCURACIES, strict=True)
    ]


def points(page: Any, figure: str, line: int) -> list[tuple[float, float]]:
    """Return where the points of a line are drawn."""
    script = "found => found.map(each => [Number(each.getAttribute('cx')), Number(each.getAttribute('cy'))])"
    return [(x, y) for x, y in page.eval_on_selector_all(f"#{figure} .line-{line} circle", script)]


def check_drawn(drawn: list[tuple[float, float]], values: list[float]) -> None:
    """Points lie at equal distances, and as high as a straight line through the first and another one says."""
    xs, ys = zip(*drawn, strict=True)
    assert [x - xs[0] for x in xs] == pytest.approx([(xs[1] - xs[0]) * place for place in range(len(values))])
    other = max(range(len(values)), key=lambda place: abs(values[place] - values[0]))
    slope = (ys[other] - ys[0]) / (values[other] - values[0])
    assert slope < 0
    assert ys == pytest.approx([ys[0] + slope * (value - values[0]) for value in values])


def test_nights_are_drawn_and_searches_counted(browser: Any, follower: Follower) -> None:
    app = make_app(follower)
    answers = [TestClient(app).post("/v1/search", json={"query": f"w{number}"}) for number in range(5)]
    assert {answer.status_code for answer in answers} == {200}
    with served(app) as url, page_of(browser, f"{url}/status") as page:
        wait_for(page, "#state", "snapshot 3 is served, the newest")
        wait_for(page, "#latency", "5 since the replicas started")
        check_drawn(points(page, "recall", 0), list(RECALLS))
        check_drawn(points(page, "accuracy", 0), [each["1"] for each in ACCURACIES])
        check_drawn(points(page, "accuracy", 1), [each["20"] for each in ACCURACIES])
        assert page.locator("#recall polyline").count() == 1
        rows = page.locator("#snapshots tbody tr").all_inner_texts()
        assert [row.split("\t")[0] for row in rows] == ["3", "2", "1"]
        assert [row.split("\t")[-1] for row in rows] == ["by hand", "by hand", ""]
        bars = page.eval_on_selector_all("#latency rect", "found => found.map(each => each.getAttribute('height'))")
        counts = [int(text) for text in page.locator("#latency .count").all_text_contents()]
        heights = [float(height) for height in bars if float(height)]
        assert sum(counts) == 5
        assert heights == pytest.approx([heights[0] * count / counts[0] for count in counts])
        page.keyboard.press("j")
        page.keyboard.press("j")
        assert page.inner_text("#selected").startswith("snapshot 2, ")
        assert f"{RECALLS[1]:.3f}" in page.inner_text("#recall .legend")
        assert page.locator("#recall line.at").count() == page.locator("#accuracy line.at").count() == 1
        page.keyboard.press("k")
        assert page.inner_text("#selected").startswith("snapshot 3, ")
        page.keyboard.press("/")
        page.wait_for_url(f"{url}/")
        page.click("text=status")
        page.wait_for_url(f"{url}/status")


def test_it_shows_a_new_snapshot_and_a_service_that_ended(
    browser: Any, collection: Collection, follower: Follower
) -> None:
    with served(make_app(follower)) as url, page_of(browser, f"{url}/status") as page:
        wait_for(page, "#state", "snapshot 3 is served")
        publish_body(collection.store, collection.body(3), 3, run_id="later", inputs=None)
        wait_for(page, "#state", "snapshot 4 is served, the newest")
        wait_for(page, "#snapshots tbody tr", "4")
        assert len(points(page, "recall", 0)) == 4
        page.route("**/v1/status", lambda route: route.abort())
        page.keyboard.press("r")
        wait_for(page, "#error", "the service does not answer")
        assert "snapshot 4" in page.inner_text("#state")


def test_snapshots_that_cannot_be_listed_hide_nothing_else(
    browser: Any, collection: Collection, follower: Follower
) -> None:
    damaged = collection.file(layout.snapshot(follower.state.live + 1))
    damaged.write_bytes(b"{bad")
    try:
        with served(make_app(follower)) as url, page_of(browser, f"{url}/status") as page:
            wait_for(page, "#state", "is refused: snapshot")
            wait_for(page, "#error", "is damaged: its document snapshots/")
            page.wait_for_selector("#latency svg")
            damaged.unlink()
            wait_for(page, "#state", "is served, the newest")
            page.wait_for_selector("#error", state="hidden")
            assert page.locator("#snapshots tbody tr").count() == follower.number
    finally:
        damaged.unlink(missing_ok=True)


def test_a_damaged_older_snapshot_is_named_beside_the_others(
    browser: Any, collection: Collection, follower: Follower
) -> None:
    document = collection.file(layout.snapshot(1))
    whole = document.read_bytes()
    document.write_bytes(b"{bad")
    try:
        with served(make_app(follower)) as url, page_of(browser, f"{url}/status") as page:
            wait_for(page, "#error", "is damaged: its document snapshots/00000001.json")
            assert page.locator("#snapshots tbody tr").count() == follower.number - 1
            document.write_bytes(whole)
            page.wait_for_selector("#error", state="hidden")
            assert page.locator("#snapshots tbody tr").count() == follower.number
    finally:
        document.write_bytes(whole)


def test_a_phone_in_the_dark_needs_no_scrolling_sideways(browser: Any, follower: Follower) -> None:
    with served(make_app(follower)) as url:
        grounds = set()
        for scheme in ("dark", "light"):
            with page_of(browser, f"{url}/status", viewport=PHONE, color_scheme=scheme) as page:
                page.wait_for_selector("#latency svg")
                assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
                grounds.add(page.evaluate("getComputedStyle(document.body).backgroundColor"))
        assert len(grounds) == 2


def test_a_service_with_keys_asks_for_one(browser: Any, follower: Follower, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "alice", "search")
    with served(make_app(follower, keys=KeyRing(tmp_path / "keys"))) as url, page_of(browser, f"{url}/status") as page:
        wait_for(page, "#error", "this service answers to keys only")
        page.fill("#key", key)
        page.press("#key", "Enter")
        wait_for(page, "#state", "is served, the newest")
        assert page.is_hidden("#door")
        assert page.is_hidden("#error")
