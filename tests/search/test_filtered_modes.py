"""Filters in every mode, over nights: against a search for all passages, less those that do not match."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpr.errors import RecipeError
from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import parse_filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Retriever
from tests.collection import Collection
from tests.search.filter_oracle import matches
from tests.tiny import WORDS, random_texts

pytestmark = pytest.mark.slow
QUESTIONS = ["w1 w2 w3", "w7 w8", "w150 w20"]
FILTERS: list[dict[str, Any]] = [
    {"lang": "de"},
    {"year": {"gte": 2, "lt": 4}, "lang": {"in": ["de", None]}},
    {"not": {"lang": None}},
    {"year": 99},
]


def row(number: int, text: str) -> dict[str, Any]:
    """Return a passage. Each text occurs twice, in two languages."""
    return {"id": f"p{number:03d}", "text": text, "lang": ["de", "en", None][number % 3], "year": number % 5}


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module", params=["whole", "split"])
def collection(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, encoder: Path) -> Collection:
    """Two nights; `split`: some passages are several windows, each of which has the passage's columns."""
    folder = tmp_path_factory.mktemp("modes")
    texts = [*random_texts(40, max_words=12).values()] * 2 + [" ".join(WORDS[n : n + 40]) for n in range(0, 150, 15)]
    rows = [row(number, text) for number, text in enumerate(texts)]
    path = folder / "rows.jsonl"
    write(path, rows)
    columns = {"title": None, "extra": {"lang": "string", "year": "integer"}}
    long = {"long": "split"} if request.param == "split" else {}
    # enough candidates for all passages
    made = Collection(
        folder / "night",
        encoder,
        corpus={"path": str(path), "columns": columns} | long,
        encoder={"max_tokens": 24},
        index={"factory": "IVF4,SQ8", "nprobe": 4, "rescore": 500},
        lexical={"candidates": 500},
        gate={"min_recall": 0.0},
    )
    made.night()
    write(path, [*rows[10:], row(90, "w7 w8 w9"), row(91, "w7 w8 w9")])
    made.night()
    return made


@pytest.mark.parametrize("few_bytes", [1 << 30, -1])
@pytest.mark.parametrize(("mode", "exact"), [("dense", False), ("dense", True), ("bm25", False), ("hybrid", False)])
def test_hits_are_those_of_a_search_for_all_that_match(
    collection: Collection, monkeypatch: pytest.MonkeyPatch, mode: SearchMode, exact: bool, few_bytes: int
) -> None:
    monkeypatch.setattr("dpr.search.filtered_rows.FEW_BYTES", few_bytes)
    with Retriever.open(collection.store) as retriever:
        everything = retriever.search(QUESTIONS, 500, mode=mode, exact=True).hits
        for document in FILTERS:
            found = retriever.search(QUESTIONS, 7, mode=mode, exact=exact, where=parse_filter(document))
            for hits, all_hits in zip(found.hits, everything, strict=True):
                expected = [hit for hit in all_hits if matches(document, hit.extra)]
                check(hits, expected, 7)
        assert len(everything[0]) > 10
        assert not found.hits[0]


def check(hits: list[Hit], expected: list[Hit], k: int) -> None:
    """Equal scores, as those of one text twice, may come in either order."""
    assert [hit.score for hit in hits] == pytest.approx([hit.score for hit in expected[:k]], abs=1e-5)
    scores = {hit.id: hit for hit in expected}
    assert len({hit.id for hit in hits}) == len(hits)
    for rank, hit in enumerate(hits, 1):
        same = scores[hit.id]
        assert (hit.rank, hit.extra, hit.title) == (rank, same.extra, same.title)
        assert hit.score == pytest.approx(same.score, abs=1e-5)
        for side, other in ((hit.dense, same.dense), (hit.bm25, same.bm25)):
            assert (side is None) == (other is None)
            assert side is None or other is None or side.score == pytest.approx(other.score, abs=1e-5)


def test_a_column_that_is_not_there_is_named(collection: Collection) -> None:
    with Retriever.open(collection.store) as retriever:
        for where in (parse_filter({"lnag": "de"}), parse_filter({"year": "2"})):
            for ask in (
                lambda where=where: retriever.prepare_filter(where),
                lambda where=where: retriever.search(["w1"], where=where),
            ):
                with pytest.raises(
                    RecipeError, match=r"its extra columns are lang \(string\), year \(integer\)|type integer"
                ):
                    ask()
