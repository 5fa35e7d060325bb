"""The report on a store's nights: a page that a browser reads, with the figures of every snapshot."""

import json
from pathlib import Path

from dpr.formats.snapshots import read_history
from dpr.operations.nights_report import write_nights
from tests.collection import FirstNights
from tests.evaluate.html_page import HtmlPage, png_pixels


def test_every_night_is_drawn_and_listed(first_nights: FirstNights, tmp_path: Path) -> None:
    collection = first_nights.copy(tmp_path / "collection")
    questions = tmp_path / "questions.jsonl"
    rows = ({"question": collection.corpus[id_], "answers": [id_]} for id_ in ("p001", "p002", "p003"))
    questions.write_text("".join(json.dumps(row) + "\n" for row in rows))
    collection.change(gate={"questions": str(questions), "min_recall": 0, "at": [1, 5]})
    collection.night()
    collection.corpus["new"] = "w1 w2 w3"
    collection.night()
    history = read_history(collection.store)
    snapshots = history.snapshots
    assert [snapshot.number for snapshot in snapshots] == [1, 2, 3]

    html = write_nights(collection.store, history, tmp_path / "report").read_text()
    page = HtmlPage(html)
    assert page.open == []
    assert "://" not in html.replace(collection.store.url, "")
    _, accuracy, recall, passages = page.tables
    assert accuracy[0] == ["snapshot", "published", "top-1", "top-5"]
    shares = [list(map("{:.4f}".format, snapshot.body.gate.accuracy_index.values())) for snapshot in snapshots]
    assert [row[2:] for row in accuracy[1:]] == [["", ""], *shares[1:]]
    assert [row[2] for row in recall[1:]] == [f"{snapshot.body.gate.recall:.4f}" for snapshot in snapshots]
    assert [row[2] for row in passages[1:]] == ["30", "30", "31"]
    for name in ("accuracy", "recall", "passages", "accuracy-dark"):
        assert png_pixels((tmp_path / "report" / f"{name}.png").read_bytes()) > 100_000
