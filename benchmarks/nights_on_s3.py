"""The requests of the nightly job on S3: a first night, and nights with a small change, against a Ceph gateway.

    python benchmarks/nights_on_s3.py --rows 1000000 --work /tmp/nights --sentences corpus.jsonl.gz

A changed night edits a share of the passages, in one file of twenty. The third night begins without a cache. The
encoder is a random BERT of two layers. The gateway is that of the tests; what it logged is compared with what the job
counted. `data` is what a stage must send, or more: a request for each object or range that it reads (of at most 8 MiB),
for each object that it writes, and for each part of a large one. Prints tables and writes them as Markdown.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from nights_at_scale import edit_corpus, load_sentences, write_corpus
from small_encoder import make_small_encoder

from dpr.engine.run_state import Prices
from dpr.formats.vector_layout import ROW_GROUP_ROWS
from dpr.operations.bill import request_dollars
from dpr.operations.run_report import RunReport
from dpr.recipe import Resources
from dpr.store import Store, open_store
from dpr.store.requests import READ_BYTES, REQUEST_CLASSES, WRITTEN_BYTES
from dpr.store.s3_upload import CHUNK_BYTES
from tests.services.ceph import ceph_gateway

FILES = 20
PRICES = Prices(thousand_reads=Resources().price_per_1000_reads, thousand_writes=Resources().price_per_1000_writes)
"""Amazon S3 Standard, US East (N. Virginia)."""
TAIL_BYTES, AHEAD_BYTES = 1 << 16, 1 << 18
"""What is read of a Parquet file when it is opened, and at least with each further request."""
HASHES_BYTES = 34
"""Key, content hash and position of a new passage; those of the last ones are in the tail."""
SCALED_TO = 21_000_000
METHODS = {"GET": "GET", "HEAD": "GET", "PUT": "PUT", "POST": "PUT", "DELETE": "DELETE"}


@dataclass(frozen=True)
class Night:
    """What one night took, and what lay in the store before and after it."""

    name: str
    is_cold: bool
    """Whether it began without a cache."""
    seconds: float
    report: RunReport
    before: Mapping[str, int]
    after: Mapping[str, int]
    """Name → size of all objects."""
    logged: Mapping[str, int]
    """Requests by class that the gateway logged."""

    def made(self, start: str, part: str = "", suffix: str = "", without: str = "/ /") -> list[int]:
        """Return the sizes of the objects that this night made, of those with such names."""
        names = [name for name in self.after if name.startswith(start) and part in name and name.endswith(suffix)]
        return [self.after[name] for name in names if without not in name and name not in self.before]


def main() -> None:
    """Run the nights and print what they sent."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--changed", type=float, default=0.01, help="share of passages edited, in one file of twenty")
    parser.add_argument("--segment-rows", type=int, default=50_000)
    parser.add_argument("--sentences", nargs="+", required=True, help="JSONL files with a field text")
    parser.add_argument("--local", action="store_true", help="without Ray")
    parser.add_argument("--work", type=Path, required=True, help="folder for corpus, model, cache and gateway")
    parser.add_argument("--out", type=Path, help="Markdown file for the result")
    options = parser.parse_args()
    options.file_rows = math.ceil(options.rows / FILES)
    options.work.mkdir(parents=True, exist_ok=True)
    write_corpus(options)
    recipe = write_recipe(options)
    with tempfile.TemporaryDirectory(dir=options.work) as folder, ceph_gateway(Path(folder)) as gateway:
        gateway.client().create_bucket(Bucket="nights")
        os.environ.update(gateway.environment())
        log = Path(folder, "client.rgw.a.log")
        nights = [run_night(options, recipe, "first night", log)]
        rows = edit_corpus(options)
        nights.append(run_night(options, recipe, f"{rows / options.rows:.2%} changed", log))
        rows = edit_corpus(options, first=1)
        shutil.rmtree(options.work / "cache")
        nights.append(run_night(options, recipe, f"{rows / options.rows:.2%} changed, a machine without a cache", log))
        version = log.read_text(encoding="utf-8").partition("ceph version ")[2].partition(",")[0]
    text = "\n".join(lines(options, nights, version)) + "\n"
    print(text)
    if options.out:
        options.out.write_text(text, encoding="utf-8")


def write_recipe(options: argparse.Namespace) -> Path:
    """Write the recipe and the encoder."""
    encoder = make_small_encoder(options.work, load_sentences(options.sentences))
    document = {
        "store": "s3://nights/store",
        "corpus": {"path": "./corpus"},
        "encoder": encoder,
        "resources": {"segment_rows": options.segment_rows},
        # random weights make vectors that no index finds well; recall is measured all the same
        "gate": {"min_recall": 0.0},
    }
    path: Path = options.work / "recipe.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def run_night(options: argparse.Namespace, recipe: Path, name: str, log: Path) -> Night:
    """Run one night as a process of its own."""
    store = open_store("s3://nights/store")
    before, logged_before = objects_of(store), logged(log)
    is_cold = bool(before) and not (recipe.parent / "cache").exists()
    command = [sys.executable, "-m", "ray_jobs.cli", "run", str(recipe), "--json", *["--local"] * options.local]
    environment = os.environ | {"DPR_CACHE": str(recipe.parent / "cache"), "COLUMNS": "200"}
    started = time.monotonic()
    ended = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.monotonic() - started
    found = logged(log) - logged_before
    document = json.loads(ended.stdout)
    report = RunReport.model_validate({name: document[name] for name in RunReport.model_fields})
    print(f"{name}: {seconds:.1f} s", flush=True)
    return Night(name, is_cold, seconds, report, before, objects_of(store), found)


def objects_of(store: Store) -> dict[str, int]:
    """Return name and size of all objects."""
    return {info.name: info.size_bytes for info in store.list()}


def logged(log: Path) -> Counter[str]:
    """Return the requests by class that the gateway has logged."""
    found: Counter[str] = Counter()
    for line in log.read_text(encoding="utf-8").splitlines():
        method, _, rest = line.partition('] "')[2].partition(" ")
        if " beast: " in line and method in METHODS:
            found["LIST" if "list-type=2" in rest.split(" ")[0] else METHODS[method]] += 1
    return found


def reads(sizes: Sequence[int]) -> int:
    """Return the requests that fetch objects of these sizes."""
    return sum(max(1, math.ceil(size / CHUNK_BYTES)) for size in sizes)


def writes(sizes: Sequence[int]) -> int:
    """Return the requests that store them: one each; for a large one its parts, a look, a beginning and an end."""
    return sum(1 if size <= CHUNK_BYTES else math.ceil(size / CHUNK_BYTES) + 3 for size in sizes)


def reads_in_parts(sizes: Sequence[int], groups: int) -> int:
    """Return the requests that read footer and some row groups of files of these sizes, 256 KiB at least at a time."""
    return sum(1 + min(groups, math.ceil(max(0, size - TAIL_BYTES) / AHEAD_BYTES)) for size in sizes)


def data_of(options: argparse.Namespace, night: Night) -> list[int]:
    """Return what each stage must send for what it reads and writes, in the order of the report."""
    made = night.made
    groups = math.ceil((options.file_rows - TAIL_BYTES / HASHES_BYTES) / ROW_GROUP_ROWS)
    new, keys, changes = made("scans/", ".new-"), made("scans/", ".keys-"), made("runs/", "/changes-")
    sentences = made("segments/", ".sentences-")
    segments = made("segments/", suffix=".parquet", without=".sentences-")
    parts = made("parts/", suffix=".safetensors")
    codebooks, shards = made("codebooks/", suffix=".faiss"), made("indexes/", suffix=".faiss")
    words = made("lexical/", suffix=".safetensors")
    embedded = sum(stage.units - stage.done_before for stage in night.report.stages if stage.stage == "embed")
    merged = sum(len(shard.segments) for shard in night.report.index.shards if shard.verification)
    vectors = 2 + math.ceil(options.segment_rows / ROW_GROUP_ROWS)  # footer, first page, row groups
    data = {
        "scan": [writes(new) + writes(keys)],
        # the keys of all files are read, and those files are of one size
        "diff": [reads([max(keys)] * FILES) + reads_in_parts(new, groups) + writes([*changes, *made("deletions/")])],
        "embed": [embedded * reads_in_parts(changes, 1) + reads(new) + writes(segments) + writes(words)],
        "drift": [vectors * len(segments)],
        "train": [vectors * len(segments) + writes(codebooks)],
        "build": [reads(codebooks) + reads(segments) + writes([*parts, *made("parts/", ".far-")])],
        "merge": [merged * reads([max(parts)]) + reads(made("indexes/", ".left-out-")) + writes(shards)],
        "invert": [0],  # who wrote a segment has written its words
        "questions": [writes(made("truth/", "/vectors-"))],
        "sentences": [vectors * len(segments) + writes(sentences)],
        # again for segments of which too few neighbours live
        "truth": [1 + writes(made("truth/", "-200-", ".parquet")), writes(made("truth/", "-without-", ".parquet"))],
        # the shards, the loose rows, the vectors of questions and of sentences of new passages
        "gate": [reads([*shards, *made("indexes/", "/loose-"), *sentences]) + 1],
    }
    if night.report.base is not None:  # records and keys of the slices as they were before
        changed = sum(stage.units - stage.done_before for stage in night.report.stages if stage.stage == "scan")
        data["diff"][0] += changed + reads([max(keys)] * changed)
    if night.is_cold:  # what else it fetches of the base: hashes, deletion set, codebook, shards, vectors
        held = [size for name, size in night.before.items() if re.fullmatch(r"segments/.*\.parquet", name)]
        data["scan"][0] += reads_in_parts(held, math.ceil(options.segment_rows / ROW_GROUP_ROWS))
        data["diff"][0] += 1
        data["build"][0] += 1
        data["gate"][0] += reads([shard.size_bytes for shard in night.report.index.shards if not shard.verification])
        data["gate"][0] += vectors * len(held)
    return [data[stage.stage].pop(0) for stage in night.report.stages]


def lines(options: argparse.Namespace, nights: Sequence[Night], version: str) -> Iterator[str]:
    """Yield the lines of the tables."""
    yield f"{options.rows:,} passages, {os.cpu_count()} CPUs, Ceph {version}; command: {' '.join(sys.argv)}"
    for night in nights:
        yield from ["", f"## {night.name}: {night.seconds:.0f} s", ""]
        yield from table(data_of(options, night), night)
        yield ""
        yield f"Logged by the gateway: {', '.join(f'{night.logged[name]:,} {name}' for name in REQUEST_CLASSES)}."
    yield from ["", "## Dollars", "", "| | requests | dollars | at 21 million passages |", "|---|---:|---:|---:|"]
    for night in nights:
        total = total_of(night.report)
        cost = request_dollars(total, PRICES)
        requests = sum(total[name] for name in REQUEST_CLASSES)
        yield f"| {night.name} | {requests:,} | {cost:.5f} | {cost * SCALED_TO / options.rows:.4f} |"


def table(data: Sequence[int], night: Night) -> Iterator[str]:
    """Yield the table of a night."""
    yield f"| stage | units | done before | {' | '.join(REQUEST_CLASSES)} | MB read | MB written | data | more a unit |"
    yield "|---|" + "---:|" * 10
    for stage, stage_data in zip(night.report.stages, data, strict=True):
        sent = sum(stage.requests.get(name, 0) for name in REQUEST_CLASSES)
        more = (sent - stage_data) / max(1, stage.units)
        counts = f"{stage.units:,} | {stage.done_before:,} | {figures(stage.requests)}"
        yield f"| {stage.stage} | {counts} | {stage_data:,} | {more:.2f} |"
    yield f"| outside of stages | | | {figures(night.report.other_requests)} | | |"
    yield f"| all | | | {figures(total_of(night.report))} | | |"


def figures(requests: Mapping[str, int]) -> str:
    """Return requests by class, and megabytes, as cells of a table."""
    counts = [f"{requests.get(name, 0):,}" for name in REQUEST_CLASSES]
    return " | ".join([*counts, *(f"{requests.get(name, 0) / 1e6:,.1f}" for name in (READ_BYTES, WRITTEN_BYTES))])


def total_of(report: RunReport) -> Counter[str]:
    """Return all counts of a report."""
    total = Counter(report.other_requests)
    for stage in report.stages:
        total.update(stage.requests)
    return total


if __name__ == "__main__":
    main()
