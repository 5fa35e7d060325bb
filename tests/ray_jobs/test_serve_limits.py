"""What is too much: refused with a sentence, counted, and without harm to others; and the metrics that show it."""

import asyncio
import json
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from dpr.operations.follow import Follower
from dpr.search.hits import Passage
from dpr.search.retrieve import Answer, Retriever
from ray_jobs.serve.app import make_app
from ray_jobs.serve.batch import BATCHES_AT_ONCE
from ray_jobs.serve.limits import WATCH_SECONDS
from ray_jobs.serve.status_route import Watch
from tests.collection import FirstNights
from tests.ray_jobs.serve_api import served

pytestmark = pytest.mark.without_ray
BODY = {"query": "w1 w2", "k": 2}


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Iterator[Follower]:
    with Follower(first_nights.copy(tmp_path_factory.mktemp("limits")).store) as made:
        yield made


class Gate:
    """Lets searches begin only when it is open."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.begun, self.open = 0, threading.Event()
        search = Follower.search

        def held(*arguments: Any, **settings: Any) -> Answer:
            self.begun += 1
            self.open.wait(30)
            return search(*arguments, **settings)

        patch.setattr(Follower, "search", held)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    made = Gate(monkeypatch)
    yield made
    made.open.set()


Ask = Callable[[httpx.AsyncClient], Coroutine[Any, Any, list[httpx.Response]]]


def answers_to(app: FastAPI, ask: Ask) -> list[httpx.Response]:
    async def run() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            return await ask(client)

    return asyncio.run(run())


async def begin(client: httpx.AsyncClient, gate: Gate, count: int = 1) -> list[asyncio.Task[httpx.Response]]:
    """Send questions one after the other, and return once each is being answered."""
    tasks = []
    for begun in range(gate.begun + 1, gate.begun + count + 1):
        tasks.append(asyncio.create_task(client.post("/v1/search", json=BODY)))
        while gate.begun < begun:
            await asyncio.sleep(0.001)
    return tasks


def test_more_requests_than_are_taken_get_503(follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.serve.limits.MAX_UNDER_WAY", 2)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = [*await begin(client, gate), asyncio.create_task(client.post("/v1/search", json=BODY))]
        await asyncio.sleep(0)
        while len(asyncio.all_tasks()) < 4:
            await asyncio.sleep(0.001)
        refused = await client.post("/v1/search", json=BODY)
        probe = await client.get("/v1/ready")
        gate.open.set()
        return [refused, probe, *await asyncio.gather(*first), await client.post("/v1/search", json=BODY)]

    refused, *others = answers_to(make_app(follower), ask)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json() == {"error": "2 requests are under way, and no more are taken; ask again in a moment"}
    assert [answer.status_code for answer in others] == [200] * 4


def test_more_questions_than_may_wait_get_503(follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.serve.batch.MAX_WAITING_QUESTIONS", 5)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = await begin(client, gate, BATCHES_AT_ONCE)
        waiting = asyncio.create_task(client.post("/v1/search", json={"queries": ["w1"] * 3}))
        await asyncio.sleep(0.05)
        refused = await client.post("/v1/search", json={"queries": ["w1"] * 3})
        gate.open.set()
        return [refused, *await asyncio.gather(*first, waiting)]

    refused, *others = answers_to(make_app(follower), ask)
    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "1")
    assert refused.json() == {"error": "3 questions wait for an answer, and no more are taken; ask again in a moment"}
    assert [answer.status_code for answer in others] == [200, 200, 200]


def test_a_request_whose_time_is_over_leaves_the_queue(
    follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.serve.limits.REQUEST_SECONDS", 0.2)
    app = make_app(follower)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = await begin(client, gate, BATCHES_AT_ONCE)
        late = await client.post("/v1/search", json={"queries": ["w1"] * 7})
        gate.open.set()
        await asyncio.gather(*first)
        later = await client.post("/v1/search", json=BODY)
        async with asyncio.timeout(30):  # time is over for the first ones, too, whose batches may still be searched
            while samples(app)["dpr_batch_questions_sum"] < [3.0]:
                await asyncio.sleep(0.001)
        return [late, later]

    late, later = answers_to(app, ask)
    message = "no answer was found within 0 s; send fewer questions at once, or ask again"
    assert (late.status_code, late.json(), late.headers["Retry-After"]) == (503, {"error": message}, "1")
    assert later.status_code == 200
    sizes = samples(app)["dpr_batch_questions_sum"]
    assert sizes == [3.0]  # the seven were never searched for
    assert gate.begun == 3


def test_a_request_whose_client_hangs_up_leaves_the_queue(follower: Follower, gate: Gate) -> None:
    with served(make_app(follower)) as url, ThreadPoolExecutor() as pool:
        first = [pool.submit(httpx.post, f"{url}/v1/search", json=BODY, timeout=60) for _ in range(BATCHES_AT_ONCE)]
        wait_until(lambda: gate.begun == BATCHES_AT_ONCE)
        with pytest.raises(httpx.ReadTimeout):  # and the connection is closed
            httpx.post(f"{url}/v1/search", json={"queries": ["w1"] * 7}, timeout=0.1)
        wait_until(lambda: 'status="499"' in httpx.get(f"{url}/metrics").text)
        gate.open.set()
        later = httpx.post(f"{url}/v1/search", json={"query": "w3"})
        assert [answer.status_code for answer in (later, *(one.result() for one in first))] == [200] * (len(first) + 1)
    assert gate.begun == len(first) + 1  # the seven were never searched for


def wait_until(is_true: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < give_up
        time.sleep(0.01)


def test_a_body_that_does_not_come_is_refused(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.serve.limits.BODY_SECONDS", 0.05)

    async def slow() -> Any:
        yield b'{"query": '
        await asyncio.sleep(30)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        return [await client.post("/v1/search", content=slow(), headers={"Content-Type": "application/json"})]

    (answer,) = answers_to(make_app(follower), ask)
    assert (answer.status_code, answer.json()) == (408, {"error": "the body did not come within 0 s; send it at once"})


def test_an_answer_may_take_longer_than_a_body(follower: Follower, gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the body has come already, or there is none."""
    monkeypatch.setattr("ray_jobs.serve.limits.BODY_SECONDS", 0.01)
    looked, look = threading.Event(), Retriever.passage

    def held(retriever: Retriever, id_: str) -> Passage | None:
        looked.set()
        gate.open.wait(30)
        return look(retriever, id_)

    monkeypatch.setattr(Retriever, "passage", held)

    async def ask(client: httpx.AsyncClient) -> list[httpx.Response]:
        first = [*await begin(client, gate), asyncio.create_task(client.get("/v1/passages/p001"))]
        await asyncio.to_thread(looked.wait, 30)
        await asyncio.sleep(3 * WATCH_SECONDS)
        gate.open.set()
        return await asyncio.gather(*first)

    assert [answer.status_code for answer in answers_to(make_app(follower), ask)] == [200, 200]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"queries": ["a"] * 256, "k": 101},
            "256 questions with k 101 ask for 25,856 hits, and a request may ask for 25,600; send fewer at once, or a "
            "smaller k",
        ),
        (
            {"query": "a\0b"},
            'field query is "a\\u0000b"; it must be a text of 1 to 10,000 characters that is not blank and holds no '
            "NUL",
        ),
        ({"query": "a", "filter": {"lang\ud800": 1}}, 'filter names the extra column "lang\\ud800", and the snapshot'),
        ({"query": "a", "filter": {"\ud800": {"eq": 1}}}, "filter.\\ud800.eq is unknown; a column is compared with in"),
        ({"query": "a", "filter": {"x" * 9999: {"eq": 1}}}, f"filter.{'x' * 993}…"),
    ],
)
def test_too_much_at_once_is_one_sentence(follower: Follower, body: Any, message: str) -> None:
    content, headers = json.dumps(body), {"Content-Type": "application/json"}
    answer = TestClient(make_app(follower)).post("/v1/search", content=content, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["error"].startswith(message)


@pytest.mark.parametrize("path", ["/v1/passages/%FF%FE", "/v1/passages/a%00b", "/%00", "/v1/snapshots?limit=%FF"])
def test_addresses_of_any_bytes_are_one_sentence(follower: Follower, path: str) -> None:
    answer = TestClient(make_app(follower)).get(path)
    assert answer.status_code in (404, 422)
    assert set(answer.json()) == {"error"}


def samples(app: FastAPI) -> dict[str, list[float]]:
    """What /metrics gives: the values of each sample, whatever its labels."""
    answer = TestClient(app).get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    found: dict[str, list[float]] = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            assert len(sample.labels["replica"]) == 8
            found.setdefault(sample.name, []).append(sample.value)
    return found


def test_metrics_count_what_was_asked(follower: Follower) -> None:
    app = make_app(follower, watch=Watch(shadow_share=0.0))
    client = TestClient(app)
    for body in (BODY, BODY, {"queries": ["w1", "w2", "w3"]}, {"query": ""}):
        client.post("/v1/search", json=body)
    client.get("/v1/passages/p001")
    client.get("/nothing")
    found = samples(app)
    assert found["dpr_requests_total"] == [3, 1, 1, 1]  # by route and status
    assert sum(found["dpr_request_seconds_count"]) == 6
    assert found["dpr_cache_questions_total"] == [4, 1]  # BODY is known the second time
    assert (found["dpr_batch_questions_count"], found["dpr_batch_questions_sum"]) == ([2], [4])
    assert found["dpr_queue_seconds_count"] == [2]
    assert found["dpr_step_seconds_count"] == [2, 2]
    assert (found["dpr_snapshot_number"], found["dpr_live_snapshot_number"], found["dpr_passages"]) == ([1], [1], [30])
    assert found["dpr_waiting_questions"] == [0]
    with follower.snapshot() as retriever:
        published = datetime.fromisoformat(retriever.published_at).timestamp()
    assert found["dpr_snapshot_published_timestamp_seconds"] == [published]
