"""The HTTP application without Ray: what each route answers, against the retriever and the stored files."""

import base64
import gzip
import json
import re
from collections.abc import Iterator, Mapping
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from jsonschema import Draft202012Validator
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer import modules
from starlette.testclient import TestClient

from dpr.answers.search_answer import SearchAnswer
from dpr.formats.snapshots import publish_body, read_snapshot
from dpr.search.filters import parse_filter
from dpr.search.retrieve import Retriever
from tests.collection import Collection, FirstNights
from tests.ray_jobs.serve_api import PASSAGES, client_of, make_collection
from tests.tiny import WORDS, make_encoder, random_texts

pytestmark = pytest.mark.without_ray


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_collection(tmp_path_factory.mktemp("api"), encoder)


@pytest.fixture(scope="module")
def client(collection: Collection) -> Iterator[TestClient]:
    with client_of(collection.store) as made:
        yield made


@pytest.fixture(scope="module")
def retriever(collection: Collection) -> Iterator[Retriever]:
    with Retriever.open(collection.store) as made:
        yield made


def ask(client: TestClient, **body: Any) -> Any:
    response = client.post("/v1/search", json=body)
    assert response.status_code == 200, response.text
    return response.json()


@pytest.mark.parametrize("mode", ["dense", "bm25", "hybrid"])
@pytest.mark.parametrize("document", [{"lang": "de"}, {"or": [{"year": {"gte": 1995}}, {"lang": None}]}])
def test_a_filter_leaves_passages_that_match(
    client: TestClient, retriever: Retriever, mode: Any, document: Any
) -> None:
    answer = ask(client, query="w1 w2 w3", k=10, mode=mode, filter=document)
    expected = retriever.search(["w1 w2 w3"], 10, mode=mode, where=parse_filter(document)).hits[0]
    assert 0 < len(expected) <= 10
    assert [hit["id"] for hit in answer["results"][0]["hits"]] == [hit.id for hit in expected]
    assert answer["timings_ms"]["filter"] > 0
    assert ask(client, query="w1")["timings_ms"]["filter"] == 0


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (
            5,
            "field filter is 5; it must be a filter over the extra columns, such as "
            '{"lang": "de", "year": {"gte": 1990}}',
        ),
        ({"or": 5}, "filter.or is 5; it must be a list with at least one filter"),
        ({"and": []}, "filter.and is []; it must be a list with at least one filter"),
        (
            {"lnag": "de"},
            'filter names the extra column "lnag", and the snapshot has no such; its extra columns are lang (string), '
            "year (integer)",
        ),
        ({"year": "old"}, 'filter compares column year of type integer with "old"; it takes an integer of 64 bits'),
    ],
)
def test_a_wrong_filter_is_one_sentence(client: TestClient, document: Any, message: str) -> None:
    response = client.post("/v1/search", json={"query": "a", "filter": document})
    assert (response.status_code, response.json()) == (422, {"error": message})


@pytest.mark.parametrize("path", ["/v1/search", "/v1/embeddings"])
@pytest.mark.parametrize(
    ("body", "headers", "problem"),
    [
        (b"\xff", {}, "the body is not UTF-8 (byte 0xff at position 0); send JSON in UTF-8, such as "),
        (
            gzip.compress(b"{}"),
            {},
            "the body is compressed (gzip), and only plain bodies are accepted; send one such as ",
        ),
        (
            b"\x28\xb5\x2f\xfd\x00",
            {"Content-Encoding": "zstd"},
            "the body is compressed (zstd), and only plain bodies are accepted; send one such as ",
        ),
        (b"[" * 100_000, {}, "the body is nested too deeply; send one such as "),
        (
            b"{",
            {},
            "the body is not JSON (Expecting property name enclosed in double quotes, character 1); send one such ",
        ),
    ],
)
def test_a_body_that_cannot_be_read_gets_an_example_for_its_path(
    client: TestClient, path: str, body: bytes, headers: Mapping[str, str], problem: str
) -> None:
    answer = client.post(path, content=body, headers={"Content-Type": "application/json", **headers})
    sentence = answer.json()["error"]
    assert (answer.status_code, sentence.startswith(problem)) == (422, True), sentence
    example = json.loads(sentence[sentence.index("{") :])
    assert client.post(path, json=example).status_code == 200


@pytest.mark.parametrize("path", ["/v1/search/", "/v1/health/", "/v1/passages"])
def test_nobody_is_sent_elsewhere(client: TestClient, path: str) -> None:
    """A replica knows nothing of TLS before it: its redirects would send keys over plain HTTP."""
    answer = client.get(path, follow_redirects=False)
    message = f"there is nothing at {path}; /docs shows what there is"
    assert (answer.status_code, answer.json()) == (404, {"error": message})


def test_a_store_without_snapshots_is_no_empty_list(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "vanishing")
    with client_of(collection.store) as client:
        collection.file("snapshots").rename(collection.folder / "away")
        answer = client.get("/v1/snapshots")
        message = (
            f"store {collection.store.url} holds no snapshot any more, so none can be listed; answers still come from "
            "snapshot 1"
        )
        assert (answer.status_code, answer.json()) == (503, {"error": message})


def test_every_field_is_described(client: TestClient) -> None:
    page, document = client.get("/docs").text, client.get("/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page
        for field, described in schema["properties"].items():
            assert f"<code>{field}</code>" in page
            assert described["description"], (name, field)


def test_every_route_has_examples_that_its_schema_allows(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                content = response["content"]["application/json"]
                assert content.get("example") or examples_of(content["schema"], document), (path, status)
                if "example" in content:
                    check(content["example"], content["schema"], document)
            for parameter in operation.get("parameters", []):
                examples = parameter["schema"].get("examples") or [parameter["schema"]["default"]]
                for example in examples:
                    check(example, parameter["schema"], document)
            if "requestBody" in operation:
                schema = operation["requestBody"]["content"]["application/json"]["schema"]
                examples = examples_of(schema, document)
                assert examples
                for example in examples:
                    check(example, schema, document)
                    answer = client.request(method, path, json=example)
                    assert answer.status_code == 200, answer.text


def examples_of(schema: Any, document: Any) -> Any:
    """Return the examples of a schema, or of the one that it refers to; all must be allowed by it."""
    named = document["components"]["schemas"][schema["$ref"].rpartition("/")[2]] if "$ref" in schema else schema
    for example in named.get("examples", []):
        check(example, schema, document)
    return named.get("examples", [])


def check(example: Any, schema: Any, document: Any) -> None:
    """Raise ValidationError if a schema of the document does not allow an example."""
    Draft202012Validator({**schema, "components": document["components"]}).validate(example)


PROBE = "/v1/ready"
"""It answers without a key, so it says nothing of the store but the number of its snapshot."""


def test_every_answer_names_snapshot_encoder_and_times(client: TestClient, retriever: Retriever) -> None:
    document = client.get("/openapi.json").json()
    bodies = {"/v1/search": {"query": "w1"}, "/v1/embeddings": {"input": "w1", "model": "question"}}
    for path, operations in document["paths"].items():
        (method,) = operations
        answer = client.request(method, path.replace("{passage_id}", "p007"), json=bodies.get(path)).json()
        answer = answer["health"] if path == "/v1/status" else answer
        assert answer["serving" if path == "/v1/snapshots" else "snapshot"] == 1
        if path == PROBE:
            continue
        assert answer["encoder_id"] == retriever.body.encoder_id
        steps = answer["timings_ms"]
        assert set(steps) == (
            {"filter", "encode", "search", "rerank", "total"} if path == "/v1/search" else {"work", "total"}
        )
        assert steps["total"] >= sum(taken for step, taken in steps.items() if step != "total") - 0.01


@pytest.mark.parametrize(
    "body",
    [
        {"query": "w1 w2"},
        {"queries": ["w1", "w2 w3"], "k": 3, "mode": "hybrid"},
        {"query": "w1", "mode": "bm25", "filter": {"lang": "de"}},
    ],
)
def test_a_search_is_answered_alike_whichever_way_its_body_is_read(client: TestClient, body: Any) -> None:
    quick = client.post("/v1/search", json=body)
    # only FastAPI's own way reads UTF-16, or a second content type
    others = [
        client.post("/v1/search", content=json.dumps(body).encode("utf-16"), headers={"Content-Type": kind})
        for kind in ("application/json", "application/vnd.ours+json")
    ]
    model = SearchAnswer.model_validate_json(quick.content)
    assert quick.text == model.model_dump_json()  # all fields in their order, and no others
    for other in others:
        assert other.status_code == 200
        assert other.headers.keys() == quick.headers.keys()
        assert other.json() | {"timings_ms": None} == quick.json() | {"timings_ms": None}


def test_the_page_of_the_api_shows_the_examples(client: TestClient) -> None:
    page = unescape(client.get("/docs").text)
    schemas = client.get("/openapi.json").json()["components"]["schemas"]
    examples = [example for name in ("SearchRequest", "EmbeddingRequest") for example in schemas[name]["examples"]]
    shown = [json.loads(body) for body in re.findall(r"-d '(.*)'", page)]
    assert sorted(shown, key=str) == sorted(examples, key=str)
    assert '"title": "list.sort"' in page


def test_a_passage_comes_by_its_id(client: TestClient, collection: Collection, retriever: Retriever) -> None:
    (entry,) = retriever.body.segments[:1]
    for row in pq.read_table(collection.file(entry.object.name)).slice(3, 4).to_pylist():
        answer = client.get(f"/v1/passages/{row['id']}").json()
        assert answer.pop("timings_ms")["total"] > 0
        assert answer == {
            "snapshot": 1,
            "encoder_id": retriever.body.encoder_id,
            "id": row["id"],
            "title": "",
            "texts": [row["text"]],
            "extra": row["extra"],
        }
    for path, shown in (
        ("no/such%20id", '"no/such id"'),
        ("%22%C3%A9", '"\\"é"'),
        ("x" * 2000, f'"{"x" * 59}… (2,002 characters)'),
    ):
        missing = client.get(f"/v1/passages/{path}")
        message = f"snapshot 1 has no passage {shown}; ids are those of the corpus"
        assert (missing.status_code, missing.json()) == (404, {"error": message})


def test_dead_passages_are_gone_and_windows_come_in_order(first_nights: FirstNights, tmp_path: Path) -> None:
    texts = random_texts(20) | {"a/b é": " ".join(WORDS[:90])}
    fields: Any = {"corpus": {"long": "split"}, "encoder": {"max_tokens": 24}}
    changing = first_nights.copy(tmp_path / "windows", texts, **fields)
    del changing.corpus["p003"]
    changing.night()
    with client_of(changing.store) as client:
        found = client.get("/v1/passages/a/b%20%C3%A9").json()["texts"]
        assert len(found) > 3
        assert list(dict.fromkeys(" ".join(found).split())) == WORDS[:90]
        assert client.get("/v1/passages/p003").status_code == 404
        assert client.get("/v1/passages/p004").json()["texts"] == [texts["p004"]]


@pytest.mark.parametrize("content", [b"{bad", b"{}"])
def test_a_damaged_snapshot_is_listed_beside_the_others(
    first_nights: FirstNights, tmp_path: Path, content: bytes
) -> None:
    collection = first_nights.copy(tmp_path / "damaged")
    for parent in (1, 2):
        publish_body(collection.store, collection.body(1), parent, run_id="again", inputs=None)
    damaged = collection.file("snapshots/00000002.json")
    whole = damaged.read_bytes()
    with client_of(collection.store) as client:
        damaged.write_bytes(content)
        listed = client.get("/v1/snapshots").json()
        assert [each["number"] for each in listed["snapshots"]] == [3, 1]
        (named,) = listed["damaged"]
        assert named["number"] == 2
        assert named["problem"].startswith(f"snapshot 2 of {collection.store.url} is ")
        assert client.get("/v1/snapshots?limit=1").json()["damaged"] == []
        damaged.write_bytes(whole)
        listed = client.get("/v1/snapshots").json()
        assert ([each["number"] for each in listed["snapshots"]], listed["damaged"]) == ([3, 2, 1], [])
        collection.file("snapshots/00000004.json").write_bytes(content)
        answer = client.get("/v1/snapshots")
        assert (answer.status_code, "snapshot 4 of" in answer.json()["error"]) == (500, True)


def test_snapshots_are_listed_the_newest_first(client: TestClient, tmp_path: Path, collection: Collection) -> None:
    listed = client.get("/v1/snapshots").json()
    body = collection.body(1)
    published = read_snapshot(collection.store, 1).published_at
    assert listed.pop("timings_ms")["total"] > 0
    assert listed == {
        "serving": 1,
        "encoder_id": body.encoder_id,
        "snapshots": [
            {
                "number": 1,
                "parent": None,
                "published_at": published,
                "passages": PASSAGES,
                "encoder_id": body.encoder_id,
                "recall": body.gate.recall,
                "new_recall": body.gate.new_recall,
                "accuracy": body.gate.accuracy_index,
                "note": "",
            }
        ],
        "damaged": [],
    }
    other = collection.copy(tmp_path / "copy")
    publish_body(other.store, body, 1, run_id="later", inputs=None, note="again")
    with client_of(other.store) as later:
        assert [one["number"] for one in later.get("/v1/snapshots").json()["snapshots"]] == [2, 1]
        assert [one["number"] for one in later.get("/v1/snapshots?limit=1").json()["snapshots"]] == [2]
        assert later.get("/v1/ready").json() == {"ready": True, "snapshot": 2}
    wrong = client.get("/v1/snapshots?limit=0")
    assert (wrong.status_code, wrong.json()) == (
        422,
        {"error": 'field limit is "0"; it must be a whole number from 1 to 100'},
    )


def test_vectors_are_those_of_sentence_transformers(client: TestClient, collection: Collection) -> None:
    texts = [f"w{n} w{n + 1} w3" for n in range(40)]
    bert = modules.Transformer(str(collection.model), max_seq_length=64)
    peer = SentenceTransformer(modules=[bert, modules.Pooling(32, "mean"), modules.Normalize()], device="cpu")
    expected_ND = peer.encode(texts)
    for model in ("question", "passage"):
        answer = client.post("/v1/embeddings", json={"input": texts, "model": model}).json()
        assert [one["index"] for one in answer["data"]] == list(range(40))
        found_ND = np.array([one["embedding"] for one in answer["data"]])
        np.testing.assert_allclose(found_ND, expected_ND, atol=2e-3)
        assert answer["usage"] == {"prompt_tokens": 40 * 5, "total_tokens": 40 * 5, "lost_tokens": 0}
        assert (answer["object"], answer["model"], answer["snapshot"]) == ("list", model, 1)
    short = {"input": texts[0], "model": "question", "dimensions": 8}
    (one,) = client.post("/v1/embeddings", json=short).json()["data"]
    kept_d = expected_ND[0, :8] / np.linalg.norm(expected_ND[0, :8])
    np.testing.assert_allclose(one["embedding"], kept_d, atol=5e-3)
    (coded,) = client.post("/v1/embeddings", json=short | {"encoding_format": "base64"}).json()["data"]
    np.testing.assert_array_equal(
        np.frombuffer(base64.b64decode(coded["embedding"]), "<f4"), np.array(one["embedding"], np.float32)
    )


def test_passages_have_the_vectors_that_the_store_has(client: TestClient, collection: Collection) -> None:
    rows = collection.live_rows(collection.body(1))
    texts, vectors = zip(*rows.values(), strict=True)
    answer = client.post("/v1/embeddings", json={"input": list(texts), "model": "passage"}).json()
    np.testing.assert_allclose([one["embedding"] for one in answer["data"]], np.stack(vectors), atol=2e-3)


@pytest.mark.slow
@pytest.mark.parametrize("towers", ["two models", "two prefixes"])
def test_towers_that_differ_are_told_apart(tmp_path: Path, encoder: Path, towers: str) -> None:
    """The vectors of passages are those of the store, and those of questions are others."""
    other = make_encoder(tmp_path / "other", seed=1)
    differing = {
        "two models": {"question_model": str(other)},
        "two prefixes": {"passage_prefix": "w7 ", "max_tokens": 16},
    }
    collection = Collection(tmp_path / "towers", encoder, random_texts(9), encoder=differing[towers])
    collection.night()
    texts, vectors = zip(*collection.live_rows(collection.body(1)).values(), strict=True)
    with client_of(collection.store) as client, Retriever.open(collection.store) as retriever:
        for model, expected_ND in (("passage", np.stack(vectors)), ("question", retriever.encode(texts))):
            answer = client.post("/v1/embeddings", json={"input": texts, "model": model}).json()
            np.testing.assert_allclose([one["embedding"] for one in answer["data"]], expected_ND, atol=2e-3)
    assert np.abs(np.stack(vectors) - expected_ND).max() > 0.02


EMBED = '{"input": "how do I sort a list?", "model": "question"}'
INPUT = "a text of 1 to 100,000 characters that is not blank and holds no NUL, or a list of 1 to 256 of them"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"model": "question"}, f"the body has no field input; send one such as {EMBED}"),
        ({"input": [], "model": "question"}, f"field input is []; it must be {INPUT}"),
        ({"input": " ", "model": "question"}, f'field input is " "; it must be {INPUT}'),
        ({"input": ["a", 5], "model": "question"}, f'field input is ["a", 5]; it must be {INPUT}'),
        *(
            (
                {"input": tokens, "model": "question"},
                "field input holds numbers, and texts alone are encoded, since another tokenizer may have made them; "
                "send the texts themselves (in LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)",
            )
            for tokens in ([1, 2], [[1, 2], [3]], 5)
        ),
        ({"input": "a", "model": "gpt"}, 'field model is "gpt"; it must be question or passage'),
        (
            {"input": "a", "model": "question", "dimensions": 0},
            "field dimensions is 0; it must be a whole number from 1 on, or null",
        ),
        (
            {"input": "a", "model": "question", "dimensions": 33},
            "dimensions is 33, and vectors of this encoder have 32; ask for fewer",
        ),
        (
            {"input": "a", "model": "question", "k": 1},
            'field "k" is unknown; the fields are input, model, dimensions, encoding_format, user',
        ),
    ],
)
def test_what_cannot_be_embedded_is_one_sentence(client: TestClient, body: Any, message: str) -> None:
    response = client.post("/v1/embeddings", json=body)
    assert (response.status_code, response.json()) == (422, {"error": message})
