"""The cost of a run, calculated from counts and measurements. Pure."""

import math
from collections.abc import Sequence

from dpr.engine.executor import Cluster
from dpr.engine.run_state import StageReport
from dpr.formats.records import Document
from dpr.stages.embed_meter import Encoding

HASH_ROW_BYTES = 33
"""Bytes of a passage in a keys object: id hash, key, and a position that takes almost nothing."""
HOUR_SECONDS = 3600.0
EMBED_STAGES = ("embed", "copy")
INDEX_STAGES = ("drift", "train", "build", "merge", "invert", "questions", "truth", "sentences", "gate", "fp8", "modes")


class Workload(Document):
    """The work of a run."""

    slices: int
    corpus_bytes: int
    passages: int
    """Passages of the corpus."""
    embed: int
    """Passages to embed."""
    copy_rows: int
    """Rows of copied segments: borrowed vectors, and those moved together."""
    embed_units: int
    copy_units: int
    tokens: int
    """Tokens of the passages to embed."""
    new_row_bytes: float
    """Stored size of a passage without its vector."""
    vector_bytes: int
    """Stored size of a vector."""
    word_row_bytes: float = 0.0
    """Size of a passage in the index of words; 0: none is built."""
    index_row_bytes: int
    """Bytes of a vector in the serving index: code and id."""
    train_rows: int
    """Vectors that a codebook is trained on; 0: there is a codebook already."""


class Speeds(Document):
    """The speeds that were measured on the device."""

    scan_seconds: float
    """Time that one core takes to scan the whole corpus."""
    start_seconds: float = 0.0
    """Time until an encoder is ready."""
    tokenise_tokens: float = 0.0
    """Tokens a second that one core makes."""
    encode_tokens: float = 0.0
    """Tokens a second that one encoder encodes."""
    encoder: str = ""
    """Its choice of arithmetic and forward pass, and the reason."""
    index_seconds: float | None = None
    """Train, build, merge and gate together in the previous run; None: there was none."""


class Cost(Document):
    """Time, bytes and dollars of a run: estimated before it, measured after it."""

    passages: int
    """Passages to embed."""
    units: int
    tokens: int
    read_bytes: int
    written_bytes: int
    scan_seconds: float
    embed_seconds: float
    index_seconds: float | None
    """Train, build, merge and gate; None: not known, and not part of the sum."""
    seconds: float
    gpu_hours: float
    """GPUs that encoders hold, while passages are embedded."""
    dollars: float | None
    """None: the recipe gives no price."""


def cost_rows(cost: Cost) -> dict[str, str]:
    """Return a cost as rows of a table."""
    return {
        "passages to embed": f"{cost.passages:,}",
        "units": f"{cost.units:,}",
        "tokens": f"{cost.tokens:,}",
        "GB read": f"{cost.read_bytes / 1e9:,.3f}",
        "GB written": f"{cost.written_bytes / 1e9:,.3f}",
        "scan": duration(cost.scan_seconds),
        "embed": duration(cost.embed_seconds),
        "train, build, merge, gate": duration(cost.index_seconds),
        "all": duration(cost.seconds),
        "GPU-hours": f"{cost.gpu_hours:,.3f}",
        "dollars for GPUs": "no price" if cost.dollars is None else f"{cost.dollars:,.2f}",
    }


def duration(seconds: float | None) -> str:
    """Return a duration in words; None: it is not known."""
    if seconds is None:
        return "not known"
    return f"{seconds:,.1f} s" if seconds < HOUR_SECONDS else f"{seconds / HOUR_SECONDS:,.2f} h"


def estimate(work: Workload, speeds: Speeds, cluster: Cluster, price: float | None) -> Cost:
    """Return the cost of `work` at these speeds."""
    scan = speeds.scan_seconds / (min(cluster.cpus, work.slices) if cluster.overlap else 1)
    embed = _embed_seconds(work, speeds, cluster, scan) if work.embed else 0.0
    gpu_hours = gpu_hours_of(embed, cluster.gpus)
    return Cost(
        passages=work.embed,
        units=work.embed_units + work.copy_units,
        tokens=work.tokens,
        read_bytes=_read_bytes(work),
        written_bytes=_written_bytes(work),
        scan_seconds=scan,
        embed_seconds=embed,
        index_seconds=speeds.index_seconds,
        seconds=scan + embed + (speeds.index_seconds or 0.0),
        gpu_hours=gpu_hours,
        dollars=None if price is None else gpu_hours * price,
    )


def measured_cost(stages: Sequence[StageReport], encoded: Encoding, gpus: float, price: float | None) -> Cost:
    """Return the measured cost of a finished run, in the terms of an estimate.

    Passages, units and tokens are those of the whole run; bytes, times and dollars do not include earlier attempts.
    """

    def seconds(*names: str) -> float:
        return sum(stage.seconds for stage in stages if stage.stage in names)

    gpu_hours = gpu_hours_of(seconds("embed"), gpus)
    return Cost(
        passages=encoded.passages,
        units=sum(stage.units for stage in stages if stage.stage in EMBED_STAGES),
        tokens=encoded.tokens,
        read_bytes=sum(stage.read_bytes for stage in stages),
        written_bytes=sum(stage.written_bytes for stage in stages),
        scan_seconds=seconds("scan", "diff"),
        embed_seconds=seconds(*EMBED_STAGES),
        index_seconds=seconds(*INDEX_STAGES),
        seconds=sum(stage.seconds for stage in stages),
        gpu_hours=gpu_hours,
        dollars=None if price is None else gpu_hours * price,
    )


def gpu_hours_of(embed_seconds: float, gpus: float) -> float:
    """Return the hours of all GPUs that encoders hold for `embed_seconds`."""
    return embed_seconds / HOUR_SECONDS * gpus


def _embed_seconds(work: Workload, speeds: Speeds, cluster: Cluster, scan_seconds: float) -> float:
    """Return the slower of encoding and tokenising if they overlap on GPUs; else their sum, since they share the CPUs.

    Encoders on GPUs start while the corpus is scanned. Units are not divided among encoders, so the last round may
    leave some without work.
    """
    rounds = math.ceil(work.embed_units / cluster.encoders)
    encode = work.tokens / speeds.encode_tokens * rounds / work.embed_units
    tokenise = work.tokens / speeds.tokenise_tokens / cluster.cpus
    if cluster.gpus_per_encoder and cluster.overlap:
        return max(speeds.start_seconds - scan_seconds, 0.0) + max(encode, tokenise)
    return speeds.start_seconds + encode + tokenise


def _segment_bytes(work: Workload) -> float:
    return (work.embed + work.copy_rows) * (work.new_row_bytes + work.vector_bytes)


def _read_bytes(work: Workload) -> int:
    """Return the sum over the stages: scan, diff, embed and copy, train, build, invert, merge, gate."""
    all_vectors = work.vector_bytes * work.passages
    return int(
        work.corpus_bytes
        + HASH_ROW_BYTES * work.passages
        + work.new_row_bytes * (work.embed + work.copy_rows)
        + work.vector_bytes * work.train_rows
        + _segment_bytes(work)
        + (work.new_row_bytes * (work.embed + work.copy_rows) if work.word_row_bytes else 0.0)
        + work.index_row_bytes * work.passages
        + (work.index_row_bytes + work.new_row_bytes) * work.passages
        + all_vectors
    )


def _written_bytes(work: Workload) -> int:
    """Return the sum over the stages: scan (keys, new passages), embed and copy, build, invert, merge."""
    return int(
        HASH_ROW_BYTES * work.passages
        + work.new_row_bytes * work.embed
        + _segment_bytes(work)
        + (work.index_row_bytes + work.word_row_bytes) * (work.embed + work.copy_rows)
        + work.index_row_bytes * work.passages
    )
