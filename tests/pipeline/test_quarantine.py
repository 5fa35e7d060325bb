"""Rows that cannot be used end in the run's quarantine file as they stand in the corpus; damaged files stop the run."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from dpr.encoder.encode import TowerEncoder
from dpr.encoder.tokens import TokenBatch
from dpr.errors import CorpusError, UnitError
from dpr.engine.stage import LocalExecutor
from dpr.nightly import Outcome, run_recipe
from dpr.recipe import Recipe
from dpr.formats.snapshots import latest_snapshot
from dpr.store import LocalStore
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
    (b'{"id": "e", "title": "t", "text": 5}', "text is a int, not a string"),
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


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_encoder(tmp_path_factory.mktemp("encoder"))


def run(folder: Path, encoder: Path, corpus: str, progress: Quiet | None = None, **fields: object) -> Outcome:
    document = {
        "store": str(folder / "store"),
        "corpus": {"path": str(folder / corpus), "max_passage_chars": MAX_CHARS, "slice_bytes": 1000},
        "encoder": {"model": str(encoder), "pooling": "mean", "normalize": True, "title_join": "space"},
        "resources": {"segment_rows": 40, "cpus_per_encoder": 1},
    }
    return run_recipe(Recipe.model_validate(document | fields), LocalExecutor(), progress or Quiet())


def quarantined(folder: Path, run_id: str) -> list[Quarantined]:
    rows = pq.read_table(folder / "store" / "runs" / run_id / "quarantine.parquet").to_pylist()
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


@pytest.mark.parametrize("name", ["corpus.jsonl", "corpus.jsonl.gz", "corpus.tsv", "corpus.tsv.gz", "corpus.parquet"])
def test_every_kind_of_unusable_row_is_kept_as_it_stands(tmp_path: Path, encoder: Path, name: str) -> None:
    if ".jsonl" in name:
        expected = write_lines(tmp_path / name, JSON_ROWS)
    elif ".tsv" in name:
        expected = write_lines(tmp_path / name, TSV_ROWS, b"id\ttext\ttitle\n")
    else:
        expected = write_parquet(tmp_path / name)
    outcome = run(tmp_path, encoder, name)
    assert quarantined(tmp_path, outcome.report.run) == sorted(expected)
    assert outcome.snapshot.body.passages == 2


def write_corpus(folder: Path, texts: list[str]) -> Path:
    path = folder / "corpus.jsonl"
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
    outcome = run(tmp_path, encoder, path.name)
    assert quarantined(tmp_path, outcome.report.run) == sorted(expected)
    assert outcome.snapshot.body.passages == 116
    assert stored_ids(tmp_path) == {f"p{n}" for n in range(120) if n not in bad}

    # a night later they are tried again, and a copy of such a text is not taken for one that has a vector
    with path.open("a") as file:
        file.write(json.dumps({"id": "copy", "title": "", "text": "poison"}) + "\n")
    night = run(tmp_path, encoder, path.name)
    found = quarantined(tmp_path, night.report.run)
    assert [raw for _, _, _, raw in found] == [row[3] for row in sorted(expected)] + [
        path.read_bytes().splitlines()[-1]
    ]
    assert found[-1][2] == "the encoder refused the same text"
    assert night.snapshot.body.passages == 116

    # and the run after it, whose unit of refused rows is done already, tells of them all the same
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(line for number, line in enumerate(lines) if number != 20))
    later = run(tmp_path, encoder, path.name)
    assert later.report.run != night.report.run
    assert {raw for _, _, _, raw in quarantined(tmp_path, later.report.run)} == {raw for _, _, _, raw in found}

    (tmp_path / "limited").mkdir()
    with pytest.raises(CorpusError, match=r"5 of 120 corpus rows .* cannot be used"):
        run(tmp_path / "limited", encoder, f"../{path.name}", limits={"max_quarantine_rows": 4})
    assert latest_snapshot(LocalStore(tmp_path / "limited" / "store")) is None


def test_an_encoder_that_refuses_very_many_rows_is_at_fault_itself(tmp_path: Path) -> None:
    encoder = make_encoder(tmp_path / "encoder", words=[*WORDS, "poison"])
    endless_at_poison(encoder)
    path = write_corpus(tmp_path, [f"{text} poison" for text in many_texts(150)])
    with pytest.raises(UnitError, match="point to the model or the machine, so nothing was quarantined"):
        run(tmp_path, encoder, path.name, resources={"segment_rows": 150})
    assert latest_snapshot(LocalStore(tmp_path / "store")) is None


def stored_ids(folder: Path) -> set[str]:
    segments = (folder / "store" / "segments").rglob("*.parquet")
    return {id_ for path in segments if "refused" not in path.name for id_ in pq.read_table(path)["id"].to_pylist()}


@pytest.mark.parametrize("name", ["corpus.jsonl.gz", "corpus.parquet"])
@pytest.mark.parametrize("kept_share", [0.5, 0.99])
def test_a_truncated_file_stops_the_run(tmp_path: Path, encoder: Path, name: str, kept_share: float) -> None:
    path = tmp_path / name
    texts = many_texts(3000)
    if name.endswith(".gz"):
        rows = "".join(json.dumps({"id": f"p{n}", "title": "", "text": text}) + "\n" for n, text in enumerate(texts))
        path.write_bytes(gzip.compress(rows.encode()))
    else:
        ids = [f"p{n}" for n in range(3000)]
        pq.write_table(pa.table({"id": ids, "title": [""] * 3000, "text": texts}), path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept_share)])
    with pytest.raises(
        CorpusError, match=rf"corpus file {path} is (damaged or cut short|gzip that ends too early|not whole Parquet)"
    ):
        run(tmp_path, encoder, name)
    assert latest_snapshot(LocalStore(tmp_path / "store")) is None


class _Writes(Quiet):
    """Appends a row to the corpus once a stage has begun, or once its first unit is done."""

    def __init__(self, path: Path, stage: str, after_units: int) -> None:
        super().__init__()
        self._path, self._stage_to_spoil, self._units_left = path, stage, after_units

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        super().start(stage, total_rows, done_rows)
        self._spoil()

    def advance(self, rows: int, said: str = "") -> None:
        super().advance(rows, said)
        self._spoil()

    def _spoil(self) -> None:
        if self._stage != self._stage_to_spoil:
            return
        if self._units_left == 0:
            with self._path.open("a") as file:
                file.write('{"id": "late", "title": "", "text": "w1"}\n')
        self._units_left -= 1


@pytest.mark.parametrize(("stage", "after_units"), [("scan", 0), ("scan", 1), ("diff", 0)])
def test_a_corpus_file_that_changes_while_the_run_reads_it_stops_the_run(
    tmp_path: Path, encoder: Path, stage: str, after_units: int
) -> None:
    path = write_corpus(tmp_path, many_texts(60))
    with path.open("a") as file:
        file.write('{"id": "p0", "title": "", "text": "w1"}\n')  # a duplicate, which the diff reads again
    with pytest.raises(CorpusError, match=rf"corpus file {path} changed while it was being scanned"):
        run(tmp_path, encoder, path.name, _Writes(path, stage, after_units))
    assert latest_snapshot(LocalStore(tmp_path / "store")) is None
    assert run(tmp_path, encoder, path.name).snapshot.body.passages == 61
