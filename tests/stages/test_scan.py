"""The scan: what a slice gives, what later nights need not read again, and files that change under it."""

import gzip
import json
import os
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dpr.corpus.hashes import KnownKeys
from dpr.corpus.reading import read_slice
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.fingerprint import content_hash, id_hash, passage_key
from dpr.formats import layout
from dpr.formats.segment import HASH
from dpr.formats.snapshots import live_snapshot, numbers
from dpr.operations.verify_corpus import verify_corpus
from dpr.recipe import CorpusConfig
from dpr.stages.scan import ScanUnit, scan_slice
from dpr.store import LocalStore
from tests.collection import Collection
from tests.tiny import Quiet, random_texts

FORMATS = [".jsonl", ".jsonl.gz", ".tsv", ".parquet"]


def write_file(path: Path, texts: dict[str, str]) -> Path:
    """Write id → text in the format of the path's suffix."""
    if path.suffix == ".parquet":
        table = pa.table({"id": list(texts), "title": [""] * len(texts), "text": list(texts.values())})
        pq.write_table(table, path, row_group_size=4)
        return path
    if ".tsv" in path.name:
        text = "id\ttext\ttitle\n" + "".join(f"{i}\t{text}\t\n" for i, text in texts.items())
    else:
        text = "".join(json.dumps({"id": i, "title": "", "text": text}) + "\n" for i, text in texts.items())
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def replace_unnoticed(path: Path, data: bytes) -> None:
    """Give a file other bytes, of the same number and with the same time."""
    status = path.stat()
    assert len(data) == status.st_size
    with path.open("r+b") as file:
        file.write(data)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)


def test_a_slice_gives_its_keys_its_new_passages_and_its_unusable_rows(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "store")
    path = tmp_path / "corpus.jsonl"
    rows = [("a", "t", "one"), ("b", "", "two"), ("c", "t", ""), ("d", "", "three"), ("a", "t", "one")]
    lines = [json.dumps(dict(zip(("id", "title", "text"), row, strict=True))) + "\n" for row in rows]
    path.write_text("".join(lines))
    positions = [len("".join(lines[:row])) for row in range(len(rows))]
    config = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(config).slices
    known = KnownKeys(pa.array([passage_key("b", "", "two"), passage_key("z", "", "gone")], HASH))
    found = scan_slice(store, config, known, ScanUnit("scans/e/s.json", "scans/e/s", slice_, path.stat().st_size))
    assert (found.rows, found.new_rows, found.unusable_rows) == (4, 3, 1)
    usable = [0, 1, 3, 4]
    assert pq.read_table(store.local_path(found.keys.name)).to_pylist() == [
        {"position": positions[row], "id_hash": id_hash(rows[row][0]), "key": passage_key(*rows[row])} for row in usable
    ]
    assert found.passages is not None
    assert pq.read_table(store.local_path(found.passages.name)).to_pylist() == [
        {
            "id": rows[row][0],
            "title": rows[row][1],
            "text": rows[row][2],
            "key": passage_key(*rows[row]),
            "content_hash": content_hash(*rows[row][1:]),
            "position": positions[row],
        }
        for row in (0, 3, 4)
    ]
    assert found.unusable is not None
    assert pq.read_table(store.local_path(found.unusable.name)).to_pylist() == [
        {"source": str(path), "position": positions[2], "reason": "no text", "raw": lines[2].rstrip("\n").encode()}
    ]


class Files:
    """A collection whose corpus is a folder of several files."""

    def __init__(self, folder: Path, encoder: Path, suffix: str) -> None:
        self.corpus = folder / "corpus"
        self.corpus.mkdir()
        self.texts = {name: random_texts(12, name, seed) for seed, name in enumerate("abc")}
        self.paths = {name: self.corpus / f"{name}{suffix}" for name in self.texts}
        for name in self.texts:
            write_file(self.paths[name], self.texts[name])
        corpus = {"path": str(self.corpus), "format": "auto", "slice_bytes": 1000}
        self.collection = Collection(folder, encoder, corpus=corpus)

    def night(self) -> Quiet:
        """Bring the collection up to date, and check that it holds `texts`."""
        progress = Quiet()
        body = self.collection.night(progress=progress).snapshot.body
        expected = {id_: text for texts in self.texts.values() for id_, text in texts.items()}
        assert {id_: text for id_, (text, _) in self.collection.live_rows(body).items()} == expected
        return progress

    def differing(self) -> dict[str, str]:
        """Return path → what `verify_corpus` says of it, for the files that differ from their scans."""
        store = self.collection.store
        _, changed = verify_corpus(store, live_snapshot(store), self.collection.recipe)
        return {file.path: file.reason.split(": ", 1)[1].split(";")[0] for file in changed}


@pytest.mark.slow
@pytest.mark.parametrize("suffix", FORMATS)
def test_a_night_reads_only_files_that_changed(tmp_path: Path, encoder: Path, suffix: str) -> None:
    """The bytes of the other files are corrupted, with size and time as before, so that reading them would fail."""
    files = Files(tmp_path, encoder, suffix)
    assert files.night().rows["scan"] == 36
    for name in ("a", "c"):
        replace_unnoticed(files.paths[name], b"\xff" * files.paths[name].stat().st_size)
    files.texts["b"] = files.texts["b"] | {"b003": "w1 w2", "new": "w3"}
    write_file(files.paths["b"], files.texts["b"])
    progress = files.night()
    assert (progress.rows["scan"], progress.rows["embed"]) == (13, 2)
    assert [message for message in progress.messages if message.startswith("scan: ")] == [
        "scan: at most 1 of 3 files are read; 2 are trusted to hold what they held when they were scanned, since their "
        "size and time (or ETag) are the same"
    ]
    assert set(files.differing()) == {str(files.paths["a"]), str(files.paths["c"])}
    # nor does the night after it, which finds fewer files and none that is new
    files.paths["b"].unlink()
    files.texts["b"] = {}
    assert files.night().rows["scan"] == 0

    files.collection.change(corpus={"rescan": "always"})
    with pytest.raises(CorpusError):
        files.collection.night()


def test_a_file_changed_in_place_without_a_sign_is_noticed_only_by_reading_all(tmp_path: Path, encoder: Path) -> None:
    files = Files(tmp_path, encoder, ".jsonl")
    files.night()
    old, new = files.texts["a"]["a004"], files.texts["a"]["a004"][::-1]
    assert old != new
    data = files.paths["a"].read_bytes()
    assert data.count(json.dumps(old).encode()) == 1
    replace_unnoticed(files.paths["a"], data.replace(json.dumps(old).encode(), json.dumps(new).encode()))
    assert files.night().rows == {}  # there is nothing to do, as far as anyone can see
    assert files.differing() == {str(files.paths["a"]): "1 of its 12 passages differ"}

    files.collection.change(corpus={"rescan": "always"})
    files.texts["a"]["a004"] = new
    progress = files.night()
    assert (progress.rows["scan"], progress.rows["embed"]) == (36, 1)
    # every night, also after one that found nothing
    progress = files.night()
    assert (progress.rows["scan"], progress.rows["embed"]) == (36, 0)
    assert numbers(files.collection.store) == [1, 2]
    replace_unnoticed(files.paths["a"], data)
    files.texts["a"]["a004"] = old
    progress = files.night()
    assert (progress.rows["scan"], progress.rows["embed"]) == (36, 0)  # its vector is there from the first night
    assert numbers(files.collection.store) == [1, 2, 3]


def test_what_was_scanned_once_serves_all_later_runs(tmp_path: Path, encoder: Path) -> None:
    files = Files(tmp_path, encoder, ".jsonl")
    files.night()
    store = files.collection.store
    before = {info.name: info.modified for info in store.list(layout.SCANS)}
    assert len(before) > 6  # three files of a slice or two, of each a record and its objects
    files.texts["b"] |= {"new": "w3"}
    write_file(files.paths["b"], files.texts["b"])
    files.night()
    after = {info.name: info.modified for info in store.list(layout.SCANS)}
    assert after.items() > before.items()
    records = [name for name in after.keys() - before.keys() if name.endswith(".json")]
    assert len(records) == -(-files.paths["b"].stat().st_size // 1000)  # one for each slice of the file that changed


ROWS = "".join(f'{{"_id": "{n}", "title": "", "text": "passage {n}"}}\n' for n in range(5_000)).encode()


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\n")


def shorten(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


def touch(path: Path) -> None:
    os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))


def swap(path: Path) -> None:
    """Another file of the same size takes its place, as most tools write."""
    other = path.with_name("other")
    other.write_bytes(path.read_bytes())
    other.replace(path)


def vanish(path: Path) -> None:
    path.unlink()


NAMES = ["corpus.jsonl", "corpus.jsonl.gz", "corpus.parquet", "corpus.txt"]
CHANGES = [append, shorten, touch, swap, vanish]


@pytest.fixture(params=NAMES)
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    if path.suffix == ".parquet":
        pq.write_table(pa.table({name: [str(n) for n in range(5_000)] for name in ("id", "title", "text")}), path)
    else:
        path.write_bytes(gzip.compress(ROWS, 1) if path.suffix == ".gz" else ROWS)
    return path


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changed_since_planning_is_not_read(path: Path, change: Callable[[Path], None]) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus).slices
    change(path)
    with pytest.raises(CorpusError, match=r"corpus\.\S+ (changed while it was being scanned|is not there)"):
        next(read_slice(slice_, corpus))


# a document is read whole before its first row
@pytest.mark.parametrize("path", NAMES[:3], indirect=True)
@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_changes_while_it_is_read_is_an_error(path: Path, change: Callable[[Path], None]) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus).slices
    rows = read_slice(slice_, corpus)
    next(rows)
    change(path)
    with pytest.raises(CorpusError, match=r"corpus\.\S+ (changed|is not|is damaged)"):
        list(rows)


def test_stopping_early_is_no_error(path: Path) -> None:
    corpus = CorpusConfig(path=str(path))
    (slice_,) = plan_slices(corpus).slices
    rows = iter(read_slice(slice_, corpus))
    next(rows)
    rows.close()  # type: ignore[attr-defined]
