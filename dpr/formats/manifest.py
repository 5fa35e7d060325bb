"""The snapshot document, which binds encoder, segments, deletions, codebook and index together.

The body holds nothing but what follows from the inputs (no times, no run ids), so the same inputs give the same bytes;
number, parent and times are in the envelope around it.
"""

from collections.abc import Iterator
from typing import Final, Literal

from dpr.errors import IntegrityError
from dpr.fingerprint import fingerprint
from dpr.formats import layout
from dpr.formats.gate_report import GateReport
from dpr.formats.lexical_entry import LexicalEntry
from dpr.formats.records import Document, Identifier, ObjectRef
from dpr.recipe import EncoderConfig, StoreAs

FORMAT: Final = 3


class TowerDescription(Document):
    """One tower of an encoder, without this machine's folder; `dpr.encoder.tower.TowerSpec` explains the fields."""

    reference: str
    architecture: str
    digest: str
    pooling: str
    normalize: bool
    prefix: str
    max_tokens: int
    title_join: str
    lowercase: bool
    dim: int
    prompt_pooled: bool = True
    head: tuple[str, ...] = ()
    store_as: StoreAs = "float16"
    fp8_products: tuple[str, ...] = ()


class EncoderDescription(Document):
    """How to load the towers again, and their expected hashes."""

    encoder_id: Identifier
    dim: int
    passage: TowerDescription
    question: TowerDescription
    config: EncoderConfig


class SegmentEntry(Document):
    """A segment as part of a snapshot. Ids in the index are `number << 32 | row`."""

    number: int
    segment_id: Identifier
    rows: int
    object: ObjectRef
    dead_rows: int = 0
    """Rows whose passages are no longer in the corpus; the deletion set names them."""
    dead_digest: str = ""
    """Fingerprint of the row numbers of the dead; empty where there are none."""

    @property
    def live_rows(self) -> int:
        return self.rows - self.dead_rows


class CodebookEntry(Document):
    """A trained, empty FAISS index, and the figures of vectors held out in training that drift is measured against."""

    codebook_id: Identifier
    factory: str
    trained_rows: int
    corpus_rows: int
    """Live rows of the corpus it was trained for."""
    last_segment: int
    """Highest segment number of that corpus; rows of later segments were added since."""
    quantisation_error: float
    list_imbalance: float | None
    """Estimated (`dpr.index.training.list_imbalance`); None: a kind without inverted lists, or a single vector."""
    far_distance: float | None
    """A vector is far if it is farther than this from the centroid of its list (`dpr.index.part.Coded`); None: no
    vector is, since the kind has no inverted lists or too few vectors were held out."""
    object: ObjectRef


class ShardEntry(Document):
    """One FAISS index: vectors of rows that lived when it was written; search skips those that died since."""

    rows: int
    """Vectors in the file."""
    live_rows: int
    """Those that live."""
    segments: list[int]
    """Numbers of the segments that it holds vectors of, ascending; some may be gone since."""
    left_out: ObjectRef | None
    """Rows of these segments that it does not hold, in the form of a deletion set; None: it holds all."""
    object: ObjectRef


class DeeperSettings(Document):
    """How the index is searched for more hits, up to `at` and beyond."""

    nprobe: int
    rescore: int
    at: int
    margin: float | None = None


class IndexEntry(Document):
    """The index and how it is searched."""

    index_id: Identifier
    rows: int
    """Vectors that live."""
    nprobe: int
    """Inverted lists visited per question, on average if there is a margin; in a graph, the candidates that its search
    keeps."""
    margin: float | None = None
    """How far below the best `at` found first a list's centroid may score, so that it is visited, by a question of
    length 1; None: every question visits `nprobe` lists."""
    rescore: int
    """Candidates re-scored exactly from the stored vectors; 0: the index's own scores are final."""
    at: int
    """Hits that these settings were tuned for."""
    deeper: DeeperSettings | None
    """Settings for more hits than that; None: the gate measures no deeper rank than `at`."""
    shards: list[ShardEntry]
    loose: ObjectRef | None
    """The loose rows: those that live and lie in no shard. Every question is compared with their vectors. None: there
    are none."""
    loose_rows: int
    first_shards: int
    """`index.shards` of the recipe: the number of shards that the rows of the first night were cut into."""

    @property
    def files(self) -> list[ObjectRef]:
        """The files of the shards."""
        return [shard.object for shard in self.shards]

    @property
    def size_bytes(self) -> int:
        return sum(file.size_bytes for file in self.files)


class SnapshotBody(Document):
    """Everything a reader needs, and nothing that differs between two runs of the same inputs."""

    format: Literal[3] = FORMAT
    encoder_id: Identifier
    encoder: EncoderDescription
    passages: int
    segments: list[SegmentEntry]
    next_segment_number: int
    deletions: ObjectRef | None
    """The deletion set: dead rows of all segments; None where all rows live."""
    codebook: CodebookEntry
    index: IndexEntry
    lexical: LexicalEntry | None = None
    """None: the recipe has no index of words, or the snapshot is older than this kind of index."""
    gate: GateReport
    windows: bool = False
    """Whether rows may be windows of long texts: several rows then have the id of their passage, and searches give its
    best one alone."""

    def body_id(self) -> str:
        """Return the fingerprint of the body."""
        return fingerprint(self.model_dump(mode="json"))

    def objects(self) -> Iterator[ObjectRef]:
        """Yield every object that the body names."""
        yield self.codebook.object
        for shard in self.index.shards:
            yield shard.object
            if shard.left_out is not None:
                yield shard.left_out
        if self.index.loose is not None:
            yield self.index.loose
        if self.gate.ranks is not None:
            yield self.gate.ranks
        if self.lexical is not None:
            yield from (part.object for part in self.lexical.parts)
        yield from (entry.object for entry in self.segments)
        if self.deletions is not None:
            yield self.deletions

    def check(self) -> None:
        """Check that the counts of rows agree and everything is of one encoder.

        Raises IntegrityError that names what does not agree.
        """
        live = sum(entry.live_rows for entry in self.segments)
        in_shards, loose = sum(shard.live_rows for shard in self.index.shards), self.index.loose_rows
        if not live == self.passages == self.index.rows == in_shards + loose:
            raise IntegrityError(
                f"snapshot would hold {self.passages} passages, its segments {live} live rows and its index "
                f"{self.index.rows} ({in_shards} in its shards, {loose} loose); all must be equal"
            )
        numbers = [entry.number for entry in self.segments]
        if len(set(numbers)) != len(numbers) or any(number >= self.next_segment_number for number in numbers):
            raise IntegrityError(f"segment numbers {numbers} are not distinct and below {self.next_segment_number}")
        if self.deletions is None and any(entry.dead_rows for entry in self.segments):
            raise IntegrityError("segments of the snapshot have dead rows, and it names no deletion set")
        if self.lexical is not None and [part.segment for part in self.lexical.parts] != numbers:
            raise IntegrityError(
                f"the index of words has parts of segments {[part.segment for part in self.lexical.parts]}, and the "
                f"snapshot has segments {numbers}; roll back to a sound snapshot or run the recipe again"
            )
        stems = {self.codebook.object.name: layout.codebook(self.encoder_id, self.codebook.codebook_id)}
        stems |= {entry.object.name: layout.segment(self.encoder_id, entry.segment_id) for entry in self.segments}
        for name, stem in stems.items():
            if not name.startswith(f"{stem}-"):
                raise IntegrityError(
                    f"snapshot of encoder {self.encoder_id} names {name} where {stem}-… belongs; vectors of "
                    "different encoders never meet, so roll back to a sound snapshot or run the recipe again"
                )


class Snapshot(Document):
    """A published body under its number."""

    number: int
    parent: int | None
    publish_id: str
    """Drawn at random by the publisher, to recognise its own write after an unknown outcome."""
    run_id: Identifier
    inputs: str | None
    """Fingerprint of recipe and corpus; a run with the same inputs has nothing to do. None after a rollback."""
    published_at: str
    """UTC, ISO 8601."""
    note: str = ""
    body: SnapshotBody
