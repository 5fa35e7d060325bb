"""The HTTP application without Ray: what each route answers, against the retriever and the stored files."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from dpr.search.filters import parse_filter
from dpr.search.retrieve import Retriever
from tests.collection import Collection
from tests.ray_jobs.serve_api import client_of, make_collection

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
        ({"or": 5}, "filter.or is 5; it must be a list of filters"),
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


def test_every_field_is_described(client: TestClient) -> None:
    page, document = client.get("/docs").text, client.get("/openapi.json").json()
    for name, schema in document["components"]["schemas"].items():
        assert f'id="{name}"' in page
        for field, described in schema["properties"].items():
            assert f"<code>{field}</code>" in page
            assert described["description"], (name, field)
