"""Parquet corpora, against pyarrow's own reading."""

import json
import random
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.corpus.rows import Passage
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig
from tests.corpus.reading import read


def table(rows: int) -> pa.Table:
    noise = random.Random(7)
    return pa.table(
        {
            "id": [f"p{number}" for number in range(rows)],
            "vector": [[float(number)] * 8 for number in range(rows)],
            "title": [None if number % 3 else f"tïtle {number}" for number in range(rows)],
            "text": [noise.randbytes(number % 90 + 1).hex() for number in range(rows)],
        }
    )


@pytest.mark.slow
@pytest.mark.parametrize("slice_bytes", [1, 20_000, 10**9])
@pytest.mark.parametrize("row_group_size", [1, 700, 5000])
def test_slices_of_any_size_hold_each_row_once(tmp_path: Path, slice_bytes: int, row_group_size: int) -> None:
    path, rows = tmp_path / "corpus.parquet", 300 if row_group_size == 1 else 5000
    pq.write_table(table(rows), path, row_group_size=row_group_size)
    found = read(path, slice_bytes=slice_bytes)
    expected = pq.read_table(path).to_pylist()
    assert [row.passage for row in found] == [Passage(row["id"], row["title"] or "", row["text"]) for row in expected]
    assert [row.position for row in found] == list(range(rows))
    assert json.loads(found[-1].raw) == {name: expected[-1][name] for name in ("id", "title", "text")}


def test_slices_are_runs_of_row_groups_of_about_the_size_in_the_recipe(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(table(5000), path, row_group_size=500)
    corpus = CorpusConfig(path=str(path), slice_bytes=100_000)
    slices = plan_slices(corpus).slices
    assert 1 < len(slices) < 10
    assert [slice_.start for slice_ in slices] == [0, *(slice_.stop for slice_ in slices[:-1])]
    assert slices[-1].stop == 10


@pytest.mark.parametrize(
    "ids",
    [
        pa.array([3, 2**63 - 1], pa.int64()),
        pa.array([3, 2**63 - 1], pa.uint64()),
        pa.array(["3", "9223372036854775807"], pa.large_string()),
        pa.array(["3", "9223372036854775807"], pa.string_view()),
        pa.array([b"3", b"9223372036854775807"], pa.binary()),
        pa.array(["3", "9223372036854775807"]).dictionary_encode(),
        pa.array([3, 9223372036854775807], pa.decimal128(38, 0)),
    ],
    ids=lambda ids: str(ids.type),
)
def test_ids_may_be_integers_or_strings_of_any_layout(tmp_path: Path, ids: pa.Array) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"pk": ids, "body": ["x", "y"]}), path)
    found = read(path, columns=Columns(id="pk", title=None, text="body"))
    assert [row.passage for row in found] == [Passage("3", "", "x"), Passage("9223372036854775807", "", "y")]


def test_decimals_are_numbers_and_nan_is_a_missing_title(tmp_path: Path) -> None:
    """Databases export NUMBER as decimals, and pandas a column of numbers with gaps as floats."""
    decimals = pa.array([Decimal("1.50"), None], pa.decimal128(5, 2))
    columns = {"id": [1, 2], "title": [7.5, float("nan")], "text": ["x", "y"], "price": decimals}
    pq.write_table(pa.table(columns), tmp_path / "c.parquet")
    found = read(tmp_path, columns=Columns.model_validate({"extra": {"price": "float"}}))
    assert [(row.passage, row.extra) for row in found] == [
        (Passage("1", "7.5", "x"), (1.5,)),
        (Passage("2", "", "y"), (None,)),
    ]
    assert [row.passage and row.passage.title for row in read(tmp_path, columns=Columns(title="price"))] == ["1.50", ""]
    with pytest.raises(CorpusError, match=r"has decimal128\(5, 2\) in column 'price'; columns.id must name one of str"):
        read(tmp_path, columns=Columns(id="price"))


@pytest.mark.parametrize(
    ("type_", "expected"),
    [
        ("string", ["12345678901234567.01", "0.10", "9007199254740993.00"]),
        ("integer", [None, None, 9007199254740993]),
        ("float", [12345678901234567.01, 0.1, 9007199254740992.0]),
    ],
)
def test_decimals_keep_all_their_digits(tmp_path: Path, type_: str, expected: list[object]) -> None:
    texts = ["12345678901234567.01", "0.10", "9007199254740993.00"]
    decimals = pa.array(map(Decimal, texts), pa.decimal128(38, 2))
    pq.write_table(pa.table({"id": texts, "title": decimals, "text": texts, "n": decimals}), tmp_path / "c.parquet")
    found = read(tmp_path, columns=Columns.model_validate({"extra": {"n": type_}}))
    assert [row.extra[0] if row.passage else None for row in found] == expected
    assert [row.passage.title if row.passage else None for row in found] == [
        None if value is None else text for value, text in zip(expected, texts, strict=True)
    ]


def test_bad_rows_are_set_aside_with_their_reason(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    texts = [b"good", b"st\xffray", None, b" ", b"nu\0l", b"x" * 3000, "gööd".encode()]
    strings = pa.Array.from_buffers(pa.string(), len(texts), pa.array(texts, pa.binary()).buffers())
    columns = {"id": ["a", "b", "c", "d", "e", "f", "g"], "title": pa.nulls(7), "text": strings}
    pq.write_table(pa.table(columns), path)
    found = read(path, max_passage_chars=2000)
    assert [row.reason for row in found] == [
        "",
        "bad UTF-8",
        "no text",
        "no text",
        "NUL characters",
        "longer than max_passage_chars",
        "",
    ]
    assert [row.passage for row in found if row.passage] == [Passage("a", "", "good"), Passage("g", "", "gööd")]
    assert found[1].raw == b'{"id": "b", "title": null, "text": "st\xffray"}'
    assert [row.position for row in found] == list(range(7))


def test_a_truncated_file_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(table(5000), path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(CorpusError, match=r"corpus\.parquet is not Parquet or is damaged"):
        read(path)


@pytest.mark.parametrize("compression", ["snappy", "none"])
def test_damaged_pages_are_an_error_and_never_a_smaller_corpus(tmp_path: Path, compression: str) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(table(5000), path, compression=compression, write_page_checksum=True, row_group_size=1000)
    group = pq.ParquetFile(path).metadata.row_group(3)
    data = bytearray(path.read_bytes())
    middle = group.column(3).data_page_offset + group.column(3).total_compressed_size // 2
    data[middle] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(CorpusError, match=r"corpus\.parquet is not Parquet or is damaged"):
        read(path)


def test_missing_column_and_wrong_type_are_named(tmp_path: Path) -> None:
    path = tmp_path / "corpus.parquet"
    pq.write_table(pa.table({"id": [1], "title": [["a"]], "body": ["x"]}), path)
    with pytest.raises(CorpusError, match=r"no column 'text', only \['id', 'title', 'body'\]; set columns\.text"):
        read(path)
    with pytest.raises(CorpusError, match=r"list<.*> in column 'title'; columns\.title must name one of strings"):
        read(path, columns=Columns(text="body"))


def test_a_file_without_rows_is_an_empty_corpus_but_may_stand_beside_others(tmp_path: Path) -> None:
    pq.write_table(table(0).cast(table(1).schema), tmp_path / "a.parquet")
    with pytest.raises(CorpusError, match="is empty: its files hold no rows"):
        read(tmp_path)
    pq.write_table(table(3), tmp_path / "b.parquet")
    assert len(read(tmp_path)) == 3
