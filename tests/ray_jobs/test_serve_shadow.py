"""Answers to users' questions, compared with those of exact search beside the work."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from starlette.testclient import TestClient

from dpr.operations.follow import Follower
from dpr.search.retrieve import Answer, Retriever
from ray_jobs.serve.app import make_app
from ray_jobs.serve.batch import SearchOptions
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.shadow import Shadow
from ray_jobs.serve.status_route import Watch
from tests.collection import Collection
from tests.tiny import random_texts

pytestmark = pytest.mark.without_ray
K = 5
QUESTIONS = [f"w{number} w{number + 1}" for number in range(12)]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    """Two of eight lists are searched, so that answers differ from those of exact search."""
    index = {"factory": "IVF8,Flat", "nprobe": 2, "rescore": 20}
    folder, texts = tmp_path_factory.mktemp("shadow"), random_texts(120, max_words=20)
    made = Collection(folder, encoder, texts, index=index, gate={"min_recall": 0.0}, lexical={"build": False})
    assert made.night().published
    return made


@pytest.fixture(scope="module")
def follower(collection: Collection) -> Iterator[Follower]:
    with Follower(collection.store) as made:
        yield made


@pytest.fixture(autouse=True)
def no_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.serve.shadow.RESTS", 0.0)


def results(metrics: Metrics) -> dict[str, float]:
    return dict(metrics.totals("dpr_shadow_questions_total", "result"))


def wait_until(is_so: Callable[[], bool]) -> None:
    give_up = time.monotonic() + 30
    while not is_so():
        assert time.monotonic() < give_up
        time.sleep(0.005)


def test_recall_is_that_of_brute_force(collection: Collection, follower: Follower) -> None:
    """The vectors of all passages are read with pyarrow, and compared with numpy."""
    metrics = Metrics()
    shadow = Shadow(follower, metrics, share=1.0)
    live = collection.live_rows(collection.body(1))
    ids, vectors_ND = list(live), np.stack([vector_D for _, vector_D in live.values()])
    hits = 0
    for number, question in enumerate(QUESTIONS, 1):
        answer = follower.search([question], K)
        shadow.draw([question], SearchOptions(K), answer)
        wait_until(lambda number=number: results(metrics).get("compared") == number and not shadow.is_busy)
        with follower.snapshot() as retriever:
            (question_D,) = retriever.encode([question])
        nearest = {ids[place] for place in np.argsort(-(vectors_ND @ question_D))[:K]}
        hits += len(nearest & {hit.id for hit in answer.hits[0]})
    assert metrics.total("dpr_shadow_hits_total") == K * len(QUESTIONS)
    assert metrics.total("dpr_shadow_hits_found_total") == hits < K * len(QUESTIONS)


def test_while_it_works_or_rests_no_further_question_is_compared(
    follower: Follower, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ray_jobs.serve.shadow.RESTS", 1e9)
    metrics = Metrics()
    shadow = Shadow(follower, metrics, share=1.0)
    answer = follower.search(QUESTIONS, K)
    shadow.draw(QUESTIONS, SearchOptions(K), answer)
    wait_until(lambda: not shadow.is_busy)
    shadow.draw(QUESTIONS, SearchOptions(K), answer)
    assert results(metrics) == {"compared": 1, "skipped": 2 * len(QUESTIONS) - 1}


def test_what_tells_nothing_is_not_counted(follower: Follower) -> None:
    """Exact answers; those of a snapshot that is not served any more; and those that nobody drew."""
    metrics = Metrics()
    answer = follower.search(QUESTIONS[:1], K)
    Shadow(follower, metrics, share=1.0).draw(QUESTIONS[:1], SearchOptions(K, exact=True), answer)
    Shadow(follower, metrics, share=0.0).draw(QUESTIONS[:1], SearchOptions(K), answer)
    old = Answer(7, answer.encoder_id, answer.hits, [0], 0.0, 0.0)
    shadow = Shadow(follower, metrics, share=1.0)
    shadow.draw(QUESTIONS[:1], SearchOptions(K), old)
    wait_until(lambda: not shadow.is_busy)
    assert results(metrics) == {}


def test_one_in_a_hundred_is_drawn(follower: Follower) -> None:
    metrics = Metrics()
    shadow = Shadow(follower, metrics)
    answer = follower.search(QUESTIONS[:1], K)
    many = Answer(1, answer.encoder_id, answer.hits * 40_000, [0] * 40_000, 0.0, 0.0)
    shadow.draw(QUESTIONS[:1] * 40_000, SearchOptions(K), many)
    wait_until(lambda: not shadow.is_busy)
    # 20 is the standard deviation of a sample of 1% of 40,000
    assert abs(sum(results(metrics).values()) - 400) < 6 * 20


def test_a_failure_is_counted_and_users_do_not_notice(follower: Follower, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Retriever.search

    def fails_if_exact(self: Retriever, *arguments: object, exact: bool = False, **options: object) -> Answer:
        if exact:
            raise OSError("the store is gone")
        return plain(self, *arguments, exact=exact, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Retriever, "search", fails_if_exact)
    with TestClient(make_app(follower, watch=Watch(shadow_share=1.0))) as client:
        assert client.post("/v1/search", json={"query": "w1"}).status_code == 200
        wait_until(lambda: client.get("/v1/status").json()["shadow"]["failed"] == 1)
        assert "dpr_shadow_questions_total{replica=" in client.get("/metrics").text
