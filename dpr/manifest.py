"""The snapshot document: what binds encoder, segments, deletions, codebook and serving index together.

The body holds nothing but what follows from the inputs (no times, no run ids), so the same inputs give the same bytes;
number, parent and times are in the envelope around it.
"""

from collections.abc import Iterator
from typing import Any

from dpr import layout
from dpr.errors import IntegrityError
from dpr.fingerprint import canonical_json, fingerprint
from dpr.records import Document, ObjectRef

FORMAT = 1


class Deletions(Document):
    """The dead rows of a segment as of this snapshot."""

    rows: int
    object: ObjectRef


class SegmentEntry(Document):
    """A segment as part of a snapshot. Ids in the serving index are `number << 32 | row`."""

    number: int
    segment_id: str
    rows: int
    object: ObjectRef
    deletions: Deletions | None = None

    @property
    def live_rows(self) -> int:
        return self.rows - (self.deletions.rows if self.deletions else 0)


class CodebookEntry(Document):
    """A trained, empty FAISS index, and the figures of vectors held out in training that drift is measured against."""

    codebook_id: str
    factory: str
    trained_rows: int
    corpus_rows: int
    """Live rows of the corpus it was trained for."""
    last_segment: int
    """Highest segment number of that corpus; rows of later segments came since."""
    quantisation_error: float
    list_imbalance: float | None
    """Estimated (`dpr.index.train.list_imbalance`); None: a kind without inverted lists, or a single vector."""
    object: ObjectRef


class ShardEntry(Document):
    """One FAISS index: the live vectors of a contiguous run of segments."""

    rows: int
    first_segment: int
    """Number of the first segment it holds vectors of."""
    last_segment: int
    object: ObjectRef


class IndexEntry(Document):
    """The serving index and how it is searched."""

    index_id: str
    rows: int
    nprobe: int
    """Inverted lists visited per question."""
    rescore: int
    """Candidates re-scored exactly from the stored vectors; 0: the index's own scores are final."""
    shards: list[ShardEntry]

    @property
    def size_bytes(self) -> int:
        return sum(shard.object.size_bytes for shard in self.shards)


class SnapshotBody(Document):
    """Everything a reader needs, and nothing that differs between two runs of the same inputs."""

    format: int = FORMAT
    encoder_id: str
    encoder: dict[str, Any]
    """`EncoderSpec.describe()`: how to load the towers again, and what they must hash to."""
    passages: int
    segments: list[SegmentEntry]
    next_segment_number: int
    codebook: CodebookEntry
    index: IndexEntry
    gate: dict[str, Any]

    def body_id(self) -> str:
        """Fingerprint of the body."""
        return fingerprint(self.model_dump(mode="json"))

    def objects(self) -> Iterator[ObjectRef]:
        """Every object that the body names."""
        yield self.codebook.object
        yield from (shard.object for shard in self.index.shards)
        for entry in self.segments:
            yield entry.object
            if entry.deletions:
                yield entry.deletions.object

    def check(self) -> None:
        """Rows are conserved (law 3), and all is of one encoder. Raises IntegrityError that names what is not."""
        live = sum(entry.live_rows for entry in self.segments)
        in_shards = sum(shard.rows for shard in self.index.shards)
        if not live == self.passages == self.index.rows == in_shards:
            raise IntegrityError(
                f"snapshot would hold {self.passages} passages, its segments {live} live rows "
                f"and its index {self.index.rows} ({in_shards} in its shards); all must be equal"
            )
        numbers = [entry.number for entry in self.segments]
        if len(set(numbers)) != len(numbers) or any(number >= self.next_segment_number for number in numbers):
            raise IntegrityError(f"segment numbers {numbers} are not distinct and below {self.next_segment_number}")
        bound = {
            layout.codebook(self.encoder_id, self.codebook.codebook_id): self.codebook.object.name,
            **{layout.segment(self.encoder_id, entry.segment_id): entry.object.name for entry in self.segments},
        }
        for expected, name in bound.items():
            if name != expected:
                raise IntegrityError(
                    f"snapshot of encoder {self.encoder_id} names {name} where {expected} belongs; vectors of "
                    "different encoders never meet, so roll back to a sound snapshot or run the recipe again"
                )


class Snapshot(Document):
    """A published body under its number."""

    number: int
    parent: int | None
    publish_id: str
    """Drawn at random by the publisher, to know its own write again after an unknown outcome."""
    run_id: str
    inputs: str | None
    """Fingerprint of recipe and corpus; a run with the same inputs has nothing to do. None after a rollback."""
    published_at: str
    """UTC, ISO 8601."""
    note: str = ""
    body: SnapshotBody

    def body_bytes(self) -> bytes:
        return canonical_json(self.body.model_dump(mode="json"))
