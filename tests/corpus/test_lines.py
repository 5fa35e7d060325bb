"""Line formats, against Python's own csv, json and gzip."""

import csv
import gzip
import io
import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpr.corpus.lines import iter_lines
from dpr.corpus.rows import MAX_RAW_BYTES, Passage, Row
from dpr.errors import CorpusError
from dpr.recipe import Columns
from tests.corpus.reading import read

REUSES_FOLDER = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


def texts(without: str = "\0") -> st.SearchStrategy[str]:
    characters = st.characters(exclude_characters=without, exclude_categories=["Cs"])
    return st.text(characters, min_size=1).filter(lambda text: not text.isspace())


@pytest.mark.slow
@REUSES_FOLDER
@given(
    records=st.lists(st.tuples(texts(), st.none() | texts(), texts()), min_size=1),
    slice_bytes=st.integers(1, 300),
    ascii_only=st.booleans(),
    end=st.sampled_from(["\n", "\r\n", "\n\n", "\n \n"]),
    ends_with_newline=st.booleans(),
)
def test_jsonl_slices_of_any_size_hold_each_line_once(
    tmp_path: Path,
    records: list[tuple[str, str | None, str]],
    slice_bytes: int,
    ascii_only: bool,
    end: str,
    ends_with_newline: bool,
) -> None:
    names = ("id", "title", "text")
    lines = [json.dumps(dict(zip(names, one, strict=True)), ensure_ascii=ascii_only) for one in records]
    data = end.join(lines) + (end if ends_with_newline else "")
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(data.encode())
    found = read(path, slice_bytes=slice_bytes)
    assert [row.passage for row in found] == [Passage(one[0], one[1] or "", one[2]) for one in records]
    for row, line in zip(found, lines, strict=True):
        assert data.encode()[row.position :].startswith(line.encode())
        assert row.raw.rstrip(b"\r") == line.encode()


@REUSES_FOLDER
@given(
    records=st.lists(st.tuples(*[texts("\0\n\r")] * 3), min_size=1),
    slice_bytes=st.integers(1, 300),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
)
def test_tsv_slices_of_any_size_read_as_csv_does(
    tmp_path: Path, records: list[tuple[str, str, str]], slice_bytes: int, quoting: Any, end: str
) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter="\t", quoting=quoting, lineterminator=end)
    writer.writerows([("id", "text", "title"), *records])
    path = tmp_path / "psgs.tsv"
    path.write_bytes(written.getvalue().encode())
    expected = list(csv.reader(io.StringIO(written.getvalue(), newline=""), delimiter="\t"))[1:]
    found = read(path, slice_bytes=slice_bytes)
    assert [row.passage and [row.passage.id, row.passage.text, row.passage.title] for row in found] == expected


@given(
    data=st.lists(st.sampled_from([b"a", b"\n", b"\r", b" "]), max_size=40).map(b"".join),
    cuts=st.sets(st.integers(1, 39)),
)
def test_lines_belong_to_the_range_that_their_first_byte_lies_in(data: bytes, cuts: set[int]) -> None:
    edges = [0, *sorted(cut for cut in cuts if cut < len(data)), len(data)]
    for start, stop in pairwise(edges):
        expected, position = [], 0
        for line in data.split(b"\n"):
            if start <= position < stop and line and not line.isspace():
                expected.append((position, line, False))
            position += len(line) + 1
        assert list(iter_lines(io.BytesIO(data), start, stop, 1000)) == expected


@given(lengths=st.lists(st.integers(0, 30), max_size=8), max_bytes=st.integers(1, 12), start=st.integers(0, 60))
def test_a_line_over_the_limit_is_cut_and_the_next_one_is_whole(lengths: list[int], max_bytes: int, start: int) -> None:
    lines = [b"x" * length for length in lengths]
    data = b"\n".join(lines)
    start = min(start, len(data))
    expected, position = [], 0
    for line in lines:
        if line and position >= start:
            expected.append((position, line[:max_bytes], len(line) > max_bytes))
        position += len(line) + 1
    assert list(iter_lines(io.BytesIO(data), start, None, max_bytes)) == expected


GOOD = b'{"id": "g", "title": "t", "text": "good"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"id": "a", "title": "t"}', "no text"),
        (b'{"id": "a", "title": "t", "text": null}', "no text"),
        (b'{"id": "a", "title": "t", "text": " \\t "}', "no text"),
        (b'{"title": "t", "text": "x"}', "no id"),
        (b'{"id": "", "title": "t", "text": "x"}', "no id"),
        (b'{"id": " ", "title": "t", "text": "x"}', "no id"),
        (b'{"id": 1.0, "title": "t", "text": "x"}', "id is a decimal number, not a string or an integer"),
        (b'{"id": true, "title": "t", "text": "x"}', "id is a boolean, not a string or an integer"),
        (b'{"id": "a", "title": [3], "text": "x"}', "title is a list, not a string"),
        (b'{"id": "a", "title": true, "text": "x"}', "title is a boolean, not a string"),
        (b'{"id": "a", "title": "t", "text": ["x", "y"]}', "text is a list, not a string"),
        (b'{"id": "a", "title": "t", "text": "x\xff"}', "bad UTF-8"),
        (b'{"id": "a", "title": "t", "text": "x\\u0000y"}', "NUL characters"),
        (b'{"id": "a", "title": "t", "text": "\\ud83d alone"}', "half of a surrogate pair"),
        (b'{"id": "a", "title": "t", "text": "' + b"x" * 3000 + b'"}', "longer than max_passage_chars"),
        (b'{"id": "a", "title": "t", "text": "x"', "broken JSON"),
        (b'{"id": "a", "title": "t", "text": "x"} {}', "broken JSON"),
        (b'{"id": ' + b"9" * 5000 + b', "title": "t", "text": "x"}', "broken JSON"),
        (b"[" * 100_000, "broken JSON"),
        (b"\0\0\0\0", "broken JSON"),
        (b'["a", "t", "x"]', "a list instead of a JSON object"),
        (b"42", "an integer instead of a JSON object"),
        (b"null", "null instead of a JSON object"),
        (b'{"id": {}, "title": "t", "text": "x"}', "id is an object, not a string or an integer"),
    ],
)
def test_a_bad_jsonl_line_is_set_aside_with_its_reason_and_affects_no_other(
    tmp_path: Path, line: bytes, reason: str
) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_bytes(GOOD + b"\n" + line + b"\n" + GOOD + b"\n")
    first, bad, last = read(path, max_passage_chars=2000)
    assert first.passage == last.passage == Passage("g", "t", "good")
    assert bad == Row(len(GOOD) + 1, line, None, reason, str(path))
    assert bad.raw == line[:MAX_RAW_BYTES]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("only one", "1 columns instead of 3"),
        ("a\tb", "2 columns instead of 3"),
        ("a\tb\tc\td", "4 columns instead of 3"),
        ('a\t"b\tc', "broken quoting: a quote is not closed on its line"),
        ("\ttext\ttitle", "no id"),
        ("a\t\ttitle", "no text"),
    ],
)
def test_a_bad_tsv_line_is_set_aside_with_its_reason_and_affects_no_other(
    tmp_path: Path, line: str, reason: str
) -> None:
    path = tmp_path / "psgs.tsv"
    path.write_text(f"id\ttext\ttitle\n1\tone\tT\n{line}\n2\ttwo\t\n")
    first, bad, last = read(path)
    assert (first.passage, last.passage) == (Passage("1", "T", "one"), Passage("2", "", "two"))
    assert (bad.passage, bad.reason, bad.raw) == (None, reason, line.encode())


def test_a_line_longer_than_any_passage_is_not_held_in_memory(tmp_path: Path) -> None:
    path = tmp_path / "corpus.jsonl"
    endless = b'{"id": "a", "text": "' + b"x" * 17_000_000 + b'"}'
    path.write_bytes(GOOD + b"\n" + endless + b"\n" + GOOD)
    first, bad, last = read(path, max_passage_chars=2000)
    assert first.passage == last.passage == Passage("g", "t", "good")
    assert (bad.reason, bad.raw) == ("longer than max_passage_chars", endless[:MAX_RAW_BYTES])


def test_a_quoted_field_longer_than_csv_allows_by_default_is_read(tmp_path: Path) -> None:
    path = tmp_path / "psgs.tsv"
    long = "word " * 30_000
    path.write_text(f'id\ttext\ttitle\n1\t"{long}""quoted"""\tT\n')
    (row,) = read(path, max_passage_chars=1_000_000)
    assert row.passage == Passage("1", "T", f'{long}"quoted"')


def test_unicode_line_separators_and_carriage_returns_end_no_line(tmp_path: Path) -> None:
    path = tmp_path / "psgs.tsv"
    text = "a\u2028b\u2029c\x85d\x0be\x0cf\rg"
    path.write_bytes(f"\ufeffid\ttext\ttitle\r\n1\t{text}\tT\r\n".encode())
    (row,) = read(path)
    assert row.passage == Passage("1", "T", text)


def test_columns_are_mapped_and_integer_ids_become_strings(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('\ufeff{"pk": 7, "body": "x", "n": 1}\n{"pk": 8, "body": "y", "head": "ignored"}\n')
    columns = Columns(id="pk", title=None, text="body")
    assert [row.passage for row in read(path, columns=columns)] == [Passage("7", "", "x"), Passage("8", "", "y")]


def test_tsv_columns_may_come_in_another_order_and_with_others(tmp_path: Path) -> None:
    path = tmp_path / "psgs.tsv"
    path.write_text("title\tid\tlang\ttext\nT\t1\ten\tone\n")
    assert [row.passage for row in read(path)] == [Passage("1", "T", "one")]


@pytest.mark.parametrize("name", ["psgs.tsv", "corpus.jsonl"])
def test_gzipped_files_read_as_plain_ones_also_in_several_members(tmp_path: Path, name: str) -> None:
    if name.endswith("tsv"):
        lines = [b"id\ttext\ttitle\n", *(f"{n}\ttext {n}\ttitle é\n".encode() for n in range(2000))]
    else:
        lines = [f'{{"_id": "{n}", "title": "é", "text": "text {n}"}}\n'.encode() for n in range(2000)]
    plain, packed = tmp_path / name, tmp_path / f"{name}.gz"
    plain.write_bytes(b"".join(lines))
    # the first member is empty, the second ends within a line
    packed.write_bytes(gzip.compress(b"") + gzip.compress(b"".join(lines)[:333]) + gzip.compress(b"".join(lines)[333:]))
    of_plain, of_packed = read(plain, slice_bytes=1000), read(packed, slice_bytes=1000)
    assert [(row.passage, row.position, row.raw) for row in of_packed] == [
        (row.passage, row.position, row.raw) for row in of_plain
    ]
    assert len(of_plain) == 2000


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["cut", "flipped", "trailing"])
def test_damaged_gzip_is_an_error_and_never_a_smaller_corpus(tmp_path: Path, harm: str) -> None:
    noise = random.Random(5)  # it does not compress well, so the file is larger than what planning reads
    text = "".join(f'{{"_id": "{n}", "title": "", "text": "{noise.randbytes(100).hex()}"}}\n' for n in range(15_000))
    data = gzip.compress(text.encode(), 1)
    half = len(data) // 2
    damaged = {
        "cut": data[:-20],
        "flipped": data[:half] + bytes([data[half] ^ 0xFF]) + data[half + 1 :],
        "trailing": data + b"no gzip",
    }[harm]
    path = tmp_path / "corpus.jsonl.gz"
    path.write_bytes(damaged)
    with pytest.raises(CorpusError, match=r"corpus\.jsonl\.gz is damaged or cut short"):
        read(path)
