"""Every object name of a store is decided here.

A *record* is named by what its unit depends on, so a listing of names tells whether the unit is done. An *object* that
a record refers to carries the digest of its own bytes in its name (`dpr.formats.objects`), so it never changes.

snapshots/00000007.json                    the published states; the highest number is live
scans/ENCODER/SLICE.json                   record of a scanned slice, and beside it
scans/ENCODER/SLICE.keys-DIGEST.parquet      the keys of all its passages
scans/ENCODER/SLICE.new-DIGEST.parquet       its passages that no segment held when it was scanned
scans/ENCODER/SLICE.bad-DIGEST.parquet       its rows that cannot be used
segments/ENCODER/SEGMENT.json              record of a segment, and beside it
segments/ENCODER/SEGMENT-DIGEST.parquet      passages with vectors
segments/ENCODER/SEGMENT.refused-DIGEST.parquet  rows of the segment's unit that the encoder refused
segments/ENCODER/SEGMENT.sentences-HOW.json  record and object (-DIGEST.parquet) of vectors of some of its sentences
deletions/rows-DIGEST.parquet              the dead rows of all segments of a snapshot
codebooks/ENCODER/CODEBOOK.json            record and object (-DIGEST.faiss) of a trained, empty index
parts/CODEBOOK-DIGEST/SEGMENT-DIGEST.json  record and object (-DIGEST.safetensors) of one segment's codes
parts/CODEBOOK-DIGEST/SEGMENT-DIGEST.far-DIGEST.parquet  its rows that are far from every centroid
lexical/ANALYSIS/SEGMENT-DIGEST.json       record and object (-DIGEST.safetensors) of the words of one segment
indexes/loose-DIGEST.parquet               the rows of a snapshot that no shard holds, with their vectors
indexes/SHARD.json                         record and object (-DIGEST.faiss) of an index shard
truth/ENCODER/QUESTIONS/…                  question vectors, exact neighbours by segment, what the gate measured
runs/RUN/…                                 plan, changes, drift and quarantine of one run
runs/RUN/report.json, report.html          how it ended
runs/RUN/reports/ATTEMPT.json              what one attempt did; ATTEMPT.html if it did not end the run
lease/…                                    who is running
readers/00000007-READER.json               who reads snapshot 7
training/plan.json                         what is trained in this store
training/checkpoints/00000200.json         record and objects of the state after 200 steps: -DIGEST, -best-DIGEST
training/quarantine-DIGEST.parquet         rows of the training data that give no example
training/model/…                           the trained model, and training/model.json, which is written after it
probes/…                                   short-lived objects that prove what the store can do
"""

import re

from dpr.store.base import PROBES

SNAPSHOTS = "snapshots/"
SCANS = "scans/"
SEGMENTS = "segments/"
DELETIONS = "deletions/"
CODEBOOKS = "codebooks/"
PARTS = "parts/"
LEXICAL = "lexical/"
INDEXES = "indexes/"
TRUTH = "truth/"
RUNS = "runs/"
READERS = "readers/"
TRAINING_PLAN = "training/plan.json"
CHECKPOINTS = "training/checkpoints/"
TRAINED_MODEL = "training/model"
TRAINING_QUARANTINE = "training/quarantine"
COLLECTED = (SNAPSHOTS, SCANS, SEGMENTS, DELETIONS, CODEBOOKS, PARTS, LEXICAL, INDEXES, TRUTH, RUNS, READERS, PROBES)
"""Folders that garbage collection examines. The lease removes its own objects; anything else in a store's folder is not
ours."""
SHORT_DIGEST = 32
"""Hex digits of a SHA-256 that identify an object, in its own name and in the names of others."""


_SNAPSHOT = re.compile(rf"{SNAPSHOTS}([0-9]{{8}}|[1-9][0-9]{{8,}})\.json")
_READER = re.compile(rf"{READERS}([0-9]{{8}}|[1-9][0-9]{{8,}})-[^/]+\.json")


def snapshot(number: int) -> str:
    return f"{SNAPSHOTS}{number:08d}.json"


def is_snapshot(name: str) -> bool:
    """Return whether an object's name is that of a snapshot; other tools may leave files in the same folder."""
    return _SNAPSHOT.fullmatch(name) is not None


def snapshot_number(name: str) -> int:
    """Return the number in a snapshot's object name."""
    return int(name.removeprefix(SNAPSHOTS).removesuffix(".json"))


def reader(number: int, reader_id: str) -> str:
    return f"{READERS}{number:08d}-{reader_id}.json"


def is_reader(name: str) -> bool:
    """Return whether an object's name is that of a reader's marker."""
    return _READER.fullmatch(name) is not None


def read_number(name: str) -> int:
    """Return the number of the snapshot that a reader's marker names."""
    return int(name.removeprefix(READERS).partition("-")[0])


def record(stem: str) -> str:
    """Return the name of the record of the unit whose objects begin with `stem`."""
    return f"{stem}.json"


def scan(encoder_id: str, slice_id: str) -> str:
    return f"{SCANS}{encoder_id}/{slice_id}"


def segment(encoder_id: str, segment_id: str) -> str:
    return f"{SEGMENTS}{encoder_id}/{segment_id}"


def sentences(encoder_id: str, segment_id: str, how: str) -> str:
    return f"{segment(encoder_id, segment_id)}.sentences-{how}"


def deletions() -> str:
    return f"{DELETIONS}rows"


def codebook(encoder_id: str, codebook_id: str) -> str:
    return f"{CODEBOOKS}{encoder_id}/{codebook_id}"


def part(codebook_sha256: str, segment_sha256: str) -> str:
    return f"{PARTS}{codebook_sha256[:SHORT_DIGEST]}/{segment_sha256[:SHORT_DIGEST]}"


def stem_of(name: str) -> str:
    """Return what an object's name begins with: STEM-DIGEST.SUFFIX."""
    return name.rpartition("-")[0]


def lexical_parts(analysis_id: str) -> str:
    return f"{LEXICAL}{analysis_id}/"


def lexical_part(analysis_id: str, segment_sha256: str) -> str:
    return f"{lexical_parts(analysis_id)}{segment_sha256[:SHORT_DIGEST]}"


def index(shard_id: str) -> str:
    return f"{INDEXES}{shard_id}"


def loose() -> str:
    return f"{INDEXES}loose"


def questions(encoder_id: str, questions_id: str) -> str:
    """Return the stem of the vectors of a set of questions; its folder holds everything about them."""
    return f"{TRUTH}{encoder_id}/{questions_id}/vectors"


def truth(encoder_id: str, questions_id: str, truth_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{questions_id}/{truth_id}"


def measured(encoder_id: str, questions_id: str, measure_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{questions_id}/measured-{measure_id}"


def answer_ranks(encoder_id: str, questions_id: str, measure_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{questions_id}/ranks-{measure_id}"


def modes(encoder_id: str, questions_id: str, modes_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{questions_id}/modes-{modes_id}"


def fp8_loss(encoder_id: str, questions_id: str, loss_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{questions_id}/fp8-{loss_id}"


def run(run_id: str) -> str:
    return f"{RUNS}{run_id}/"


def plan(run_id: str) -> str:
    return f"{run(run_id)}plan.json"


def changes(run_id: str) -> str:
    return f"{run(run_id)}changes"


def drift(run_id: str) -> str:
    return f"{run(run_id)}drift"


def duplicates(run_id: str) -> str:
    return f"{run(run_id)}duplicates"


def quarantine(run_id: str) -> str:
    return f"{run(run_id)}quarantine"


def lost_questions(run_id: str) -> str:
    return f"{run(run_id)}lost"


def reports(run_id: str) -> str:
    return f"{run(run_id)}reports/"


def report(run_id: str, attempt: str) -> str:
    """Return the name of the report of one attempt; names sort by when attempts began."""
    return f"{reports(run_id)}{attempt}.json"


def report_page(run_id: str, attempt: str) -> str:
    return f"{reports(run_id)}{attempt}.html"


def run_report(run_id: str) -> str:
    return f"{run(run_id)}report.json"


def run_page(run_id: str) -> str:
    return f"{run(run_id)}report.html"


def checkpoint(step: int) -> str:
    return f"{CHECKPOINTS}{step:08d}"


def best_weights(step: int) -> str:
    return f"{checkpoint(step)}-best"


def trained_file(name: str) -> str:
    """Return the name of a file of the trained model's folder."""
    return f"{TRAINED_MODEL}/{name}"
