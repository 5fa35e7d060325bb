"""Rows that cannot be used end in the run's quarantine file as they stand in the corpus; damaged files stop the run."""

import gzip
import json
import re
from collections import Counter
from collections.abc import Callable, Set
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from dpr.encoder.encode import TowerEncoder
from dpr.encoder.tokens import TokenBatch
from dpr.errors import CorpusError, EncoderError, UnitError
from dpr.formats import layout
from dpr.formats.snapshots import latest_snapshot
from dpr.recipe import Limits
from dpr.run_recipe import Outcome
from dpr.stages.quarantine_limits import max_unusable
from tests.collection import Collection
from tests.tiny import WORDS, Quiet, make_encoder

MAX_CHARS = 500
Quarantined = tuple[str, int, str, bytes]
"""Source, position, reason, raw bytes."""

JSON_ROWS: list[tuple[bytes, str]] = [
    (b'{"id": "good 1", "title": "t", "text": "w1 w2"}', ""),
    (b'{"id": "a", "title": "t", "text": ""}', "no text"),
    (b'{"title": "t", "text": "w3"}', "no id"),
    (b'{"id": "b", "title": "t", "text": "w\xff"}', "bad UTF-8"),
    (b'{"id": "c", "title": "t", "text": "w\\u0000"}', "NUL characters"),
    (b'{"id": "d", "title": "t", "text": "' + b"w1 " * MAX_CHARS + b'"}', "longer than max_passage_chars"),
    (b'{"id": "good 1", "title": "t", "text": "w5"}', "duplicate id: an earlier passage has 'good 1'"),
    (b'{"id": "e", "title": "t", "text": 5}', "text is an integer, not a string"),
    (b'{"id": "f", "title": "t", "text": "w6"', "broken JSON"),
    (b'{"id": "good 2", "title": "", "text": "w7"}', ""),
]
TSV_ROWS: list[tuple[bytes, str]] = [
    (b"good 1\tw1 w2\tt", ""),
    (b"a\t\tt", "no text"),
    (b"\tw3\tt", "no id"),
    (b"b\tw\xff\tt", "bad UTF-8"),
    (b"c\tw\0\tt", "NUL characters"),
    (b"d\t" + b"w1 " * MAX_CHARS + b"\tt", "longer than max_passage_chars"),
    (b"good 1\tw5\tt", "duplicate id: an earlier passage has 'good 1'"),
    (b"e\tw6", "2 columns instead of 3"),
    (b"good 2\tw7\t", ""),
]


def collection_of(folder: Path, model: Path, name: str, **fields: Any) -> Collection:
    """A collection whose corpus is the file of that name, which the test writes."""
    corpus = {"path": str(folder / name), "format": "auto", "max_passage_chars": MAX_CHARS, "slice_bytes": 1000}
    return Collection(
        folder,
        model,
        **{"corpus": corpus, "resources": {"segment_rows": 40}, "limits": {"max_quarantine_share": 0.9}, **fields},
    )


def quarantined(collection: Collection, outcome: Outcome, known: Set[str] = frozenset()) -> list[Quarantined]:
    """The rows in the quarantine file of a run, apart from files that are `known`."""
    assert outcome.report is not None
    stem = layout.quarantine(outcome.report.run)
    (name,) = {name for name in collection.files() if name.startswith(f"{stem}-")} - known
    rows = pq.read_table(collection.file(name)).to_pylist()
    counts = Counter(row["reason"].partition(":")[0] for row in rows)
    assert outcome.report.found.quarantined == dict(counts)
    return sorted((row["source"], row["position"], row["reason"], row["raw"]) for row in rows)


def write_lines(path: Path, rows: list[tuple[bytes, str]], head: bytes = b"") -> list[Quarantined]:
    """Write rows to a file of lines; returns the unusable ones, with the offset of each."""
    data, bad = head, []
    for row, reason in rows:
        if reason:
            bad.append((str(path), len(data), reason, row))
        data += row + b"\n"
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return bad


def write_parquet(path: Path) -> list[Quarantined]:
    rows: list[tuple[object, bytes, str]] = [
        ("good 1", b"w1 w2", ""),
        ("a", b"", "no text"),
        (None, b"w3", "no id"),
        ("b", b"w\xff", "bad UTF-8"),
        ("c", b"w\0", "NUL characters"),
        ("d", b"w1 " * MAX_CHARS, "longer than max_passage_chars"),
        ("good 1", b"w5", "duplicate id: an earlier passage has 'good 1'"),
        ("good 2", b"w7", ""),
    ]
    ids, texts, reasons = zip(*rows, strict=True)
    table = pa.table({"id": pa.array(ids), "title": pa.array(["t"] * len(rows)), "text": pa.array(texts, pa.binary())})
    pq.write_table(table, path, row_group_size=3)
    return [
        (str(path), position, reason, _json_of(ids[position], texts[position]))
        for position, reason in enumerate(reasons)
        if reason
    ]


def _json_of(id_: object, text: bytes) -> bytes:
    """A row of Parquet as JSON with its bytes as they are: stray ones, and NUL as JSON writes it."""
    escaped = text.replace(b"\0", b"\\u0000")
    return b'{"id": ' + json.dumps(id_).encode() + b', "title": "t", "text": "' + escaped + b'"}'


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz", "rows.tsv", "rows.tsv.gz", "rows.parquet"])
def test_every_kind_of_unusable_row_is_kept_as_it_stands(tmp_path: Path, encoder: Path, name: str) -> None:
    if ".jsonl" in name:
        expected = write_lines(tmp_path / name, JSON_ROWS)
    elif ".tsv" in name:
        expected = write_lines(tmp_path / name, TSV_ROWS, b"id\ttext\ttitle\n")
    else:
        expected = write_parquet(tmp_path / name)
    collection = collection_of(tmp_path, encoder, name)
    outcome = collection.night()
    assert quarantined(collection, outcome) == sorted(expected)
    assert outcome.snapshot.body.passages == 2


def write_corpus(folder: Path, texts: list[str]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text(
        "".join(json.dumps({"id": f"p{n}", "title": "", "text": text}) + "\n" for n, text in enumerate(texts))
    )
    return path


def many_texts(count: int) -> list[str]:
    rng = np.random.default_rng(5)
    return [" ".join(rng.choice(WORDS[:100], rng.integers(3, 12))) for _ in range(count)]


def poison(folder: Path) -> int:
    """The token that the encoder shall not take."""
    return (folder / "vocab.txt").read_text().split("\n").index("poison")


def endless_at_poison(folder: Path) -> None:
    """The encoder gives vectors that are not finite for texts with the poison."""
    weights = load_file(folder / "model.safetensors")
    weights["embeddings.word_embeddings.weight"][poison(folder)] = torch.inf
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def failing_at_poison(patch: pytest.MonkeyPatch, folder: Path) -> None:
    """The encoder raises whenever the poison is among its tokens."""
    encode, token = TowerEncoder.encode, poison(folder)

    def failing(self: TowerEncoder, tokens: TokenBatch, *args: Any) -> Any:
        if token in tokens.ids_T:
            raise RuntimeError("no kernel for this\ninput")
        return encode(self, tokens, *args)

    patch.setattr(TowerEncoder, "encode", failing)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fails", "reason"),
    [
        (True, "the encoder failed on it: RuntimeError: no kernel for this input"),
        (False, "the encoder gave a vector that is not finite"),
    ],
)
def test_rows_that_the_encoder_cannot_take_are_found_and_spoil_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: bool, reason: str
) -> None:
    encoder = make_encoder(tmp_path / "encoder", words=[*WORDS, "poison"])
    if fails:
        failing_at_poison(monkeypatch, encoder)
    else:
        endless_at_poison(encoder)
    texts = many_texts(120)
    bad = {7: "poison", 8: "w1 poison w2", 63: "w9 w9 poison", 119: "poison w4"}
    for number, text in bad.items():
        texts[number] = text
    path = write_corpus(tmp_path, texts)
    data = path.read_bytes()
    lines = data.splitlines()
    expected = [(str(path), data.index(lines[n]), reason, lines[n]) for n in bad]
    collection = collection_of(tmp_path, encoder, path.name)
    outcome = collection.night()
    assert quarantined(collection, outcome) == sorted(expected)
    assert outcome.snapshot.body.passages == 116
    good = {f"p{n}" for n in range(120) if n not in bad}
    assert collection.live_rows(outcome.snapshot.body).keys() == good

    # a night later they are tried again, and a copy of such a text is not taken for one that has a vector
    with path.open("a") as file:
        file.write(json.dumps({"id": "copy", "title": "", "text": "poison"}) + "\n")
    night = collection.night()
    found = quarantined(collection, night)
    assert [raw for _, _, _, raw in found] == [row[3] for row in sorted(expected)] + [
        path.read_bytes().splitlines()[-1]
    ]
    assert found[-1][2] == "the encoder refused the same text"
    assert night.snapshot.body.passages == 116

    # the next run finds its unit of refused rows done already, and still reports them
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for number, line in enumerate(lines) if number != 20))
    later = collection.night()
    assert later.report is not None
    assert night.report is not None
    assert later.report.run != night.report.run
    assert {raw for _, _, _, raw in quarantined(collection, later)} == {raw for _, _, _, raw in found}

    limited = collection_of(tmp_path / "limited", encoder, f"../{path.name}", limits={"max_quarantine_rows": 4})
    with pytest.raises(EncoderError, match=rf"5 of 120 corpus rows .* '{reason}' \(5 rows, the first is line 8 of "):
        limited.night()
    assert latest_snapshot(limited.store) is None


def test_an_encoder_that_refuses_very_many_rows_is_at_fault_itself(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder", words=[*WORDS, "poison"])
    endless_at_poison(encoder)
    path = write_corpus(tmp_path, [f"{text} poison" for text in many_texts(150)])
    collection = collection_of(tmp_path, encoder, path.name, resources={"segment_rows": 150})
    with pytest.raises(UnitError, match="point to the model or the machine, so nothing was quarantined"):
        collection.night()
    assert latest_snapshot(collection.store) is None


@pytest.mark.slow
def test_an_encoder_that_refuses_all_of_few_rows_is_named(tmp_path: Path) -> None:
    """Whatever share of unusable rows the recipe allows: there must be a passage."""
    encoder = make_encoder(tmp_path / "encoder", words=[*WORDS, "poison"])
    endless_at_poison(encoder)
    path = write_corpus(tmp_path, ["w1 poison"] * 3)  # one is encoded, and two would borrow its vector
    collection = collection_of(tmp_path, encoder, path.name, limits={"max_quarantine_share": 1.0})
    reason = "'the encoder gave a vector that is not finite' (3 rows, the first is line 1 of "
    with pytest.raises(EncoderError, match=re.escape(reason)):
        collection.night()


@pytest.mark.parametrize("good", [0, 1])
def test_nearly_all_rows_of_one_kind_stop_a_run_by_default(tmp_path: Path, encoder: Path, good: int) -> None:
    lines = [json.dumps({"id": "a", "title": "t", "text": "w1"})] * good
    lines += [json.dumps({"id": float(n), "title": "t", "text": "w1"}) for n in range(499)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    collection = Collection(tmp_path, encoder, corpus={"path": str(tmp_path / "rows.jsonl")})
    with pytest.raises(CorpusError) as error:
        collection.night()
    nothing, share = ("", "99.8%") if good else ("the corpus holds no usable passage: ", "100.0%")
    assert str(error.value).startswith(f"{nothing}499 of {499 + good} corpus rows ({share}) cannot be used")
    reason = "'id is a decimal number, not a string or an integer' (499 rows, the first is line "
    assert f"{reason}{1 + good} of {tmp_path}/rows.jsonl)" in str(error.value)
    named = re.search(r"runs/\S+", str(error.value))
    assert named is not None
    assert pq.read_table(collection.file(named.group())).num_rows == 499


def test_unusable_rows_are_limited_and_kept_either_way(tmp_path: Path, encoder: Path) -> None:
    """Either a number or a share stops a run."""
    collection = Collection(tmp_path, encoder, {"a": "w1", "b": "w2", "c": "", "d": " "})
    sentence = (
        r"2 of 4 corpus rows \(50\.0%\) cannot be used, .*'no text' \(2 rows, the first is line 3 of .*corpus.jsonl\)"
        ".* are in runs/"
    )
    for limits in ({"max_quarantine_share": 0.49}, {"max_quarantine_share": 0.5, "max_quarantine_rows": 1}):
        collection.change(limits=limits)
        with pytest.raises(CorpusError, match=sentence) as error:
            collection.night()
    named = re.search(r"runs/\S+", str(error.value))
    assert named is not None
    lines = collection.path.read_bytes().splitlines()
    assert [row["raw"] for row in pq.read_table(collection.file(named.group())).to_pylist()] == lines[2:]
    assert latest_snapshot(collection.store) is None
    collection.change(limits={"max_quarantine_rows": 2})
    assert collection.night().snapshot.body.passages == 2
    collection.corpus = {"c": ""}
    collection.change(limits={"max_quarantine_share": 1.0})
    with pytest.raises(CorpusError, match=r"no usable passage: 1 of 1 corpus rows .* 'no text'"):
        collection.night()


@given(
    rows=st.integers(0, 1000),
    max_rows=st.integers(0, 50),
    hundredths=st.integers(0, 100),
)
def test_as_many_rows_as_allowed_may_be_unusable_and_not_one_more(rows: int, max_rows: int, hundredths: int) -> None:
    limits = Limits(max_quarantine_rows=max_rows, max_quarantine_share=hundredths / 100)
    allowed = max_unusable(rows, limits)
    for unusable in (allowed, allowed + 1):
        stops = unusable > max_rows or 100 * unusable > hundredths * rows
        assert stops == (unusable > allowed)


class _Acts(Quiet):
    """Calls a function once a stage has begun, or once `after_units` of its units are done."""

    def __init__(self, act: Callable[[], object], stage: str, after_units: int = 0) -> None:
        super().__init__()
        self._act, self._stage_to_spoil, self._units_left = act, stage, after_units

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        self._spoil()

    def advance(self, rows: int, detail: str = "") -> None:
        super().advance(rows, detail)
        self._spoil()

    def _spoil(self) -> None:
        if self._stage != self._stage_to_spoil:
            return
        if self._units_left == 0:
            self._act()
        self._units_left -= 1


def test_too_many_duplicates_stop_the_run_before_any_of_them_is_read_again(tmp_path: Path, encoder: Path) -> None:
    """The corpus is deleted by then, so reading it would fail."""
    collection = Collection(tmp_path, encoder)
    collection.more_rows = list(collection.corpus.items())[:5]
    collection.change(limits={"max_quarantine_rows": 4, "max_quarantine_share": 0.2})
    sentence = "5 of 35 passages have the id of an earlier one, more unusable rows than the recipe allows"
    with pytest.raises(CorpusError, match=sentence):
        collection.night(progress=_Acts(collection.path.unlink, "diff"))
    assert latest_snapshot(collection.store) is None
    # within the limits, they are read again
    collection.change(limits={"max_quarantine_rows": 5})
    with pytest.raises(CorpusError, match="is not there"):
        collection.night(progress=_Acts(collection.path.unlink, "diff"))
    outcome = collection.night()
    assert outcome.snapshot.body.passages == 30
    assert [reason for _, _, reason, _ in quarantined(collection, outcome)] == [
        f"duplicate id: an earlier passage has {name!r}" for name, _ in collection.more_rows
    ]


def test_unusable_rows_and_duplicates_count_together(tmp_path: Path, encoder: Path) -> None:
    collection = Collection(tmp_path, encoder)
    collection.more_rows = [*list(collection.corpus.items())[:2], ("empty", ""), ("none", "")]
    collection.change(limits={"max_quarantine_share": 0.1})
    with pytest.raises(CorpusError, match="2 of 32 passages have the id of an earlier one"):
        collection.night()
    collection.change(limits={"max_quarantine_share": 0.13})
    assert len(quarantined(collection, collection.night())) == 4


@pytest.mark.parametrize("name", ["rows.jsonl.gz", "rows.parquet"])
@pytest.mark.parametrize("kept_share", [0.5, 0.99])
def test_a_truncated_file_stops_the_run(tmp_path: Path, encoder: Path, name: str, kept_share: float) -> None:
    path = tmp_path / name
    texts = many_texts(600)
    if name.endswith(".gz"):
        rows = "".join(json.dumps({"id": f"p{n}", "title": "", "text": text}) + "\n" for n, text in enumerate(texts))
        path.write_bytes(gzip.compress(rows.encode()))
    else:
        ids = [f"p{n}" for n in range(600)]
        pq.write_table(pa.table({"id": ids, "title": [""] * 600, "text": texts}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept_share)])
    collection = collection_of(tmp_path, encoder, name)
    with pytest.raises(
        CorpusError,
        match=rf"corpus file {path} is (damaged or cut short|gzip that ends too early|not Parquet or is damaged)",
    ):
        collection.night()
    assert latest_snapshot(collection.store) is None


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "after_units"), [("scan", 0), ("scan", 1), ("diff", 0)])
def test_a_corpus_file_that_changes_while_the_run_reads_it_stops_the_run(
    tmp_path: Path, encoder: Path, stage: str, after_units: int
) -> None:
    path = write_corpus(tmp_path, many_texts(60))

    def write(line: str) -> None:
        with path.open("a") as file:
            file.write(line)

    write('{"id": "p0", "title": "", "text": "w1"}\n')  # a duplicate, which the diff reads again
    collection = collection_of(tmp_path, encoder, path.name)
    late = _Acts(lambda: write('{"id": "late", "title": "", "text": "w1"}\n'), stage, after_units)
    with pytest.raises(CorpusError, match=rf"corpus file {path} changed while it was being scanned"):
        collection.night(progress=late)
    assert latest_snapshot(collection.store) is None
    assert collection.night().snapshot.body.passages == 61
