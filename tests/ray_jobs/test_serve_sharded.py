"""A service whose index lies in several processes, over real HTTP and real Ray: equal answers, and partial ones."""

import os
import re
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import httpx
import pytest

from dpr.errors import ServeError
from dpr.formats.lexical_entry import SearchMode
from dpr.recipe import ServeConfig
from dpr.search.filters import parse_filter
from dpr.search.retrieve import Retriever
from tests.collection import Collection
from tests.process_tree import title
from tests.ray_jobs.test_serve import Service, ask, check_hits, serving
from tests.search.test_sharded_vectors import make_first
from tests.tiny import random_texts

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
SHARDS, DEADLINE_SECONDS, PATIENCE_SECONDS = 2, 8.0, 120.0
QUESTIONS = ["w1 w2 w3", "w7 w100", "w20 w21 w22"]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_first(tmp_path_factory.mktemp("sharded") / "night", encoder)


@pytest.fixture(scope="module")
def service(collection: Collection) -> Iterator[Service]:
    options = ("--topology", "sharded", "--shards", str(SHARDS), "--shard-deadline", str(DEADLINE_SECONDS))
    with serving(collection.store, *options) as started:
        yield started


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as made:
        yield made


class Load:
    """Clients that ask all the time, and what they were answered."""

    def __init__(self, url: str) -> None:
        self.answers: list[Any] = []
        self.failures: list[str] = []
        self._url, self._done, self._asked = url, threading.Event(), iter(range(10**9))

    @contextmanager
    def running(self, clients: int = 3) -> Iterator["Load"]:
        with ThreadPoolExecutor(clients) as threads:
            asking = [threads.submit(self._ask) for _ in range(clients)]
            try:
                yield self
            finally:
                self._done.set()
            for each in asking:
                each.result()

    def _ask(self) -> None:
        with httpx.Client(base_url=self._url, timeout=60) as client:
            while not self._done.is_set():
                # spaces change no vector, and make a question that no cache of answers knows
                question = QUESTIONS[0] + " " * (next(self._asked) % 5_000)
                answer = client.post("/v1/search", json={"query": question, "k": 8, "exact": True, "mode": "dense"})
                if answer.is_success:
                    self.answers.append(answer.json())
                else:
                    self.failures.append(answer.text)

    def wait_for(self, is_it: Callable[[Any], bool]) -> None:
        """Wait until a new answer is as wanted."""
        seen, until = len(self.answers), time.monotonic() + PATIENCE_SECONDS
        while not any(map(is_it, self.answers[seen:])):
            assert time.monotonic() < until
            time.sleep(0.05)


def pids_of(service: Service, shard: int) -> list[int]:
    return [pid for pid in service.processes() if f"shard-{shard}" in title(pid)]


def is_whole(answer: Any) -> bool:
    return bool(not answer["partial"])


def lacks(shard: int) -> Callable[[Any], bool]:
    return lambda answer: answer["partial"] and answer["missing_shards"] == [shard]


def test_it_answers_as_one_process_does(client: httpx.Client, collection: Collection) -> None:
    modes: list[SearchMode] = ["dense", "bm25", "hybrid"]
    with Retriever.open(collection.store) as one:
        for mode, exact, written in product(modes, (False, True), (None, {"lang": "de"}, {"year": {"gte": 1990}})):
            where = None if written is None else parse_filter(written)
            expected = one.search(QUESTIONS, 9, mode=mode, exact=exact, where=where)
            found = ask(client, queries=QUESTIONS, k=9, mode=mode, exact=exact, filter=written)
            assert (found["snapshot"], found["partial"], found["missing_shards"]) == (1, False, [])
            for result, hits in zip(found["results"], expected.hits, strict=True):
                check_hits(result["hits"], hits)


def test_its_status_names_the_shards(client: httpx.Client) -> None:
    state = {"answers": True, "snapshots": [1]}
    assert client.get("/v1/status").json()["shards"] == [{"number": number} | state for number in range(SHARDS)]


@pytest.mark.parametrize("ends_it", [signal.SIGSTOP, signal.SIGKILL])
def test_without_a_shard_answers_are_partial_and_later_whole_again(service: Service, ends_it: signal.Signals) -> None:
    """No answer is lost with a process that is stopped, nor with one that is killed, which Serve starts again."""
    with Load(service.url).running() as load:
        load.wait_for(is_whole)
        (pid,) = pids_of(service, 1)
        os.kill(pid, ends_it)
        if ends_it == signal.SIGSTOP:
            try:
                load.wait_for(lacks(1))
            finally:
                os.kill(pid, signal.SIGCONT)
        else:  # on a fast machine the new process answers before the deadline, and no answer lacks the shard
            until = time.monotonic() + PATIENCE_SECONDS
            while pids_of(service, 1) in ([], [pid]):
                assert time.monotonic() < until
                time.sleep(0.05)
        load.wait_for(is_whole)
    assert load.failures == []
    whole = {tuple(ids(answer)) for answer in load.answers if is_whole(answer)}
    assert len(whole) == 1
    for answer in load.answers:
        assert is_whole(answer) or lacks(1)(answer)
        # what a shard holds is missing from its answers, and nothing else
        assert is_whole(answer) or [id_ for id_ in next(iter(whole)) if id_ in ids(answer)] == [
            id_ for id_ in ids(answer) if id_ in next(iter(whole))
        ]


def test_a_change_of_snapshot_under_load_mixes_nothing(service: Service, collection: Collection) -> None:
    last = collection.store
    with Load(service.url).running() as load:
        for night in (2, 3):
            path = Path(collection.recipe.corpus.path)
            path.write_text(path.read_text() + rows_of(night))
            assert collection.night().snapshot.number == night
            load.wait_for(lambda answer, night=night: answer["snapshot"] == night and is_whole(answer))
    assert load.failures == []
    expected = {}
    for number in (1, 2, 3):
        with Retriever.open(last, number) as one:
            hits = one.search(QUESTIONS[:1], 8, mode="dense", exact=True).hits[0]
            expected[number] = {hit.id for hit in hits}
    assert {answer["snapshot"] for answer in load.answers} == {1, 2, 3}
    for answer in load.answers:
        if is_whole(answer):
            assert set(ids(answer)) == expected[answer["snapshot"]]


def rows_of(night: int) -> str:
    """Return lines of new passages, of which some answer the question."""
    texts = random_texts(5, f"night{night}-", seed=night) | {f"night{night}-near": f"{QUESTIONS[0]} w{night}"}
    return "".join(f'{{"id": "{id_}", "text": "{text}", "lang": "de", "year": 2000}}\n' for id_, text in texts.items())


def ids(answer: Any) -> list[str]:
    return [hit["id"] for hit in answer["results"][0]["hits"]]


@pytest.mark.without_ray
def test_more_shards_than_files_are_refused_in_one_sentence(collection: Collection) -> None:
    from ray_jobs.serve.service import serve_store

    files = len(collection.body(1).index.shards)
    copy = Collection(collection.folder, collection.model)
    config = ServeConfig(topology="sharded", shards=files + 5)
    sentence = (
        rf"{files + 5} shards would divide the files of the index among them, and the index of snapshot \d+ has \d+; "
        rf"serve with --shards \d+, or run the recipe into a new store with index.shards: {files + 5}"
    )
    with pytest.raises(ServeError, match=re.compile(sentence)), serve_store(copy.recipe.store, config):
        pass
