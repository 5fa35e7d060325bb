"""The search service over real HTTP: a user starts it, searches and stops it, and no process is left."""

import dataclasses
import datetime
import gzip
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import httpx
import pytest
import ray
from sentence_transformers import CrossEncoder
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.testclient import TestClient
from starlette.types import Receive, Scope, Send

from dpr.encoder.cross_encoder_spec import resolve_cross_encoder
from dpr.errors import DprError, EncoderError, IntegrityError, ServeError, StoreError
from dpr.formats.lexical_entry import SearchMode
from dpr.operations.follow import Follower
from dpr.operations.rollback import rollback
from dpr.recipe_service import RerankConfig, ServeConfig
from dpr.search.hits import Hit
from dpr.search.rerank import Reranker
from dpr.search.retrieve import Retriever
from dpr.store import LocalStore
from ray_jobs.connect import connected
from ray_jobs.serve.app import make_app
from ray_jobs.serve.haproxy import find_haproxy
from ray_jobs.serve.keys import add_key
from ray_jobs.serve.proxy_layer import middlewares, proxy_environment
from tests.collection import Collection
from tests.encoder.models import save_to_hub_cache
from tests.ray_jobs.certificates import make_certificate
from tests.ray_jobs.listening import Listener, listeners
from tests.services.endpoint import free_ports
from tests.tiny import make_cross_encoder, make_encoder, random_texts

pytestmark = pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")
"""Ray's own models; it warns when ray.serve is first imported, so that is done within tests."""
ROOT = Path(__file__).resolve().parents[2]
PASSAGES = 120


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return list(random_texts(PASSAGES, max_words=20).values())


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    index = {"factory": "IVF8,Flat", "nprobe": 2, "rescore": 20}
    corpus = random_texts(PASSAGES, max_words=20)
    # two of eight lists: worse than the gate demands, so that exact search gives other answers
    folder = tmp_path_factory.mktemp("serve")
    rerank = {"model": str(make_cross_encoder(folder / "cross")), "top": 12}
    made = Collection(folder, encoder, corpus, index=index, gate={"min_recall": 0.0}, rerank=rerank)
    assert made.night().published
    return made


@pytest.fixture(scope="module")
def store(collection: Collection) -> LocalStore:
    return LocalStore(Path(collection.recipe.store))


@pytest.fixture(scope="module")
def retriever(store: LocalStore) -> Retriever:
    return Retriever.open(store)


def free_port() -> int:
    return free_ports(1)[0]


@dataclass
class Service:
    """A `dpr serve` of its own, and all processes that it started: they inherit `mark` in their environment."""

    process: "subprocess.Popen[str]"
    port: int
    mark: str
    scheme: str
    early: list[httpx.Response] = dataclasses.field(default_factory=list)
    """What it answered before it was ready."""

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def processes(self) -> dict[int, str]:
        """Process ids and names."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if self.mark.encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "comm").read_text().strip()
            except OSError:  # it ended meanwhile
                continue
        return found


@pytest.fixture(scope="module")
def service(store: LocalStore, collection: Collection) -> Iterator[Service]:
    """One service, which can re-rank, for all tests up to the one that stops it."""
    with serving(store, "--recipe", str(collection.write_recipe())) as started:
        yield started


@contextmanager
def serving(store: LocalStore, *options: str, scheme: str = "http", ray_folder: str = "") -> Iterator[Service]:
    """Start a service, and kill what is left of it when the block ends."""
    port, mark = free_port(), uuid.uuid4().hex
    process = subprocess.Popen(
        [sys.executable, "-m", "ray_jobs.cli", "serve", store.url, "--port", str(port), *options],
        env=os.environ | {"TEST_MARK": mark} | ({"RAY_TMPDIR": ray_folder} if ray_folder else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    with process:
        started = Service(process, port, mark, scheme)
        try:
            assert process.stdout is not None
            out = ""
            with ThreadPoolExecutor(1) as threads:
                asking = threads.submit(_ask_until_ready, started)
                while "Ctrl-C" not in out and (line := process.stdout.readline()):
                    out += line
                asking.result()
            assert "Ctrl-C" in out, process.communicate()
            # without its white space: it may be broken into lines anywhere
            expected = f"serving {store.url} at {started.url} (API: {started.url}/docs); stop with Ctrl-C"
            assert "".join(out.split()) == "".join(expected.split())
            yield started
        finally:
            for left in started.processes():
                with suppress(ProcessLookupError):
                    os.kill(left, signal.SIGKILL)


def _ask_until_ready(service: Service) -> None:
    """Request /v1/ready from a starting service until it is ready or has ended."""
    while service.process.poll() is None:
        with suppress(httpx.TransportError):
            answer = httpx.get(f"{service.url}/v1/ready", timeout=60, verify=False)
            if answer.status_code == 200:
                return
            service.early.append(answer)
        time.sleep(0.05)


@pytest.fixture(scope="module")
def client(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url, timeout=60) as made:
        yield made


def ask(client: httpx.Client, **body: Any) -> Any:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


BF16_ROUNDING = 1e-3
"""Scores of one question in batches of different shapes, on processors with bf16 products."""


def check_own_hits(found: Any, ranked: list[Hit]) -> None:
    """The best of `ranked`, in an order that only rounding decides: questions that come together are encoded so."""
    known = {hit.id: hit for hit in ranked}
    assert [hit["rank"] for hit in found] == list(range(1, len(found) + 1))
    assert len({hit["id"] for hit in found}) == len(found)
    for hit, at_this_rank in zip(found, ranked, strict=False):
        own = known[hit["id"]]
        assert (hit["title"], hit["text"]) == (own.title, own.text)
        assert hit["score"] == pytest.approx(own.score, abs=BF16_ROUNDING)
        assert hit["score"] == pytest.approx(at_this_rank.score, abs=BF16_ROUNDING)


def check_hits(found: Any, expected: list[Hit]) -> None:
    """Equal, except for the rounding of encoding in another process."""
    for hit, wanted in zip(found, map(asdict, expected), strict=True):
        assert [hit[name] for name in ("rank", "id", "title", "text")] == [
            wanted[name] for name in ("rank", "id", "title", "text")
        ]
        assert hit["score"] == pytest.approx(wanted["score"], abs=1e-4)
        for side in ("dense", "bm25"):
            assert (hit[side] is None) == (wanted[side] is None)
            assert hit[side] is None or hit[side] == pytest.approx(wanted[side], abs=1e-4)


def test_health_says_what_is_served(client: httpx.Client, retriever: Retriever) -> None:
    health = client.get("/v1/health").json()
    since = datetime.datetime.fromisoformat(health.pop("since"))
    assert datetime.timedelta() <= datetime.datetime.now(datetime.UTC) - since < datetime.timedelta(hours=1)
    served = {"ready": True, "snapshot": 1, "encoder_id": retriever.body.encoder_id, "passages": PASSAGES}
    assert health.pop("timings_ms")["total"] > 0
    assert health == served | {"live": 1, "loading": None, "problem": "", "keys_problem": "", "fetched": True}


def test_before_it_is_ready_it_says_when_to_ask_again(service: Service) -> None:
    """HAProxy's port, or that of Serve's proxy, is open before there is an application."""
    not_ready = (503, "application/json", "1", {"error": "the service is not ready; ask again in a moment"})
    assert service.early
    for answer in service.early:
        headers = answer.headers
        assert (answer.status_code, headers["Content-Type"], headers["Retry-After"], answer.json()) == not_ready


@pytest.mark.without_ray
def test_serves_own_proxy_says_so_too() -> None:
    """Its own 404 is text; that of the application, in JSON, passes."""
    (around,) = middlewares()

    async def proxy(scope: Scope, receive: Receive, send: Send) -> None:
        text, json_ = PlainTextResponse("Path '/v1/health' not found.", 404), JSONResponse({"error": "no"}, 404)
        await (text if scope["path"] == "/v1/health" else json_)(scope, receive, send)

    client = TestClient(around.cls(proxy, *around.args, **around.kwargs))
    early, missing = client.get("/v1/health"), client.get("/nothing")
    assert (early.status_code, early.headers["Retry-After"]) == (503, "1")
    assert early.json() == {"error": "the service is not ready; ask again in a moment"}
    assert (missing.status_code, missing.json()) == (404, {"error": "no"})
    assert proxy_environment()["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"].endswith(f".{middlewares.__name__}")


@pytest.mark.parametrize("exact", [False, True])
def test_one_question_gets_the_retrievers_hits(
    client: httpx.Client, retriever: Retriever, texts: list[str], exact: bool
) -> None:
    answer = ask(client, query=texts[3], k=7, exact=exact)
    assert (answer["snapshot"], answer["encoder_id"]) == (1, retriever.body.encoder_id)
    assert [result["query"] for result in answer["results"]] == [texts[3]]
    check_hits(answer["results"][0]["hits"], retriever.search([texts[3]], 7, exact=exact).hits[0])
    timings = answer["timings_ms"]
    assert 0 < timings["encode"] + timings["search"] <= timings["total"]


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_question_may_name_a_mode(
    client: httpx.Client, retriever: Retriever, texts: list[str], mode: SearchMode
) -> None:
    answer = ask(client, query=texts[3], k=7, mode=mode)
    check_hits(answer["results"][0]["hits"], retriever.search([texts[3]], 7, mode=mode).hits[0])


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
def test_a_question_may_be_re_ranked(
    client: httpx.Client, collection: Collection, retriever: Retriever, texts: list[str], mode: SearchMode
) -> None:
    assert collection.recipe.rerank is not None
    model = collection.recipe.rerank.model
    questions = [texts[3], texts[8]]
    answer = ask(client, queries=questions, k=5, mode=mode, rerank=True)
    assert answer["reranker"] == {
        "model": model,
        "reranker_id": resolve_cross_encoder(collection.recipe.rerank).reranker_id,
        "top": 12,
    }
    assert answer["timings_ms"]["rerank"] > 0
    found = retriever.search(questions, 12, mode=mode).hits
    for question, read, result in zip(questions, found, answer["results"], strict=True):
        ranked = CrossEncoder(model, device="cpu").rank(question, [hit.text for hit in read])[:5]
        assert [hit["id"] for hit in result["hits"]] == [read[int(each["corpus_id"])].id for each in ranked]
        for rank, (hit, each) in enumerate(zip(result["hits"], ranked, strict=True), 1):
            before = read[int(each["corpus_id"])]
            assert (hit["rank"], hit["before"]["rank"]) == (rank, before.rank)
            assert (hit["score"], hit["before"]["score"]) == pytest.approx((each["score"], before.score), abs=1e-3)


def test_who_wants_no_re_ranking_gets_none(client: httpx.Client, texts: list[str]) -> None:
    answer = ask(client, query=texts[3], k=5)
    assert (answer["reranker"], answer["timings_ms"]["rerank"]) == (None, 0)
    assert [hit["before"] for hit in answer["results"][0]["hits"]] == [None] * 5


@pytest.mark.without_ray
def test_replicas_load_the_commit_of_a_hub_model_that_was_there_at_the_start(
    tmp_path: Path, store: LocalStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Serve starts replicas again after days, and asking the hub for its newest model would give another one."""
    from ray_jobs.serve.service import replica_arguments

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = make_cross_encoder(tmp_path / "cross")
    save_to_hub_cache(tmp_path / "hub", "someone/cross", "a" * 40, model)
    arguments = replica_arguments(store, ServeConfig(), None, RerankConfig(model="someone/cross"))
    save_to_hub_cache(tmp_path / "hub", "someone/cross", "b" * 40, model)  # main moves on
    assert arguments.rerank is not None
    assert Reranker.open(arguments.rerank).model == f"someone/cross@{'a' * 40}"
    assert Reranker.open(RerankConfig(model="someone/cross")).model == f"someone/cross@{'b' * 40}"


@pytest.mark.without_ray
def test_too_many_pairs_or_no_re_ranker_are_one_sentence(store: LocalStore, collection: Collection) -> None:
    assert collection.recipe.rerank is not None
    many = Reranker.open(collection.recipe.rerank.model_copy(update={"top": 200}))
    sentences = {
        None: "field rerank is true, and this service has no re-ranker; leave it out, or serve with a recipe that "
        "has a rerank section (dpr serve STORE --recipe RECIPE)",
        many: "6 questions with 200 passages each are 1,200 pairs to re-rank, and a request may have 1,000; send 5 at "
        "once at most",
    }
    with Follower(store) as follower:
        for reranker, message in sentences.items():
            own = TestClient(make_app(follower, reranker))
            answer = own.post("/v1/search", json={"queries": ["w1"] * 6, "rerank": True})
            assert (answer.status_code, answer.json()) == (422, {"error": message})
            assert own.post("/v1/search", json={"query": "w1"}).status_code == 200


def test_several_questions_are_answered_in_order(client: httpx.Client, retriever: Retriever, texts: list[str]) -> None:
    questions = [texts[5], "été ☕ 東京", texts[6], texts[5]]
    answer = ask(client, queries=questions)
    assert [result["query"] for result in answer["results"]] == questions
    for result, expected in zip(answer["results"], retriever.search(questions, 10).hits, strict=True):
        check_hits(result["hits"], expected)


def test_k_beyond_the_corpus_gives_all_passages(client: httpx.Client, texts: list[str]) -> None:
    (result,) = ask(client, query=texts[0], k=1000, exact=True)["results"]
    assert sorted(hit["text"] for hit in result["hits"]) == sorted(texts)


def test_fifty_at_once_get_their_own_answers(service: Service, retriever: Retriever, texts: list[str]) -> None:
    def ask_thrice(number: int) -> Any:
        with httpx.Client(base_url=service.url, timeout=120) as client:
            return [ask(client, query=texts[(number + 50 * turn) % PASSAGES], k=1 + number % 3) for turn in range(3)]

    with ThreadPoolExecutor(50) as threads:
        answers = list(threads.map(ask_thrice, range(50)))
    for number, turns in enumerate(answers):
        for turn, answer in enumerate(turns):
            text, hits = texts[(number + 50 * turn) % PASSAGES], answer["results"][0]["hits"]
            assert len(hits) == 1 + number % 3
            assert hits[0]["text"] == text
            check_own_hits(hits, retriever.search([text], 10).hits[0])


EXAMPLE = '{"query": "how do I sort a list?", "k": 5}'
TEXT = "a text of 1 to 10,000 characters that is not blank and holds no NUL"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, f"the body has neither query nor queries; it must have exactly one of them, such as {EXAMPLE}"),
        (
            {"query": "a", "queries": ["b"]},
            f"the body has both query and queries; it must have exactly one of them, such as {EXAMPLE}",
        ),
        ({"query": ""}, f'field query is ""; it must be {TEXT}'),
        ({"query": " \n"}, f'field query is " \\n"; it must be {TEXT}'),
        ({"query": 7}, f"field query is 7; it must be {TEXT}"),
        ({"query": "x" * 10_001}, f'field query is "{"x" * 59}… (10,003 characters); it must be {TEXT}'),
        ({"query": "\ud800"}, f'field query is "\\ud800"; it must be {TEXT}'),
        ({"queries": []}, f"field queries is []; it must be a list of 1 to 256 texts, each {TEXT}"),
        ({"queries": ["a", "\t"]}, f'field queries.1 is "\\t"; it must be {TEXT}'),
        ({"query": "a", "k": 0}, "field k is 0; it must be an integer from 1 to 1000"),
        ({"query": "a", "k": 1001}, "field k is 1001; it must be an integer from 1 to 1000"),
        ({"query": "a", "k": "5"}, 'field k is "5"; it must be an integer from 1 to 1000'),
        ({"query": "a", "k": None}, "field k is null; it must be an integer from 1 to 1000"),
        ({"query": "a", "mode": "words"}, 'field mode is "words"; it must be dense, bm25 or hybrid'),
        (
            {"query": ["a", "b"]},
            "field query is a list; several questions are sent as queries, a list of 1 to 256 texts, each a text of 1 "
            "to 10,000 characters that is not blank and holds no NUL",
        ),
        ({"query": "a", "exact": 1}, "field exact is 1; it must be true or false"),
        ({"query": "a", "rerank": 5}, "field rerank is 5; it must be true or false"),
        (
            {"query": "a", "rerank": True, "k": 13},
            "13 hits are requested, but only the best 12 are re-ranked; request at most 12, or re-rank more with "
            "rerank.top (--rerank-top), at most 1000",
        ),
        (
            {"query": "a", "top": 3},
            'field "top" is unknown; the fields are query, queries, k, mode, exact, rerank, filter',
        ),
        ([1], f"the body is not a JSON object; send one such as {EXAMPLE} as Content-Type application/json"),
    ],
)
def test_a_bad_request_is_refused_with_a_sentence(client: httpx.Client, body: Any, message: str) -> None:
    content = json.dumps(body)
    response = client.post("/v1/search", content=content, headers={"Content-Type": "application/json"})
    assert (response.status_code, response.json()) == (422, {"error": message})


@pytest.mark.parametrize(
    ("content", "content_type", "status", "message"),
    [
        (b'{"query": ', "application/json", 422, "the body is not JSON (Expecting value, character 10); send one such"),
        (
            b'{"query": "caf\xe9"}',
            "application/json",
            422,
            f"the body is not UTF-8 (byte 0xe9 at position 14); send JSON in UTF-8, such as {EXAMPLE}",
        ),
        (
            gzip.compress(b'{"query": "a"}'),
            "application/json",
            422,
            f"the body is compressed (gzip), and only plain bodies are accepted; send one such as {EXAMPLE}",
        ),
        (b"[" * 100_000, "application/json", 422, f"the body is nested too deeply; send one such as {EXAMPLE}"),
        (
            b'{"query": "a", "k": ' + b"9" * 5000 + b"}",
            "application/json",
            422,
            f"the body holds a number with too many digits; send one such as {EXAMPLE}",
        ),
        (b"", "application/json", 422, "the body is not a JSON object"),
        (
            b'{"query": "a"}',
            "application/x-www-form-urlencoded",  # what curl sends without -H
            422,
            f'the body came as "application/x-www-form-urlencoded"; send JSON such as {EXAMPLE} with the header '
            "Content-Type: application/json",
        ),
        (b" " * (16 * 2**20 + 1), "application/json", 413, "the body is larger than 16,777,216 bytes"),
    ],
)
def test_a_body_that_is_no_json_is_refused_with_a_sentence(
    client: httpx.Client, content: bytes, content_type: str, status: int, message: str
) -> None:
    response = client.post("/v1/search", content=content, headers={"Content-Type": content_type})
    assert response.status_code == status
    assert response.json()["error"].startswith(message)


@pytest.mark.parametrize(
    ("method", "path", "status", "message"),
    [
        ("GET", "/nothing", 404, "there is nothing at /nothing; /docs shows what there is"),
        ("GET", "/v1/search", 405, "/v1/search does not take GET; /docs shows what it takes"),
    ],
)
def test_a_wrong_path_is_refused_with_a_sentence(
    client: httpx.Client, method: str, path: str, status: int, message: str
) -> None:
    response = client.request(method, path)
    assert (response.status_code, response.json()) == (status, {"error": message})


def test_the_api_is_described_without_loading_anything(client: httpx.Client) -> None:
    page = client.get("/docs")
    assert page.headers["Content-Type"].startswith("text/html")
    assert page.headers["Content-Security-Policy"] == "default-src 'none'; style-src 'unsafe-inline'"
    assert not re.search(r"<script|(src|href)=\W?(https?:)?//|@import|url\(", page.text)
    document = client.get("/openapi.json").json()
    assert {"/v1/search", "/v1/health"} < set(document["paths"])
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page.text
        for field, described in schema["properties"].items():
            assert f"<code>{field}</code>" in page.text
            assert described["description"], (name, field)


@pytest.mark.skipif(
    find_haproxy() is None and os.environ.get("DPR_REQUIRE_SERVICES") != "1", reason="HAProxy is not on this machine"
)
def test_haproxy_takes_the_requests(service: Service, client: httpx.Client) -> None:
    assert client.get("/v1/health").status_code == 200
    assert ("haproxy", service.port) in {(each.name, each.port) for each in wait_for_listeners(service)}


def test_it_listens_on_loopback_but_for_one_port_of_a_replica_that_wants_the_token(
    service: Service, client: httpx.Client
) -> None:
    assert client.get("/v1/health").status_code == 200
    found = wait_for_listeners(service)
    open_to_all = [(name, port) for name, address, port in found if not address.is_loopback]
    assert [name for name, _ in open_to_all] == ["ray::ServeRepli"]
    check_wants_token(open_to_all[0][1])


def wait_for_listeners(service: Service) -> set[Listener]:
    """Return all that listens, once somebody takes requests.

    Serve starts HAProxy anew whenever replicas change. The one before may give up its sockets while /proc is read.
    """
    give_up = time.monotonic() + 60
    while True:
        found = listeners(service.processes())
        if service.port in {each.port for each in found}:
            return found
        assert time.monotonic() < give_up, found
        time.sleep(0.1)


def check_wants_token(port: int) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        call = channel.unary_unary("/ray.serve.ASGIService/HandleRequest")
        with pytest.raises(grpc.RpcError) as refused_call:
            call(b"", timeout=30)
    assert refused_call.value.code() == grpc.StatusCode.UNAUTHENTICATED


def test_it_follows_what_is_published_without_a_failed_request(
    service: Service, client: httpx.Client, collection: Collection, retriever: Retriever
) -> None:
    """Snapshot 2 has one more passage; 3 is a rollback to 1."""
    answers: list[httpx.Response] = []
    done = threading.Event()

    def ask_on() -> None:
        with httpx.Client(base_url=service.url, timeout=60) as own:
            while not done.is_set():
                answers.append(own.post("/v1/search", json={"query": "w1 w2 w3 w4", "k": 1, "exact": True}))

    def wait_for(number: int) -> None:
        for _ in range(300):
            if client.get("/v1/health").json()["snapshot"] == number:
                return
            time.sleep(0.1)
        raise AssertionError(client.get("/v1/health").json())

    before = retriever.search(["w1 w2 w3 w4"], 1, exact=True).hits[0][0]
    with ThreadPoolExecutor(4) as threads:
        asking = [threads.submit(ask_on) for _ in range(4)]
        try:
            collection.corpus["just this"] = "w1 w2 w3 w4"
            assert collection.night().snapshot.number == 2
            wait_for(2)
            assert ask(client, query="w1 w2 w3 w4", k=1)["results"][0]["hits"][0]["id"] == "just this"
            del collection.corpus["just this"]
            rollback(collection.store, 1)
            wait_for(3)
        finally:
            done.set()
        for each in asking:
            each.result()
    assert {answer.status_code for answer in answers} == {200}
    found = {(body["snapshot"], body["results"][0]["hits"][0]["id"]) for body in (a.json() for a in answers)}
    assert found == {(1, before.id), (2, "just this"), (3, before.id)}


def test_interrupted_it_stops_all_that_it_started_and_prints_no_more(service: Service) -> None:
    assert len(service.processes()) > 1
    service.process.send_signal(signal.SIGINT)
    assert service.process.communicate(timeout=60) == ("", "")
    assert service.process.returncode == 0
    wait_until_ended(service, set())


@dataclass
class OpenService:
    """A service that other machines can reach, with keys and TLS."""

    service: Service
    key: str
    folder: Path
    """Of its certificate, its keys and its access log."""
    ray_folder: Path
    """Of Ray's own files."""


@pytest.fixture(scope="module")
def open_service(store: LocalStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenService]:
    """One such service, up to the test that kills it."""
    folder = tmp_path_factory.mktemp("open")
    key = add_key(folder / "keys", "alice", "search")
    certificate, private = make_certificate(folder, "search.example.org")
    options = ("--host", "0.0.0.0", "--keys", folder / "keys", "--access-log", folder / "access.jsonl")
    tls = ("--tls-cert", certificate, "--tls-key", private)
    # a short path: the names of sockets have about a hundred bytes at most
    with (
        TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as ray_folder,
        serving(store, *map(str, options + tls), scheme="https", ray_folder=ray_folder) as started,
    ):
        yield OpenService(started, key, folder, Path(ray_folder))


def test_it_speaks_tls_with_the_certificate_of_the_user(open_service: OpenService) -> None:
    trusting = ssl.create_default_context(cafile=open_service.folder / "certificate.pem")
    with (
        socket.create_connection(("127.0.0.1", open_service.service.port)) as plain,
        trusting.wrap_socket(plain, server_hostname="search.example.org") as connection,
    ):
        assert (connection.version() or "") >= "TLSv1.2"
        shown = connection.getpeercert(binary_form=True) or b""
    assert ssl.DER_cert_to_PEM_cert(shown) == (open_service.folder / "certificate.pem").read_text()
    with httpx.Client(base_url=open_service.service.url, verify=False, timeout=60) as client:
        body = {"query": "a question that nobody else may read", "k": 1}
        assert client.post("/v1/search", json=body).status_code == 401
        answer = client.post("/v1/search", json=body, headers={"Authorization": f"Bearer {open_service.key}"})
        assert answer.status_code == 200
        # Serve says in which state its replicas are
        status = client.get("/v1/status", headers={"X-API-Key": open_service.key}).json()
        assert status["replicas"]["running"] == 1
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://127.0.0.1:{open_service.service.port}/v1/ready")


@pytest.mark.parametrize("given", [None, "my-id.7", 'no"id', "x" * 65])
def test_an_answer_has_one_request_id_which_the_access_log_has_too(
    open_service: OpenService, given: str | None
) -> None:
    """Ray Serve adds one of its own, which may be what the client sent, whatever that is."""
    headers = {"X-API-Key": open_service.key} | ({} if given is None else {"X-Request-Id": given})
    answers = [
        httpx.get(f"{open_service.service.url}{path}", headers=headers, verify=False)
        for path in ("/v1/health", "/nothing")
    ]
    seen = [answer.headers.get_list("X-Request-Id") for answer in answers]
    assert [len(ids) for ids in seen] == [1, 1]
    assert (seen == [["my-id.7"]] * 2) == (given == "my-id.7")
    give_up = time.monotonic() + 60
    while logged_ids(open_service)[-2:] != [each for (each,) in seen]:  # a line is written after its answer
        assert time.monotonic() < give_up
        time.sleep(0.01)


def logged_ids(open_service: OpenService) -> list[str]:
    log = (open_service.folder / "access.jsonl").read_text()
    return [json.loads(line)["request_id"] for line in log.splitlines(keepends=True) if line.endswith("\n")]


def test_other_machines_reach_tls_and_what_wants_the_token_alone(open_service: OpenService) -> None:
    """A replica speaks no TLS, so its HTTP port is on loopback."""
    found = wait_for_listeners(open_service.service)
    open_to_all = {(name, port) for name, address, port in found if not address.is_loopback}
    proxy = "haproxy" if find_haproxy() else "ray::ProxyActor"
    assert (proxy, open_service.service.port) in open_to_all
    (other,) = open_to_all - {(proxy, open_service.service.port)}
    assert other[0] == "ray::ServeRepli"
    check_wants_token(other[1])


def test_its_log_says_what_happened(open_service: OpenService) -> None:
    """Ray Serve drops what a replica prints."""
    keys = open_service.folder / "keys"
    before, give_up = keys.read_text(), time.monotonic() + 60
    keys.write_text("broken\n")
    while not any("keys stay as they were" in log.read_text() for log in replica_logs(open_service)):
        assert time.monotonic() < give_up
        status = httpx.get(
            f"{open_service.service.url}/v1/health", headers={"X-API-Key": open_service.key}, verify=False
        )
        assert status.status_code == 200
        time.sleep(0.2)
    keys.write_text(before)


def replica_logs(open_service: OpenService) -> list[Path]:
    return list(open_service.ray_folder.glob("ray/session_*/logs/serve/replica_*.log"))


def test_nothing_secret_is_in_its_logs_or_arguments(open_service: OpenService) -> None:
    """The question and the key were sent by the test above."""
    access_log = (open_service.folder / "access.jsonl").read_text()
    assert '"path": "/v1/search"' in access_log
    logs = [path for path in open_service.ray_folder.glob("ray/session_*/logs/**/*") if path.is_file()]
    assert set(replica_logs(open_service)) & set(logs)
    arguments = [Path(f"/proc/{pid}/cmdline") for pid in open_service.service.processes()]
    for path in [*logs, *arguments]:
        text = path.read_bytes()
        private = (open_service.folder / "key.pem").read_bytes().splitlines()[1]
        for secret in (open_service.key.encode(), b"nobody else may read", private):
            assert secret not in text, path
            assert secret.decode() not in access_log


def test_killed_it_leaves_nothing_that_listens_for_requests(open_service: OpenService) -> None:
    names = set(open_service.service.processes().values())
    assert {"raylet", "haproxy"} <= names or find_haproxy() is None
    open_service.service.process.kill()
    # Ray's agents end by themselves, later
    wait_until_ended(open_service.service, {"ray::DashboardA", "ray::RuntimeEnv"})


@pytest.mark.slow
def test_it_ends_with_a_sentence_when_a_process_of_ray_is_killed(store: LocalStore) -> None:
    """It would go on as long as nothing else fails, and for ever without answering if something does."""
    with serving(store) as started:
        (raylet,) = [pid for pid, name in started.processes().items() if name == "raylet"]
        os.kill(raylet, signal.SIGKILL)
        _, err = started.process.communicate(timeout=120)
        assert started.process.returncode == ServeError.exit_code
        sentence = (
            "error: raylet, a process of Ray without which nothing that fails is replaced, was ended from outside; see "
            "whether this machine ran out of memory, and start the service again"
        )
        assert err.splitlines()[-1] == sentence
        wait_until_ended(started, set())


def wait_until_ended(service: Service, names: set[str]) -> None:
    """Wait until no process of a service is left but those of some names."""
    give_up = time.monotonic() + 60
    while left := {name for name in service.processes().values() if name not in names}:
        assert time.monotonic() < give_up, left
        time.sleep(0.1)


def refused(store_url: str, model: str | None = None, rerank: RerankConfig | None = None, **config: Any) -> DprError:
    """The error with which serving ends before Ray is started."""
    from ray_jobs.serve.service import serve_store

    with pytest.raises(DprError) as caught, serve_store(store_url, ServeConfig(**config), model, rerank):
        pass
    assert not ray.is_initialized()
    return caught.value


@pytest.mark.usefixtures("no_ray")
def test_a_store_without_a_snapshot_is_refused(tmp_path: Path) -> None:
    error = refused(str(tmp_path / "empty"), port=free_port())
    assert isinstance(error, StoreError)
    assert str(error) == f"store {tmp_path}/empty has no snapshot; `dpr run RECIPE` makes the first"


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("listens_at", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_named(store: LocalStore, listens_at: str) -> None:
    with socket.create_server((listens_at, 0)) as listening:
        port = listening.getsockname()[1]
        error = refused(store.url, port=port)
    assert isinstance(error, ServeError)
    assert str(error) == (
        f"port {port} of 127.0.0.1 is in use; stop what listens there, or choose another port with --port"
    )


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("host", "message"),
    [
        ("203.0.113.7", "203.0.113.7 is not an address of this machine; name one of its own with --host"),
        (
            "no-such-host.invalid",
            "host no-such-host.invalid is unknown here; name an address of this machine with --host",
        ),
    ],
)
def test_a_host_that_is_not_this_machine_is_named(store: LocalStore, host: str, message: str) -> None:
    error = refused(store.url, host=host, port=free_port())
    assert (type(error), str(error)) == (ServeError, message)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize("is_there", [False, True])
def test_a_model_that_moved_is_asked_for(encoder: Path, tmp_path: Path, is_there: bool) -> None:
    """The folder is gone, or there without its weights: the advice is the same."""
    model = tmp_path / "model"
    shutil.copytree(encoder, model)
    made = Collection(tmp_path, model)
    made.night()
    if is_there:
        (model / "model.safetensors").unlink()
    else:
        model.rename(tmp_path / "moved")
    error = refused(made.recipe.store, port=free_port())
    assert isinstance(error, EncoderError)
    assert "pass --model REF" in str(error)


@pytest.mark.usefixtures("no_ray")
def test_another_encoder_is_refused_with_both_ids(store: LocalStore, retriever: Retriever, tmp_path: Path) -> None:
    error = refused(store.url, str(make_encoder(tmp_path / "other", seed=1)), port=free_port())
    assert isinstance(error, EncoderError)
    ids = re.findall(r"encoder ([0-9a-f]{16})", str(error))
    assert ids[0] == retriever.body.encoder_id
    assert len(set(ids)) == 2


@pytest.mark.usefixtures("no_ray")
def test_a_re_ranker_of_another_kind_is_refused(store: LocalStore, encoder: Path) -> None:
    error = refused(store.url, rerank=RerankConfig(model=str(encoder)), port=free_port())
    assert isinstance(error, EncoderError)
    assert f"model {encoder} is a BertModel, which has no head that scores" in str(error)


@pytest.mark.usefixtures("no_ray")
def test_on_a_ray_that_runs_already_a_broken_replica_says_why_and_the_next_one_serves(
    store: LocalStore, retriever: Retriever, texts: list[str], tmp_path: Path
) -> None:
    from ray_jobs.serve.service import serve_store

    broken = tmp_path / "broken"
    shutil.copytree(store.url, broken)
    index = broken / retriever.body.index.shards[0].object.name
    index.write_bytes(b"x" * index.stat().st_size)
    port = free_port()
    with connected():
        with (
            pytest.raises(IntegrityError, match=r"^[^\n]*sha256[^\n]*$"),
            serve_store(str(broken), ServeConfig(port=port)),
        ):
            pass
        with serve_store(store.url, ServeConfig(port=port)) as url, httpx.Client(base_url=url, timeout=60) as client:
            check_hits(ask(client, query=texts[9], k=3)["results"][0]["hits"], retriever.search([texts[9]], 3).hits[0])
            with pytest.raises(ServeError, match="Ray Serve runs on this Ray already"):
                serve_store(store.url, ServeConfig(port=free_port())).__enter__()
            assert client.get("/v1/health").status_code == 200


@pytest.mark.parametrize("path", ["/nowhere/haproxy", shutil.which("false")])
def test_an_haproxy_that_does_not_run_is_none(monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    monkeypatch.setenv("RAY_SERVE_HAPROXY_BINARY_PATH", path)
    assert find_haproxy() is None


def test_a_port_that_haproxy_finds_taken_is_named(tmp_path: Path) -> None:
    from ray_jobs.serve.service import _start_error

    if (binary := find_haproxy()) is None:
        pytest.skip("HAProxy does not run here")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        address = f"127.0.0.1:{listening.getsockname()[1]}"
        config = tmp_path / "haproxy.cfg"
        config.write_text(f"defaults\n  mode http\nfrontend a\n  bind {address}\n", encoding="utf-8")
        ended = subprocess.run([binary, "-f", config], capture_output=True, text=True, check=False)
    assert ended.returncode != 0
    expected = f"the service did not start: HAProxy cannot listen at {address} (Address already in use); start it again"
    assert str(_start_error(f"HAProxy crashed during startup: {ended.stderr}")) == expected
