"""Texts beyond the encoder's token limit: what they lose is counted, in the run, its report, the plan and answers."""

import json
from pathlib import Path
from typing import Any

import pytest

from dpr.engine.executor import LocalExecutor
from dpr.formats.cut_texts import CutTexts
from dpr.operations.forecast import forecast
from dpr.operations.run_report import latest_report
from dpr.run import Plan, Run
from dpr.search.retrieve import Retriever
from tests.collection import Collection
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
    asked = [" ".join(WORDS[20:30]), " ".join(WORDS[100:120])]
    questions.write_text("".join(json.dumps({"question": text, "answers": ["long1"]}) + "\n" for text in asked))
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
        "1 of 2 questions" in lines[1],
    ] == [True, True]

    with Retriever.open(collection.store) as retriever:
        assert retriever.search(asked).lost_tokens == [0, 6]
    collection.corpus["short"] = "w1 w2"
    later = collection.night().report
    assert later
    assert later.encoding.cut == CutTexts(tokens=4)
    assert not any("embedded passages" in line for line in later.lines())
