"""Rows of a table of texts are those that Arrow gives."""

from pathlib import Path

import pyarrow as pa
import pytest

from dpr.search.passage_texts import Texts

TEXTS = ["", "é", "a longer text", "日本語", "", "𝄞", "end"]


def table(texts: list[str], **more: pa.Array) -> pa.Table:
    return pa.table({"id": [f"p{n}" for n in range(len(texts))], "title": texts[::-1], "text": texts, **more})


@pytest.mark.parametrize("first", [0, 2, 6])
def test_rows_of_batches_that_begin_anywhere(first: int) -> None:
    several = pa.concat_tables([table(TEXTS).slice(first), table([""] * 3), table(TEXTS[:4]).slice(1, 2)])
    texts = Texts(several)
    for place, row in enumerate(several.to_pylist()):
        found = texts.row(place)
        assert (found.id, found.title, found.texts, found.extra) == (row["id"], row["title"], [row["text"]], {})


@pytest.mark.parametrize("is_read", [False, True])
def test_rows_of_a_file(tmp_path: Path, is_read: bool) -> None:
    several = pa.concat_tables([table(TEXTS), table(["", ""]), table(TEXTS[3:] * 9)])
    path = tmp_path / "texts.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, several.schema) as writer:
        writer.write_table(several)
    texts = Texts.of_file(path, is_read=is_read)
    path.unlink()  # as when the cache makes room
    for place, row in enumerate(several.to_pylist()):
        found = texts.row(place)
        assert (found.id, found.title, found.texts) == (row["id"], row["title"], [row["text"]])


def test_extra_columns_come_along() -> None:
    extra = pa.array([{"lang": "de"}, None, {"lang": None}])
    texts = Texts(table(["a", "b", "c"], extra=extra))
    assert [texts.row(place).extra for place in range(3)] == [{"lang": "de"}, {}, {"lang": None}]
