"""The requests of two nights in a bucket: counted by a proxy, and against how many objects there are to read and write.

A unit reads its record, finds none, and writes it; a stage lists its records. Beside that, units read what they need
and write what they make. So a stage sends at most `data + 3 * units` requests. What the lease sends is of no stage.
"""

import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

from dpr.engine.run_state import StageReport
from dpr.operations.run_report import RunReport
from dpr.store import open_store
from dpr.store.requests import REQUEST_CLASSES, take_outside
from dpr.store.s3_upload import CHUNK_BYTES
from tests.collection import Collection
from tests.services.fault_proxy import FaultProxy
from tests.tiny import random_texts

ROWS, SEGMENT_ROWS, SLICE_BYTES = 200, 20, 4_000
SEGMENTS = ROWS // SEGMENT_ROWS
REQUESTS_A_UNIT = 3
CLASSES = {"GET": "GET", "HEAD": "GET", "PUT": "PUT", "POST": "PUT", "DELETE": "DELETE"}
DIGEST = re.compile(r"-[0-9a-f]{32}\.\w+$")


@dataclass(frozen=True)
class Seen:
    """What a server saw of a night."""

    classes: Counter[str]
    read: Counter[str]
    """How often each object was read; a range counts like a whole object."""

    @classmethod
    def of(cls, requests: Sequence[tuple[str, str]]) -> "Seen":
        """Sort the requests that a proxy noted."""
        classes: Counter[str] = Counter()
        read: Counter[str] = Counter()
        for method, target in requests:
            url = urlsplit(target)
            lists = "list-type" in parse_qs(url.query)
            classes["LIST" if lists else CLASSES[method]] += 1
            if method == "GET" and not lists:
                read[unquote(url.path).split("/store/", 1)[1]] += 1
        return cls(classes, read)

    def most_reads(self, pattern: str) -> int:
        """Return how often the object that was read most often was read, of those whose names match."""
        return max((count for name, count in self.read.items() if re.search(pattern, name)), default=0)


@pytest.fixture
def bucket(fault_proxy: FaultProxy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FaultProxy:
    """Give a proxy that notes all requests to a bucket named `requests`, and a machine that has cached nothing."""
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    fault_proxy.endpoint.client().create_bucket(Bucket=tmp_path.name.lower().replace("_", "-"))
    fault_proxy.endpoint.use(monkeypatch)
    return fault_proxy


def make_collection(folder: Path, encoder: Path) -> Collection:
    """Make a collection of ten segments and several slices, in a bucket named after the folder."""
    store = f"s3://{folder.name.lower().replace('_', '-')}/store"
    made = Collection(folder, encoder, random_texts(ROWS), store=store, index={"factory": "IVF4,SQ8", "rescore": 20})
    made.change(corpus={"slice_bytes": SLICE_BYTES}, resources={"segment_rows": SEGMENT_ROWS})
    return made


def night(collection: Collection, proxy: FaultProxy) -> tuple[RunReport, Seen]:
    """Run a night; return its report, and what the proxy saw of it."""
    take_outside()
    proxy.requests.clear()
    report = collection.night().report
    assert report
    return report, Seen.of(proxy.requests)


def counted(report: RunReport) -> Counter[str]:
    """Return the requests of all of a report, by class."""
    total = Counter(report.other_requests)
    for stage in report.stages:
        total.update(stage.requests)
    return Counter({name: total[name] for name in REQUEST_CLASSES})


def requests_of(stage: StageReport) -> int:
    return sum(stage.requests.get(name, 0) for name in REQUEST_CLASSES)


def check_budget(report: RunReport, data: Mapping[str, int]) -> None:
    """Check the requests of each stage against how many objects it has to read and to write."""
    for stage in report.stages:
        allowed = data[stage.stage] + REQUESTS_A_UNIT * stage.units
        assert requests_of(stage) <= allowed, (stage.stage, stage.requests, allowed)


def test_a_stage_sends_no_more_requests_than_it_has_objects(tmp_path: Path, encoder: Path, bucket: FaultProxy) -> None:
    collection = make_collection(tmp_path, encoder)
    collection.write_corpus()
    slices = -(-collection.path.stat().st_size // SLICE_BYTES)
    assert slices > 2
    report, seen = night(collection, bucket)
    assert counted(report) == Counter({name: seen.classes[name] for name in REQUEST_CLASSES})
    assert {stage.stage: stage.units for stage in report.stages if stage.stage in ("scan", "build")} == {
        "scan": slices,
        "build": SEGMENTS,
    }
    check_budget(
        report,
        {
            "scan": 2 * slices,  # keys and new passages
            "diff": 2 * slices + 1,  # the changes file
            "embed": 2 * SEGMENTS + slices + 2 * SEGMENTS,  # footer and rows of the changes, texts; segments and words
            "train": 3 * SEGMENTS + 1,  # footer, first page and rows of each; the codebook
            "build": 1 + 2 * SEGMENTS,
            "merge": SEGMENTS + 1,
            "invert": 0,  # the embed stage wrote the lexical parts
            "questions": 1,
            "truth": 1 + SEGMENTS,
            "gate": 1,
        },
    )
    assert sum(report.other_requests.get(name, 0) for name in REQUEST_CLASSES) <= 40 + SEGMENTS  # neighbours are read
    assert seen.most_reads(r"^parts/.*\.safetensors$") == 1
    assert seen.most_reads(r"\.new-") == 2  # the diff reads hashes of it, which come with the footer
    assert seen.most_reads(r"^(codebooks|indexes|truth)/.*" + DIGEST.pattern) == 1


def test_a_small_night_sends_requests_for_what_changed(tmp_path: Path, encoder: Path, bucket: FaultProxy) -> None:
    collection = make_collection(tmp_path, encoder)
    night(collection, bucket)
    collection.corpus |= {"p001": "w1 w2", "copy": collection.corpus["p002"]}
    del collection.corpus["p003"]
    report, seen = night(collection, bucket)
    assert counted(report) == Counter({name: seen.classes[name] for name in REQUEST_CLASSES})
    slices = next(stage.units for stage in report.stages if stage.stage == "scan")
    made = 2  # a segment that is embedded, and one that is copied
    assert {stage.stage: stage.units - stage.done_before for stage in report.stages if stage.units > 1} == {
        "scan": slices,
        "build": made,
        "truth": made,
        "sentences": made,
    }
    check_budget(
        report,
        {
            "scan": 2 * slices,
            # keys and new passages; record and keys of what they were before; changes and deletion set
            "diff": 4 * slices + 2,
            "embed": 5,
            "copy": 5,
            "build": 2 * made,
            "merge": made + 2,  # the deletion set, too
            "invert": 0,
            "truth": 1 + made,
            "sentences": 2 * made,  # texts of some rows; vectors
            "gate": 1 + made,  # and the sentences' vectors
        },
    )
    base = {entry.object.name for entry in collection.body(1).segments}
    assert len(base) == SEGMENTS
    assert sum(seen.read[name] for name in base) == 0  # objects on this machine are not fetched again
    assert seen.most_reads(r"^(parts|deletions)/.*" + DIGEST.pattern) == 1


def test_a_machine_without_a_cache_reads_what_it_needs_of_the_base(
    tmp_path: Path, encoder: Path, bucket: FaultProxy
) -> None:
    collection = make_collection(tmp_path, encoder)
    night(collection, bucket)
    collection.corpus |= {"p001": "w1 w2"}
    shutil.rmtree(tmp_path / "cache")
    report, seen = night(collection, bucket)
    assert counted(report) == Counter({name: seen.classes[name] for name in REQUEST_CLASSES})
    slices = next(stage.units for stage in report.stages if stage.stage == "scan")
    check_budget(
        report,
        {
            "scan": 2 * slices + SEGMENTS,  # the hashes of small segments come with the footer
            "diff": 4 * slices + 2,
            "embed": 5,
            "build": 3,  # the codebook, too
            "merge": 4,
            "invert": 0,
            "truth": 2,
            "sentences": 2,
            # shard, loose rows, deletions, questions, sentences; footer, first page and rows of each segment
            "gate": 5 + 3 * (SEGMENTS + 1),
        },
    )
    assert seen.most_reads(r"^(parts|deletions|codebooks|indexes|truth)/.*" + DIGEST.pattern) == 1


def test_a_large_object_is_moved_in_parts_of_one_request_each(tmp_path: Path, bucket: FaultProxy) -> None:
    """Beside the requests for its parts, an upload checks whether the object exists, begins and ends."""
    store = open_store(f"s3://{tmp_path.name.lower().replace('_', '-')}/store")
    path, parts = tmp_path / "file", 3
    path.write_bytes(bytes(parts * CHUNK_BYTES))
    bucket.requests.clear()
    assert store.put_file_if_absent("large", path)
    assert Seen.of(bucket.requests).classes == {"GET": 1, "PUT": parts + 2}
    bucket.requests.clear()
    store.fetch("large", tmp_path / "copy")
    assert Seen.of(bucket.requests).classes == {"GET": parts}
