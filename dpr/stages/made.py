"""The results that the first stages of a run pass to the later ones."""

from dataclasses import dataclass

from dpr.formats.lexical_entry import LexicalEntry
from dpr.formats.manifest import CodebookEntry, IndexEntry
from dpr.stages.diff import Changes
from dpr.stages.drift import CodebookChoice
from dpr.stages.merge import ShardResult
from dpr.stages.scan import ScanResult
from dpr.stages.settle import Settled
from dpr.stages.train import IndexContext
from dpr.stages.write_segment import MadeSegment


@dataclass(frozen=True)
class Segments:
    """The segments made from the corpus, and the results of the stages before."""

    scans: list[ScanResult]
    changes: Changes
    embedded: list[MadeSegment]
    settled: Settled


@dataclass(frozen=True)
class Indexed:
    """The index made from the segments, and the results of the stages before."""

    context: IndexContext
    codebook: CodebookEntry
    choice: CodebookChoice
    shards: list[ShardResult]
    index: IndexEntry
    lexical: LexicalEntry | None
