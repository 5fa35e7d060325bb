"""Both clients against a real service: every route, every option, and what is refused."""

import asyncio
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from dpr.answers.answered import Answered
from dpr.answers.search_answer import PassageAnswer
from dpr.client import AsyncClient, Client, SearchOptions
from dpr.errors import RefusedError, ServeError, UnreachableError
from dpr.search.retrieve import Retriever
from tests.client.conftest import Service
from tests.collection import FirstNights
from tests.ray_jobs.serve_api import client_of, served
from tests.tiny import random_texts

ROOT = Path(__file__).resolve().parents[2]
Ask = Callable[..., Any]


def ask_blocking(url: str, key: str | None, route: str, *values: Any, **options: Any) -> Any:
    with Client(url, key) as client:
        return getattr(client, route)(*values, **options)


def ask_async(url: str, key: str | None, route: str, *values: Any, **options: Any) -> Any:
    async def ask() -> Any:
        async with AsyncClient(url, key) as client:
            return await getattr(client, route)(*values, **options)

    return asyncio.run(ask())


@pytest.fixture(params=[ask_blocking, ask_async])
def ask(request: pytest.FixtureRequest) -> Any:
    return request.param


def without_times(document: Any) -> Any:
    return {name: value for name, value in document.items() if name != "timings_ms"}


def same(answer: Answered, raw: httpx.Response) -> bool:
    """Return whether a typed answer holds everything that the service sent, apart from times."""
    assert raw.status_code == 200, raw.text
    return bool(without_times(answer.model_dump()) == without_times(raw.json()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"k": 3, "mode": "dense"},
        {"mode": "bm25", "filter": {"or": [{"lang": "de"}, {"year": {"gte": 1995}}]}},
        {"k": 7, "mode": "hybrid", "exact": True, "rerank": False},
    ],
)
@pytest.mark.parametrize("query", ["w1 w2 w3", ["w4 w5", "w6"]])
def test_a_search_says_what_the_service_says(service: Service, ask: Ask, query: Any, options: SearchOptions) -> None:
    answer = ask(service.url, service.admin_key, "search", query, **options)
    question = {"query": query} if isinstance(query, str) else {"queries": query}
    raw = httpx.post(f"{service.url}/v1/search", json={**question, **options}, headers={"X-API-Key": service.admin_key})
    assert same(answer, raw)
    assert answer.timings_ms.total >= answer.timings_ms.search >= 0.0  # a cached answer needs no search
    if isinstance(query, str):
        assert answer.hits == answer.results[0].hits
        assert 0 < len(answer.hits) <= options.get("k", 10)
    else:
        with pytest.raises(ValueError, match="too many values"):
            _ = answer.hits


def test_vectors_are_those_of_the_retriever(service: Service, ask: Ask) -> None:
    texts = ["w1 w2", "w3"]
    with Retriever.open(service.collection.store) as retriever:
        expected_ND = retriever.encode(texts)
    for tower in ("question", "passage"):  # the same tower, in this model
        answer = ask(service.url, service.search_key, "embed", texts, tower)
        np.testing.assert_allclose(answer.vectors(), expected_ND, atol=1e-5)
        assert (answer.model, answer.usage.prompt_tokens) == (tower, 2 + 1 + 2 * 2)
    (short_d,) = ask(service.url, service.search_key, "embed", texts[0], dimensions=8).vectors()
    np.testing.assert_allclose(short_d, expected_ND[0, :8] / np.linalg.norm(expected_ND[0, :8]), atol=1e-5)


def test_the_other_routes_say_what_the_service_says(service: Service, ask: Ask) -> None:
    headers = {"X-API-Key": service.search_key}
    for path, route, values in (
        ("/v1/passages/p007", "passage", ["p007"]),
        ("/v1/snapshots?limit=5", "snapshots", [5]),
        ("/v1/health", "health", []),
        ("/v1/ready", "ready", []),
    ):
        answer = ask(service.url, service.search_key, route, *values)
        assert same(answer, httpx.get(f"{service.url}{path}", headers=headers))
    before, after = (ask(service.url, service.search_key, "status").requests["200"] for _ in range(2))
    assert after == before + 1


ODD_IDS = ["a/b é", "..", ".", "a?b=c&d#e", "100%", "%2F", " x ", "../p001", "ключ", "a+b", "...."]


def test_ids_of_any_characters_are_found(first_nights: FirstNights, tmp_path: Path) -> None:
    texts = random_texts(20) | {id_: f"w1 w{number}" for number, id_ in enumerate(ODD_IDS)}
    collection = first_nights.copy(tmp_path / "odd", texts)
    with client_of(collection.store) as http, served(http.app) as url:
        for ask in (ask_blocking, ask_async):
            found: list[PassageAnswer] = [ask(url, None, "passage", id_) for id_ in ODD_IDS]
            assert [(one.id, one.texts) for one in found] == [(id_, [texts[id_]]) for id_ in ODD_IDS]


def test_a_refusal_has_the_service_s_sentence(service: Service, ask: Ask) -> None:
    for key, route, values, options, status, sentence in (
        (None, "health", [], {}, 401, "this service answers to keys only"),
        ("dpr_wrong", "search", ["a"], {}, 401, "the key is not known"),
        (service.search_key, "search", ["a"], {"exact": True}, 403, "only keys of role admin may ask for it"),
        (service.search_key, "search", ["a"], {"k": 0}, 422, "field k is 0; it must be an integer from 1 to 1000"),
        (service.search_key, "search", ["a"], {"filter": {"lnag": "de"}}, 422, 'the extra column "lnag"'),
        (service.search_key, "embed", ["a", "gpt"], {}, 422, "it must be question or passage"),
        (service.search_key, "passage", ["none"], {}, 404, 'has no passage "none"; ids are those of the corpus'),
        (service.search_key, "snapshots", [0], {}, 422, "it must be a whole number from 1 to 100"),
    ):
        with pytest.raises(RefusedError, match=sentence) as caught:
            ask(service.url, key, route, *values, **options)
        assert caught.value.status == status
        assert len(caught.value.request_id) == 32
    assert ask(service.url, None, "ready").ready


@pytest.mark.parametrize(
    ("route", "value", "options", "sentence"),
    [
        ("search", 5, {}, r"^query is 5, of type int; give a question as str, or a list of them$"),
        ("search", None, {}, r"^query is None, of type NoneType; give"),
        ("search", b"a", {}, r"^query is b'a', of type bytes; give"),
        ("search", {"a": 1}, {}, r"^query is \{'a': 1\}, of type dict; give"),
        ("search", [], {}, r"^query holds no question; give"),
        ("search", ["a", 5], {}, r"^query\[1\] is 5, of type int; give"),
        ("search", "\ud800", {}, r"^the request to v1/search cannot be written as JSON \(.*surrogates.*\); correct"),
        ("search", "a", {"k": np.int64(3)}, r"cannot be written as JSON \(.*int64.*\); correct one of query, k$"),
        ("search", "a", {"filter": {"year": {"in": {1, 2}}}}, r"cannot be written as JSON \(.*set.*\); correct one of"),
        ("search", "a", {"filter": {"year": {"gt": float("nan")}}}, r"cannot be written as JSON \(.*float.*\); "),
        ("embed", None, {}, r"^texts is None, of type NoneType; give a text as str, or a list of them$"),
        ("embed", [], {}, r"^texts holds no text; give"),
        ("embed", ["a", None], {}, r"^texts\[1\] is None, of type NoneType; give"),
        ("passage", 7, {}, r"^the id of a passage is 7, of type int; give a str$"),
        ("passage", "\ud800", {}, r"which is no valid Unicode; correct it$"),
    ],
)
def test_what_cannot_be_sent_is_one_sentence(
    service: Service, ask: Ask, route: str, value: Any, options: Any, sentence: str
) -> None:
    with pytest.raises(ServeError, match=sentence):
        ask(service.url, service.search_key, route, value, **options)


def test_questions_may_come_from_anything_that_yields_them(service: Service, ask: Ask) -> None:
    expected = ask(service.url, service.search_key, "search", ["w1", "w2"])
    for questions in (("w1", "w2"), np.array(["w1", "w2"]), (word for word in ("w1", "w2"))):
        found = ask(service.url, service.search_key, "search", questions)
        assert found.results == expected.results


def test_what_is_no_service_is_one_sentence(service: Service, ask: Ask) -> None:
    with pytest.raises(ServeError, match="in a form that this client does not know") as other:
        ask(f"{service.url}/page/page.css?", None, "ready")
    assert not isinstance(other.value, RefusedError)
    for url in ("", "localhost:8000", "ftp://host", "http://"):
        with pytest.raises(ServeError, match="is not the address of a service; give one such as"):
            Client(url)
    for no_url in (None, 5, b"http://host"):
        with pytest.raises(ServeError, match="is not an address"):
            Client(no_url)  # type: ignore[arg-type]
    with pytest.raises(ServeError, match="the key has characters"):
        Client(service.url, 5)  # type: ignore[arg-type]
    for key in ("", "dpr_a\nb", "schlüssel"):
        with pytest.raises(ServeError, match="the key has characters") as caught:
            AsyncClient(service.url, key)
        assert not key or key not in str(caught.value)


def test_nobody_there_is_one_sentence(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.client.patience.FIRST_PAUSE_SECONDS", 0.001)
    with pytest.raises(UnreachableError, match=r"^http://127\.0\.0\.1:1/v1/ready gave no answer \(.+\); check that"):
        ask("http://127.0.0.1:1", None, "ready")


def test_answers_have_every_field_that_the_service_describes(service: Service) -> None:
    """Compare the client's types with the service's OpenAPI document, route by route, reference by reference."""
    from dpr.client import calls

    document = httpx.get(f"{service.url}/openapi.json").json()
    for path, call in {
        "/v1/search": calls.search_call("a", {}),
        "/v1/embeddings": calls.embed_call("a", "question", None),
        "/v1/passages/{passage_id}": calls.passage_call("a"),
        "/v1/snapshots": calls.snapshots_call(1),
        "/v1/health": calls.HEALTH,
        "/v1/ready": calls.READY,
        "/v1/status": calls.STATUS,
    }.items():
        described = document["paths"].pop(path)[call.method.lower()]
        answered = described["responses"]["200"]["content"]["application/json"]["schema"]
        own = call.answer.model_json_schema(mode="serialization")
        assert shape(own, own) == shape(answered, document), path
        if call.body is not None:
            body = described["requestBody"]["content"]["application/json"]["schema"]
            fields = set(shape(body, document)["properties"])
            known = {"query", "queries"} | SearchOptions.__optional_keys__ if path == "/v1/search" else {*call.body}
            assert fields - {"user"} == known  # OpenAI's clients send it, and it is not used
    assert document["paths"] == {}


def shape(schema: Any, document: Any) -> Any:
    """Return a JSON schema with its references resolved, without what only describes or restricts."""
    if isinstance(schema, list):
        return [shape(part, document) for part in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema:
        target = document
        for part in schema["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        return shape(target, document)
    if "properties" in schema:
        fields = {name: shape(part, document) for name, part in schema["properties"].items()}
        return {"type": "object", "properties": fields}
    return {
        name: shape(part, document)
        for name, part in schema.items()
        if name in ("type", "anyOf", "items", "additionalProperties", "const", "enum")
    }


def test_importing_the_client_is_light() -> None:
    look = (
        "import sys, dpr.client; heavy = {'torch', 'faiss', 'ray', 'transformers', 'numpy', 'pyarrow', 'ray_jobs'}; "
        "print(sorted(heavy & {name.partition('.')[0] for name in sys.modules}))"
    )
    result = subprocess.run([sys.executable, "-c", look], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"
