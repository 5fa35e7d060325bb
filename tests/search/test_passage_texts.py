"""Rows of a table of texts are those that Arrow gives."""

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


def test_extra_columns_come_along() -> None:
    extra = pa.array([{"lang": "de"}, None, {"lang": None}])
    texts = Texts(table(["a", "b", "c"], extra=extra))
    assert [texts.row(place).extra for place in range(3)] == [{"lang": "de"}, {}, {"lang": None}]
