"""The tools of the MCP server, called by the SDK's own client: from a store, and through a running service."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from mcp import Client

from dpr.errors import RecipeError, RefusedError
from dpr.mcp.addresses import Addresses
from dpr.mcp.server import MAX_SHOWN_CHARS, http_app, make_server
from dpr.mcp.tool_sources import ServiceSource, Source, StoreSource, joined
from dpr.search.filters import parse_filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Retriever
from ray_jobs.serve.app import make_app
from ray_jobs.serve.keys import KeyRing, add_key
from tests.collection import Collection, FirstNights
from tests.ray_jobs.serve_api import make_collection, served
from tests.tiny import WORDS, random_texts

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    return make_collection(tmp_path_factory.mktemp("tools"), encoder)


@pytest.fixture(scope="module")
def retriever(collection: Collection) -> Iterator[Retriever]:
    with Retriever.open(collection.store) as made:
        yield made


@pytest.fixture(scope="module", params=["store", "service"])
def source(
    request: pytest.FixtureRequest, collection: Collection, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Source]:
    with StoreSource(collection.store.url) as from_store:
        if request.param == "store":
            yield from_store
            return
        file = tmp_path_factory.mktemp("keys") / "keys"
        key = add_key(file, "agent", "search")
        with served(make_app(from_store.follower, keys=KeyRing(file))) as url:
            with pytest.raises(RefusedError, match="401: the key is not known"):
                ServiceSource(url, "dpr_wrong")
            with ServiceSource(url, key) as from_service:
                yield from_service


async def call(source: Source, tool: str, addresses: Addresses | None = None, /, **arguments: Any) -> Any:
    """Call a tool; return its document, or the sentence of its refusal."""
    async with Client(make_server(source, addresses or Addresses())) as client:
        result = await client.call_tool(tool, arguments)
    (content,) = result.content  # one text of JSON is what connectors read
    if result.is_error:
        return content.text
    assert json.loads(content.text) == result.structured_content
    return result.structured_content


def expected_result(hit: Hit) -> dict[str, Any]:
    return {
        "id": hit.id,
        "title": hit.id,  # it has none
        "url": f"dpr:{hit.id}",
        "text": hit.text,
        "metadata": {"snapshot": 1, "score": pytest.approx(hit.score, abs=1e-6), **hit.extra},
    }


@pytest.mark.parametrize("filter_", [None, {"or": [{"lang": "de"}, {"year": {"gte": 1995}}]}])
async def test_search_finds_what_the_retriever_finds(source: Source, retriever: Retriever, filter_: Any) -> None:
    found = await call(source, "search", query="w1 w2 w3", k=7, filter=filter_)
    where = None if filter_ is None else parse_filter(filter_)
    (hits,) = retriever.search(["w1 w2 w3"], 7, where=where).hits
    assert len(hits) == 7
    assert found == {"results": [expected_result(hit) for hit in hits]}
    assert len((await call(source, "search", query="w1"))["results"]) == 10


async def test_fetch_gives_a_passage_with_its_columns(source: Source, retriever: Retriever) -> None:
    stored = retriever.passage("p007")
    assert stored is not None
    assert await call(source, "fetch", id="p007") == {
        "id": "p007",
        "title": "p007",
        "url": "dpr:p007",
        "text": stored.texts[0],
        "metadata": {"snapshot": 1, **stored.extra},
    }


async def test_columns_named_as_what_the_search_adds_hide_nothing(encoder: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [{"id": f"p{n}", "text": f"w{n} w1 w2", "score": n + 1000, "snapshot": "old"} for n in range(5)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"title": None, "extra": {"score": "integer", "snapshot": "string"}}
    collection = Collection(tmp_path / "night", encoder, corpus={"path": str(path), "columns": columns})
    collection.night()
    with StoreSource(collection.store.url) as source, Retriever.open(collection.store) as retriever:
        (hits,) = retriever.search(["w1 w2"], 5).hits
        found = await call(source, "search", query="w1 w2", k=5, filter={"score": {"gte": 1000}})
        assert [result["metadata"] for result in found["results"]] == [
            {"search_snapshot": 1, "search_score": pytest.approx(hit.score, abs=1e-6), **hit.extra} for hit in hits
        ]
        fetched = await call(source, "fetch", id="p3")
        assert fetched["metadata"] == {"search_snapshot": 1, "score": 1003, "snapshot": "old"}


@pytest.mark.parametrize(
    ("tool", "arguments", "sentence"),
    [
        ("search", {"query": " "}, "query must be a text of 1 to 10,000 characters, not blank and without NUL"),
        ("search", {"query": "a" * 10_001}, "query must be a text of 1 to 10,000 characters"),
        ("search", {"query": "a", "k": 101}, "k is 101; it must be from 1 to 100"),
        ("search", {"query": "a", "filter": {"lnag": "de"}}, "its extra columns are lang (string), year (integer)"),
        ("search", {"query": "a", "filter": {"or": 5}}, "filter.or is 5; it must be a list with at least one"),
        ("search", {}, "argument query of search is missing; it must be a text of 1 to 10,000 characters"),
        ("search", {"query": "a", "top": 3}, 'search has no argument "top"; its arguments are query, k, filter'),
        ("search", {"query": ["a"]}, 'argument query of search is ["a"]; it must be a text of 1 to 10,000 characters'),
        ("search", {"query": "a", "k": "x"}, 'argument k of search is "x"; it must be a whole number from 1 to 100'),
        ("search", {"query": "a", "filter": 5}, "argument filter of search is 5; it must be null, or an object such"),
        ("fetch", {"id": "none"}, "there is no passage with id 'none'; ids are those that search returns"),
        ("fetch", {"id": 5}, "argument id of fetch is 5; it must be a text, as search returned it"),
        ("fetch", {"id": "p007", "k": 1}, 'fetch has no argument "k"; its arguments are id'),
    ],
)
async def test_what_cannot_be_answered_is_said(source: Source, tool: str, arguments: Any, sentence: str) -> None:
    refusal = await call(source, tool, **arguments)
    assert isinstance(refusal, str)
    assert sentence in refusal
    assert "\n" not in refusal
    assert "pydantic" not in refusal


async def test_long_texts_are_cut_in_results_and_whole_when_fetched(first_nights: FirstNights, tmp_path: Path) -> None:
    fields: Any = {"corpus": {"long": "split"}, "encoder": {"max_tokens": 24}}
    texts = random_texts(20) | {"long/1": " ".join(WORDS[:90]), "one word": "x" * (MAX_SHOWN_CHARS + 1)}
    collection = first_nights.copy(tmp_path / "windows", texts, **fields)
    with StoreSource(collection.store.url) as source:
        addresses = Addresses("https://example.org/read?id={id}")
        assert await call(source, "fetch", addresses, id="long/1") == {
            "id": "long/1",
            "title": "long/1",
            "url": "https://example.org/read?id=long%2F1",
            "text": texts["long/1"],
            "metadata": {"snapshot": 1},
        }
        results = (await call(source, "search", query="w3 w4 w5 w6", k=22))["results"]
        shown = {result["id"]: result["text"] for result in results}
        assert shown["long/1"] in texts["long/1"]
        assert all(len(text) <= MAX_SHOWN_CHARS + 1 for text in shown.values())
        assert (await call(source, "fetch", id="one word"))["text"] == texts["one word"]


async def test_the_tools_describe_themselves(source: Source) -> None:
    async with Client(make_server(source, Addresses())) as client:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
    assert set(tools) == {"search", "fetch"}
    assert tools["search"].input_schema["required"] == ["query"]
    assert tools["fetch"].input_schema["required"] == ["id"]
    for tool in tools.values():
        assert tool.description
        assert tool.annotations is not None
        assert tool.annotations.read_only_hint
        assert all(field["description"] for field in tool.input_schema["properties"].values())
        assert tool.output_schema is not None


def test_at_loopback_it_refuses_what_pages_of_other_hosts_send(source: Source) -> None:
    """The name of such a host may lead to this machine."""
    request: Any = {"json": {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}}
    accepted = {"Accept": "application/json, text/event-stream"}
    for host, statuses in (("127.0.0.1", (421, 403, 200)), (None, (200, 200, 200))):
        with served(http_app(make_server(source, Addresses()), host)) as url:
            rebound = httpx.post(f"{url}/mcp", headers=accepted | {"Host": "evil.example"}, **request)
            foreign = httpx.post(f"{url}/mcp", headers=accepted | {"Origin": "http://evil.example"}, **request)
            plain = httpx.post(f"{url}/mcp", headers=accepted, **request)
        assert (rebound.status_code, foreign.status_code, plain.status_code) == statuses


def test_windows_are_joined_without_what_they_share() -> None:
    text = "one two three four five six seven"
    assert joined([text[:14], text[8:24], text[18:]]) == text
    assert joined([text[:14], text[14:]]) == text
    assert (joined([]), joined([text]), joined(["aaa", "aab"])) == ("", text, "aaab")


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("https://example.org/{id}", "https://example.org/a%2Fb%20%C3%A9"),
        ("https://example.org/{lang}/{id}#top", "https://example.org/de/a%2Fb%20%C3%A9#top"),
        ("{link}", "https://example.org/x?y=1"),
        ("{link}&page={page}{none}", "https://example.org/x?y=1&page=7"),
    ],
)
def test_addresses_are_made_of_ids_and_columns(template: str, expected: str) -> None:
    extra = {"lang": "de", "link": "https://example.org/x?y=1", "page": 7, "none": None}
    assert Addresses(template).of("a/b é", extra) == expected


@pytest.mark.parametrize("template", ["https://example.org", "", "{", "{}", "{id!r}", "{id:>9}", "}"])
def test_a_template_that_names_nothing_is_one_sentence(template: str) -> None:
    with pytest.raises(RecipeError, match=r"^--cite '.*; give an address with \{id\}"):
        Addresses(template)


def test_a_column_to_cite_must_be_there(source: Source) -> None:
    for template in ("https://example.org/{id}?lang={lang}", "{year}", "{id}"):
        Addresses(template).check_columns(source.why_lacked)
    for template in ("{link}", "https://example.org/{id}/{link}"):
        with pytest.raises(RecipeError) as caught:
            Addresses(template).check_columns(source.why_lacked)
        message = str(caught.value)
        assert message.startswith(f"--cite '{template}' names the extra column 'link', and the s")  # snapshot, service
        assert message.endswith("; its extra columns are lang (string), year (integer)")


def test_a_store_without_extra_columns_says_so(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "plain", random_texts(20))
    with StoreSource(collection.store.url) as source, pytest.raises(RecipeError, match="it has none; name some in"):
        Addresses("{link}").check_columns(source.why_lacked)
