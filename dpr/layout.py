"""Every object name of a store is decided here, and contains the fingerprint of everything upstream of the object.

snapshots/00000007.json                       the published states; the highest number is live
segments/ENCODER/SEGMENT.parquet (+ .json)    passages with vectors, and the record
segments/ENCODER/SEGMENT.refused.parquet      rows of the segment's unit that the encoder refused, as in quarantine
deletions/SEGMENT/DIGEST.parquet              dead rows of a segment
codebooks/ENCODER/CODEBOOK.faiss (+ .json)    trained, empty index
parts/CODEBOOK/SEGMENT.safetensors (+ .json)  one segment's vectors, coded
indexes/INDEX.faiss (+ .json)                 serving index
truth/ENCODER/TRUTH/SEGMENT.parquet            exact neighbours of the gate questions within a segment
runs/RUN/…                                    scan output, changes, quarantine, report of one run
lease/…                                       who is running
readers/00000007-READER.json                  who reads snapshot 7
probes/…                                      short-lived objects that prove what the store can do
"""

SNAPSHOTS = "snapshots/"
SEGMENTS = "segments/"
DELETIONS = "deletions/"
CODEBOOKS = "codebooks/"
PARTS = "parts/"
INDEXES = "indexes/"
TRUTH = "truth/"
RUNS = "runs/"
READERS = "readers/"
PROBES = "probes/"
COLLECTED = (SNAPSHOTS, SEGMENTS, DELETIONS, CODEBOOKS, PARTS, INDEXES, TRUTH, RUNS, READERS, PROBES)
"""Where garbage is looked for; what else may lie in a store's folder is somebody else's, or the lease's own to tidy."""


def snapshot(number: int) -> str:
    return f"{SNAPSHOTS}{number:08d}.json"


def snapshot_number(name: str) -> int:
    """The number in a snapshot's object name."""
    return int(name.removeprefix(SNAPSHOTS).removesuffix(".json"))


def reader(number: int, reader_id: str) -> str:
    return f"{READERS}{number:08d}-{reader_id}.json"


def read_number(name: str) -> int:
    """The number of the snapshot that a reader's object names."""
    return int(name.removeprefix(READERS).partition("-")[0])


def segment(encoder_id: str, segment_id: str) -> str:
    return f"{SEGMENTS}{encoder_id}/{segment_id}.parquet"


def refused(encoder_id: str, segment_id: str) -> str:
    return f"{SEGMENTS}{encoder_id}/{segment_id}.refused.parquet"


def deletions(segment_id: str, digest: str) -> str:
    return f"{DELETIONS}{segment_id}/{digest}.parquet"


def codebook(encoder_id: str, codebook_id: str) -> str:
    return f"{CODEBOOKS}{encoder_id}/{codebook_id}.faiss"


def part(codebook_id: str, segment_id: str) -> str:
    return f"{PARTS}{codebook_id}/{segment_id}.safetensors"


def index(index_id: str) -> str:
    return f"{INDEXES}{index_id}.faiss"


def truth(encoder_id: str, truth_id: str, segment_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{truth_id}/{segment_id}.parquet"


def question_vectors(encoder_id: str, gate_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{gate_id}/questions.parquet"


def measured(encoder_id: str, gate_id: str, measure_id: str) -> str:
    return f"{TRUTH}{encoder_id}/{gate_id}/measured-{measure_id}.json"


def run(run_id: str) -> str:
    return f"{RUNS}{run_id}/"


def scan_shards(run_id: str) -> str:
    return f"{run(run_id)}new/"


def scan_shard(run_id: str, slice_number: int) -> str:
    return f"{scan_shards(run_id)}{slice_number:06d}.parquet"


def scan_keys(run_id: str, slice_number: int) -> str:
    return f"{run(run_id)}keys/{slice_number:06d}.parquet"


def unit_quarantine(run_id: str, unit: str) -> str:
    return f"{run(run_id)}quarantine/{unit}.parquet"


def quarantine(run_id: str) -> str:
    return f"{run(run_id)}quarantine.parquet"


def changes(run_id: str) -> str:
    return f"{run(run_id)}changes.parquet"


def report(run_id: str) -> str:
    return f"{run(run_id)}report.json"


def record(name: str) -> str:
    """Name of the record of the unit that made object `name`."""
    return name.rpartition(".")[0] + ".json"
