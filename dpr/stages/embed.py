"""The embed stage: passages that have no vector yet become segments.

Three steps that overlap when an executor runs them apart: tokenise (CPU), encode (the model), write (CPU). Texts do not
pass through the encoder, where they would only be copied: the writer reads the texts itself.

Shapes: N rows, D dimensions.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from dpr.encoder.bisect import encode_rows
from dpr.encoder.compute import Compute
from dpr.encoder.loaded_tokenizer import LoadedTokenizer, load_tokenizer
from dpr.encoder.spec import EncoderSpec, resolve_same
from dpr.encoder.tokens import TokenBatch, TowerTokenizer
from dpr.engine.stage import Done, Stage, Step, Work, recorded
from dpr.formats import layout
from dpr.formats.records import ObjectRef
from dpr.recipe import CorpusConfig, EncoderConfig
from dpr.recipe_index import LexicalConfig
from dpr.run import Run
from dpr.stages.diff import Changes
from dpr.stages.embed_meter import BusyClock, EncodingWatch
from dpr.stages.new_rows import text_source
from dpr.stages.planned_segments import PlannedSegment
from dpr.stages.scan import ScanResult
from dpr.stages.write_segment import MadeSegment, SegmentResult, SegmentUnit, Vectored, WriteSegment, texts_of
from dpr.store import open_store

EMULATED = (
    "encoder.precision is fp8, and processors of this run have no products of fp8: there they are emulated, which "
    "gives vectors of the same kind and takes longer than bf16"
)
EmbedWork = Work[SegmentUnit, Done[SegmentResult]]


@dataclass(frozen=True)
class EmbedContext:
    """Settings that every step of the stage needs; small, and the same for all units."""

    store_url: str
    encoder: EncoderConfig
    encoder_id: str
    corpus: CorpusConfig
    lexical: LexicalConfig

    def open_spec(self) -> EncoderSpec:
        """Resolve the encoder on this machine. Raises EncoderError if it differs from the driver's."""
        return resolve_same(self.encoder, self.encoder_id)


@dataclass(frozen=True)
class Tokenised:
    """A unit's tokens, on their way to the encoder."""

    unit: SegmentUnit
    changed: pa.Table
    """The unit's rows of the changes file, for the writer."""
    tokens: TokenBatch
    read_seconds: float
    tokenise_seconds: float

    @property
    def record(self) -> str:
        return self.unit.record


def begin_encoders(run: Run) -> EmbedWork:
    """Begin to load encoders, where that helps; returns the work to pass to `embed`."""
    work = embed_work(run)
    run.executor.begin("embed", work)
    return work


def embed(run: Run, work: EmbedWork, changes: Changes, scans: Sequence[ScanResult]) -> list[MadeSegment]:
    """Make the segments of the passages that have no vector yet."""
    units = segment_units(run, changes, scans, "embed")
    if units and run.spec.passage.fp8_products and run.executor.emulates_fp8():
        run.progress.message("encoder", EMULATED)
    stage = Stage("embed", units, SegmentResult, work, EncodingWatch(run.progress.message))
    return [MadeSegment(*pair) for pair in zip(units, run.results(stage), strict=True)]


def segment_units(run: Run, changes: Changes, scans: Sequence[ScanResult], kind: str) -> list[SegmentUnit]:
    """Return one unit for each planned segment of a kind, `embed` or `copy`."""
    new_rows = sum(scanned.new_rows for scanned in scans)
    row_bytes = sum(scanned.passages.size_bytes for scanned in scans if scanned.passages) / max(1, new_rows)

    def unit(planned: PlannedSegment, changes_file: ObjectRef) -> SegmentUnit:
        stem = layout.segment(run.spec.encoder_id, planned.segment_id)
        return SegmentUnit(
            record=layout.record(stem),
            stem=stem,
            number=planned.number,
            segment_id=planned.segment_id,
            rows=planned.rows,
            read_bytes=int(planned.rows * row_bytes),
            changes=changes_file,
            group=planned.group,
            texts=tuple(text_source(run.slices, scans, number) for number in planned.slices),
        )

    if changes.changes is None:
        return []
    return [unit(planned, changes.changes) for planned in changes.planned if planned.kind == kind]


def embed_context(run: Run) -> EmbedContext:
    """Return what the steps of a run need."""
    return EmbedContext(run.store.url, run.spec.config, run.spec.encoder_id, run.recipe.corpus, run.recipe.lexical)


def compute_of(run: Run) -> Compute:
    """Return how the encoders of a run compute."""
    resources, encoder = run.recipe.resources, run.recipe.encoder
    threads = resources.cpus_per_encoder or run.executor.encoder_threads()
    return Compute(encoder.precision, encoder.tokens_per_batch, threads, packing=encoder.packing)


def embed_work(run: Run) -> EmbedWork:
    """Return the work of the stage, which is known before its units are: encoders load while the corpus is scanned."""
    context, threads = embed_context(run), run.executor.tokenizer_threads()
    tokenizer = run.executor.share(shared_tokenizer, context)
    tokenise: Step[SegmentUnit, Tokenised] = Step("tokenise", partial(Tokenise, context, tokenizer, threads), "actor")
    encode: Step[Tokenised, Vectored] = Step("encode", partial(Encode, context, compute_of(run)), "encoder")
    return Work.of(tokenise).then(encode).then(write_step(context))


def write_step(context: EmbedContext) -> Step[Vectored, Done[SegmentResult]]:
    """Return the step that writes segments."""
    store_as = context.encoder.store_as
    make = partial(WriteSegment, context.store_url, context.encoder_id, context.corpus, context.lexical, store_as)
    return recorded(context.store_url, SegmentResult, Step("write", make))


def shared_tokenizer(context: EmbedContext) -> LoadedTokenizer:
    """Load the passage tower's tokenizer, for all tokenisers: they need not import transformers."""
    return load_tokenizer(context.open_spec().passage)


class Tokenise:
    """Loads a unit's texts and tokenises them."""

    def __init__(self, context: EmbedContext, tokenizer: Callable[[], LoadedTokenizer], threads: int) -> None:
        self._store, self._corpus = open_store(context.store_url), context.corpus
        self._tokenizer = TowerTokenizer(context.open_spec().passage, threads, tokenizer())

    def __call__(self, unit: SegmentUnit) -> Tokenised:
        started = time.perf_counter()
        changed = unit.changed_rows(self._store)
        texts = texts_of(self._store, self._corpus, unit, changed, ("title", "text"))
        read = time.perf_counter()
        tokens = self._tokenizer.passages(texts["title"].to_pylist(), texts["text"].to_pylist())
        return Tokenised(unit, changed, tokens, read - started, time.perf_counter() - read)


class Encode:
    """Runs the model over a unit's tokens; a row that cannot be encoded is found by bisection and left out.

    Called from two threads at once it never waits between units: the batches of the second unit are queued behind
    those of the first.
    """

    def __init__(self, context: EmbedContext, compute: Compute) -> None:
        from dpr.encoder.encode import TowerEncoder  # PyTorch takes seconds and 300 MB, and the driver does not need it

        self._encoder = TowerEncoder(context.open_spec().passage, compute)
        self._clock = BusyClock()

    def __call__(self, tokenised: Tokenised) -> Vectored:
        with self._clock:
            vectors_ND, refused = encode_rows(self._encoder, tokenised.tokens)
        busy, waited = self._clock.take()
        return Vectored(
            unit=tokenised.unit,
            changed=tokenised.changed,
            vectors_ND=vectors_ND,
            refused=refused,
            tokens=len(tokenised.tokens.ids_T),
            seconds={
                "read": tokenised.read_seconds,
                "tokenise": tokenised.tokenise_seconds,
                "encode": busy,
                "wait": waited,
            },
            encoder=self._encoder.choice,
            cut=tokenised.tokens.cut(),
        )
