"""Extra columns: from the corpus through segments into hits, over nights that change them."""

import asyncio
import datetime
import json
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
from fastapi import FastAPI

from dpr.errors import CorpusError
from dpr.formats.snapshots import read_snapshot
from dpr.operations.follow import Follower
from dpr.operations.verify import verify
from dpr.recipe import Columns
from dpr.search.vector_search import VectorSearch
from ray_jobs.serve.app import make_app
from tests.collection import QUESTIONS_QD, Collection
from tests.corpus.reading import read

TYPES = {"lang": "string", "year": "integer", "score": "float", "checked": "boolean", "meta.at": "timestamp"}
ROWS: list[dict[str, Any]] = [
    {"id": "a", "text": "w1 w2", "lang": "de", "year": 1984, "score": 1, "checked": True, "meta": {"at": "2024-02-03"}},
    {"id": "b", "text": "w3", "lang": 5, "year": "7", "score": "2.5", "meta": {"at": "2024-02-03T04:05:06.5+02:00"}},
    {"id": "c", "text": "w4 w5", "checked": "false"},
]
EXPECTED: dict[str, dict[str, Any]] = {
    "a": {"checked": True, "lang": "de", "meta.at": "2024-02-03T00:00:00Z", "score": 1.0, "year": 1984},
    "b": {"checked": None, "lang": "5", "meta.at": "2024-02-03T02:05:06.500000Z", "score": 2.5, "year": 7},
    "c": {"checked": False, "lang": None, "meta.at": None, "score": None, "year": None},
}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def hits(collection: Collection, number: int) -> dict[str, dict[str, Any]]:
    search = VectorSearch.open(collection.store, read_snapshot(collection.store, number).body)
    scores_QK, ids_QK = search.top(np.ascontiguousarray(QUESTIONS_QD[:1]), 10)
    return {hit.id: dict(hit.extra) for hit in search.segments.hits(scores_QK[0], ids_QK[0])}


def served(app: FastAPI) -> dict[str, dict[str, Any]]:
    """Ask the HTTP application, without a server."""

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client:
            return await client.post("/v1/search", json={"query": "w1", "k": 10})

    return {hit["id"]: hit["extra"] for hit in asyncio.run(ask()).json()["results"][0]["hits"]}


def test_extra_columns_come_back_in_hits_and_a_changed_value_embeds_nothing(tmp_path: Path, encoder: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, ROWS)
    columns = {"title": None, "extra": TYPES}
    collection = Collection(tmp_path / "night", encoder, corpus={"path": str(path), "columns": columns})
    first = collection.night().snapshot
    assert hits(collection, first.number) == EXPECTED
    with Follower(collection.store) as follower:
        assert served(make_app(follower)) == EXPECTED
    (entry,) = first.body.segments
    table = pq.read_table(collection.file(entry.object.name))
    assert table["extra"].to_pylist()[0]["meta.at"] == datetime.datetime(2024, 2, 3, tzinfo=datetime.UTC)
    assert str(table.schema.field("extra").type.field("year").type) == "int64"

    write(path, [ROWS[0] | {"year": 1985}, *ROWS[1:]])
    second = collection.night()
    assert second.report is not None
    assert (second.report.found.new, second.report.found.embedded, second.report.found.dead) == (1, 0, 1)
    assert hits(collection, second.snapshot.number) == EXPECTED | {"a": EXPECTED["a"] | {"year": 1985}}

    collection.change(corpus={"columns": {"title": None, "extra": ["lang"]}})
    third = collection.night()
    assert third.report is not None
    assert (third.report.found.new, third.report.found.embedded) == (3, 0)
    assert hits(collection, third.snapshot.number) == {id_: {"lang": row["lang"]} for id_, row in EXPECTED.items()}
    collection.change(corpus={"columns": {"title": None, "extra": {}}})
    fourth = collection.night()
    assert hits(collection, fourth.snapshot.number) == {id_: {} for id_ in EXPECTED}
    assert verify(collection.store, [1, 2, 3, 4], deep=True)[1] == []


@pytest.mark.parametrize(
    ("name", "type_", "value", "is_what"),
    [
        ("lang", "string", ["de"], "a list that is not"),
        ("lang", "string", {"a": 1}, "an object that is not"),
        ("lang", "string", True, "a boolean that is not"),
        ("lang", "string", "\ud800", "a string that is not"),
        ("year", "integer", 1.5, "a decimal number that is not"),
        ("year", "integer", "MMXX", "a string that is not"),
        ("year", "integer", 2**63, "beyond the range"),
        ("year", "integer", str(2**63), "beyond the range"),
        ("year", "integer", 1e30, "beyond the range"),
        ("year", "integer", True, "a boolean that is not"),
        ("score", "float", "high", "a string that is not"),
        ("score", "float", "nan", "a string that is not"),
        ("score", "float", 10**400, "beyond the range"),
        ("score", "float", "-1e999", "beyond the range"),
        ("checked", "boolean", 1, "an integer that is not"),
        ("at", "timestamp", "yesterday", "a string that is not"),
        ("at", "timestamp", 1706918400, "an integer that is not"),
        ("at", "timestamp", "0001-01-01T00:00:00+09:00", "beyond the range"),
    ],
)
def test_a_value_of_another_type_sets_its_row_aside(
    tmp_path: Path, name: str, type_: str, value: Any, is_what: str
) -> None:
    path = tmp_path / "rows.jsonl"
    row = {"id": "a", "title": "", "text": "x"}
    write(path, [row | {name: value}, row | {name: None}, row])
    bad, *good = read(path, columns=Columns.model_validate({"extra": {name: type_}}))
    assert (bad.passage, bad.reason) == (None, f"{name} is {is_what} of type {type_}")
    assert [one.extra for one in good] == [(None,), (None,)]


def test_a_column_that_no_file_has_is_an_error(tmp_path: Path) -> None:
    write(tmp_path / "a.jsonl", [{"id": "a", "title": "", "text": "x", "lang": "de"}])
    write(tmp_path / "b.jsonl", [{"id": "b", "title": "", "text": "x"}])
    assert [row.extra for row in read(tmp_path, columns=Columns.model_validate({"extra": ["lang"]}))] == [
        ("de",),
        (None,),
    ]
    with pytest.raises(CorpusError, match="has no column 'lnag' in any file; correct columns"):
        read(tmp_path, columns=Columns.model_validate({"extra": ["lnag"]}))
