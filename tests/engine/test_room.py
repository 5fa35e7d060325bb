"""Room for units: free space against what can really be written, and estimates against what real units use."""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dpr.corpus.hashes import KnownKeys
from dpr.corpus.slices import plan_slices
from dpr.engine.room import Need, check_room, memory_available
from dpr.errors import RoomError
from dpr.formats.manifest import SnapshotBody
from dpr.formats.records import ObjectRef
from dpr.formats.segment import HASH
from dpr.index.choose import keep
from dpr.index.faiss_file import read_faiss
from dpr.index.kinds import core, storage
from dpr.index.part import PartFile
from dpr.stages.build import BuildUnit, build_need
from dpr.stages.merge import MergeUnit
from dpr.stages.scan import ScanUnit, scan_need, scan_slice
from dpr.stages.write_segment import SegmentUnit, Vectored
from dpr.store import LocalStore
from tests.collection import Collection, FirstNights
from tests.disk import fill_disk, small_disk
from tests.tiny import Quiet, random_texts

ROOT = Path(__file__).resolve().parents[2]
SIZE = 1 << 20
DIM = 32
NOTHING = ObjectRef(name="none", size_bytes=0, sha256="0" * 64)
MODERATE = 8
"""An estimate is below the memory that is used by less than this factor."""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "disk", SIZE) as folder:
        yield folder


def refusal(store: LocalStore, need: Need) -> str:
    """Return why the unit of a record is refused; empty if it is not."""
    try:
        check_room(store, "merge", "index/a.json", need)
    except RoomError as error:
        return str(error)
    return ""


def test_what_can_be_written_is_not_refused_and_one_page_more_is(disk: Path) -> None:
    (disk / "other").write_bytes(bytes(300_000))
    written = fill_disk(disk / "all")
    (disk / "all").unlink()
    store = LocalStore(disk / "store")
    assert refusal(store, Need(store_bytes=written)) == ""
    assert refusal(store, Need(store_bytes=written + 4096)) != ""


def test_needs_of_folders_on_one_disk_add_up(disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    monkeypatch.setenv("DPR_CACHE", str(disk / "cache"))
    here, elsewhere = LocalStore(disk / "store"), LocalStore(tmp_path / "store")
    two_thirds = SIZE * 2 // 3
    for one in (Need(two_thirds), Need(store_bytes=two_thirds), Need(cache_bytes=two_thirds)):
        assert refusal(here, one) == ""
    assert refusal(elsewhere, Need(two_thirds, two_thirds)) == ""
    assert "1.4 MB of disk for temporary files in" in refusal(here, Need(two_thirds, two_thirds))
    assert "and the cache in" in refusal(elsewhere, Need(two_thirds, two_thirds, two_thirds))


def test_the_sentence_says_where_and_what_to_do(disk: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(disk))
    found = refusal(LocalStore(disk / "store"), Need(SIZE, SIZE, smaller="raise index.shards"))
    assert found.startswith("stage merge cannot do index/a.json on ")
    assert found.endswith(
        f": it needs about 2.1 MB of disk for temporary files in {disk} and the store in {disk}, and 1.0 MB are free; "
        "free disk space, set TMPDIR to a folder of a larger disk, or raise index.shards"
    )
    found = refusal(LocalStore(disk / "store"), Need(memory_bytes=10**15, smaller="lower index.train_rows"))
    assert "it needs about 1,000,000.0 GB of memory, and " in found
    assert found.endswith("; give the worker more memory, or lower index.train_rows")


GIB = 1 << 30
MEMINFO = f"MemTotal: {16 << 20} kB\nMemFree: 1 kB\nMemAvailable: {8 << 20} kB\nSwapFree: 0 kB\nHugePages_Free: 0\n"
V2 = {"memory.max": 4 * GIB, "memory.current": 3 * GIB}
V1 = {"memory.limit_in_bytes": 4 * GIB, "memory.usage_in_bytes": 3 * GIB}
UNLIMITED_V1 = {"memory.limit_in_bytes": 9223372036854771712, "memory.usage_in_bytes": 3 * GIB}


def machine(root: Path, groups: str, files: dict[str, dict[str, object]]) -> Path:
    """Write the files of a machine as Linux gives them (proc(5), cgroups(7))."""
    for name, text in (("meminfo", MEMINFO), ("self/cgroup", groups), ("self/status", "Name: x\nRssAnon: 0 kB\n")):
        (root / "proc" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "proc" / name).write_text(text)
    for folder, values in files.items():
        (root / "sys/fs/cgroup" / folder).mkdir(parents=True, exist_ok=True)
        for name, value in values.items():
            (root / "sys/fs/cgroup" / folder / name).write_text(f"{value}\n")
    return root


@pytest.mark.parametrize(
    ("groups", "files", "available"),
    [
        ("0::/\n", {}, 8 * GIB),
        ("0::/a/b\n", {"a/b": {"memory.max": "max", "memory.current": GIB}}, 8 * GIB),
        ("0::/a/b\n", {"a/b": V2}, GIB),
        ("0::/a/b\n", {"a": V2, "a/b": {"memory.max": "max", "memory.current": GIB}}, GIB),
        ("0::/\n", {"": V2}, GIB),  # a container with a namespace of its own
        ("0::/\n", {"": V2 | {"memory.stat": f"anon 1\ninactive_file {GIB}\nactive_file {GIB}\nshmem {GIB}"}}, 3 * GIB),
        ("4:cpu,memory:/a\n0::/\n", {"memory/a": V1}, GIB),
        ("4:memory:/docker/a\n", {"memory": V1}, GIB),  # a container that sees its own group as the root
        ("4:memory:/a\n", {"memory": UNLIMITED_V1, "memory/a": UNLIMITED_V1}, 8 * GIB),
        ("4:memory:/a\n", {"memory/a": V1 | {"memory.stat": f"inactive_file 9\ntotal_inactive_file {GIB}"}}, 2 * GIB),
        ("4:memory:/a\n", {"memory/a": V1 | {"memory.limit_in_bytes": 64 * GIB}}, 8 * GIB),
    ],
)
def test_memory_is_bounded_by_the_machine_and_by_every_control_group(
    tmp_path: Path, groups: str, files: dict[str, dict[str, object]], available: int
) -> None:
    assert memory_available(machine(tmp_path, groups, files)) == available


def test_swap_and_what_the_process_holds_count_as_available(tmp_path: Path) -> None:
    root = machine(tmp_path, "0::/\n", {"": V2})
    (root / "proc/meminfo").write_text(MEMINFO.replace("SwapFree: 0", f"SwapFree: {2 << 20}"))
    (root / "proc/self/status").write_text(f"RssAnon: {1 << 20} kB\n")
    assert memory_available(root) == 4 * GIB


def test_a_system_without_these_files_refuses_nothing(tmp_path: Path) -> None:
    assert memory_available(tmp_path) is None


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="needs Linux")
def test_this_machine_has_at_most_its_memory_available() -> None:
    total = sum(
        int(line.split()[1]) << 10 for line in Path("/proc/meminfo").read_text().splitlines() if "Total:" in line
    )
    found = memory_available()
    assert found is not None
    assert 0 < found < total + GIB


def check_estimate(estimated: int, taken: int) -> None:
    assert taken / MODERATE <= estimated <= taken


@pytest.mark.parametrize("max_words", [40, 200, 2_000])
def test_the_estimate_of_a_scan_is_below_what_it_stores(tmp_path: Path, max_words: int) -> None:
    corpus = Collection(tmp_path, tmp_path, random_texts(300, min_words=max_words // 2, max_words=max_words))
    corpus.write_corpus()
    (slice_,) = plan_slices(corpus.recipe.corpus).slices
    unit, nothing = ScanUnit("scans/e/s.json", "scans/e/s", slice_, 0), KnownKeys(pa.array([], HASH))
    found = scan_slice(corpus.store, corpus.recipe.corpus, nothing, unit)
    assert found.passages is not None
    check_estimate(scan_need(unit, nothing).store_bytes, found.keys.size_bytes + found.passages.size_bytes)


@pytest.fixture(params=["Flat", "IVF8,SQ8", "IVF4,PQ16x4", "IVF4,PQ16x4fs", "HNSW16"])
def night(request: pytest.FixtureRequest, tmp_path: Path, first_nights: FirstNights) -> Collection:
    index = {"factory": request.param, "nprobe": 2, "rescore": 50}
    gate, resources = {"min_recall": 0}, {"segment_rows": 400}
    return first_nights.copy(tmp_path, random_texts(1_000), index=index, gate=gate, resources=resources)


@pytest.mark.slow
def test_estimates_of_a_night_are_below_the_files_that_it_wrote(night: Collection) -> None:
    body = night.body(1)
    codebook = read_faiss(night.file(body.codebook.object.name))
    for entry in body.segments:
        unit = SegmentUnit("r", "s", 0, "i", entry.rows, 0, NOTHING, 0, ())
        vectors_ND = np.zeros((entry.rows + 3, DIM), np.float16)
        vectored = Vectored(unit, pa.table({}), vectors_ND, {1: "refused", 5: "refused", 9: "refused"})
        check_estimate(vectored.need("float16", with_words=False).temporary_bytes, entry.object.size_bytes)
    parts = list(Path(night.recipe.store).glob("parts/**/*.safetensors"))
    assert parts or "HNSW" in body.codebook.factory
    for part in parts:
        rows = PartFile(part, "part", body.codebook.object.sha256).ntotal
        code_bytes = core(codebook).code_size
        check_estimate(build_need(BuildUnit("r", "s", NOTHING, rows), DIM, code_bytes).store_bytes, part.stat().st_size)
    (shard,) = body.index.shards
    check_estimate(merge_need(night, body).temporary_bytes, shard.object.size_bytes)


def merge_need(night: Collection, body: SnapshotBody) -> Need:
    """Return the estimated memory of the only merge of a night."""
    plan = keep(night.recipe.index, body.codebook.factory, body.index.rows, DIM)
    rows = body.index.rows
    unit = MergeUnit("r", "s", tuple(body.segments), (), None, rows, rows * plan.bytes_per_vector)
    kept = storage(read_faiss(night.file(body.codebook.object.name)))
    return unit.need(body.codebook.object.size_bytes, kept, is_remote=False)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["diff", "train", "merge", "table", "gate"])
def test_estimates_of_memory_are_below_what_a_process_takes(unit: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.engine.memory_taken", unit, str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    estimated, taken = map(int, ended.stdout.split())
    assert estimated > 20e6
    check_estimate(estimated, taken)


class ShortOfMemory(Quiet):
    """Reports little free memory from the merge on."""

    def __init__(self) -> None:
        super().__init__()
        self.available_bytes = 1 << 40

    def start(self, stage: str, total_rows: int, done_rows: int) -> None:
        """Note the stage."""
        if stage == "merge":
            self.available_bytes = 1_000
        super().start(stage, total_rows, done_rows)


@pytest.mark.parametrize("factory", ["Flat", "HNSW16"])
def test_a_kind_without_lists_that_does_not_fit_memory_is_refused_with_both_figures(
    factory: str, tmp_path: Path, first_nights: FirstNights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole index is in memory: 32 numbers and an id of each passage, and the links of a graph."""
    collection = first_nights.copy(tmp_path)
    collection.change(index={"factory": factory, "retrain": "always", "shards": 2})
    progress = ShortOfMemory()
    monkeypatch.setattr("dpr.engine.room.memory_available", lambda: progress.available_bytes)
    with pytest.raises(RoomError) as error:
        collection.night(progress=progress)
    pattern = (
        r"stage merge cannot do \S+ on \S+: it needs about ([\d.]+) KB of memory, and 1\.0 KB are available; "
        r"give the worker more memory, or raise index\.shards"
    )
    found = re.fullmatch(pattern, str(error.value))
    assert found
    least_bytes = 14 * (4 * DIM + 8 + (2 * 16 * 4 if factory != "Flat" else 0))  # one of two shards, of 30 passages
    assert least_bytes / 1e3 < float(found[1]) < 3 * least_bytes / 1e3
    progress.available_bytes = 1 << 40
    assert collection.night().snapshot.number == 2


@pytest.mark.slow
def test_a_run_on_a_small_disk_is_refused_and_goes_on_when_there_is_room(
    tmp_path: Path, encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "disk", SIZE) as disk:
        monkeypatch.setattr(tempfile, "tempdir", str(disk))
        collection = Collection(tmp_path / "c", encoder, random_texts(2_000), resources={"segment_rows": 2_000})
        other = disk / "other"
        other.write_bytes(bytes(SIZE - 10_000))
        with pytest.raises(RoomError, match=r"stage scan cannot do scans/.* or lower corpus\.slice_bytes"):
            collection.night()
        other.write_bytes(bytes(SIZE - 60_000))  # enough for the estimate, and too little for the scan
        with pytest.raises(RoomError, match=f"files in {disk} cannot be written"):
            collection.night()
        other.unlink()
        assert collection.night().snapshot.body.passages == 2_000
        assert not list(disk.iterdir())
