"""The state of the service: what it serves, the snapshots of its store, and what it has done."""

from collections.abc import Mapping

from pydantic import Field

from dpr.answers.answered import Answered, StepTimings


class Health(Answered):
    """A replica that is ready to answer."""

    ready: bool
    """Always true: before it is ready, a replica gets no requests."""
    snapshot: int
    """Number of the snapshot it serves."""
    encoder_id: str
    """Fingerprint of its encoder."""
    passages: int
    """Passages that can be found."""
    since: str
    """When it began to answer from this snapshot: UTC, ISO 8601."""
    live: int
    """Number of the newest snapshot that it has seen in the store."""
    loading: int | None
    """Number of the snapshot that it is opening, to answer from it next."""
    problem: str
    """Why it does not answer from the newest snapshot; empty: it does."""
    keys_problem: str = ""
    """Why the file of keys is not used as it is now, so that keys it no longer has are still taken; empty: it is."""
    fetched: bool
    """Whether all that it answers from is on its machine; else vectors and texts are read from the store by range."""
    timings_ms: StepTimings
    """Time taken."""


class Ready(Answered):
    """A replica that takes requests."""

    ready: bool
    """Always true: before it is ready, a replica gets no requests, and the service answers 503."""
    snapshot: int
    """Number of the snapshot it serves."""


class SnapshotSummary(Answered):
    """One snapshot of the store."""

    number: int
    """Its number; the highest one is live."""
    parent: int | None
    """Number of the snapshot that was live before it."""
    published_at: str
    """When it was published: UTC, ISO 8601."""
    passages: int
    """Passages that can be found."""
    encoder_id: str
    """Fingerprint of its encoder."""
    recall: float
    """Recall of its index against exact search, as its gate measured it."""
    new_recall: float | None
    """The same for passages that were added since its index was trained; null if there were none."""
    accuracy: Mapping[str, float]
    """Rank → share of the gate's questions that were answered within it; empty without questions of the recipe."""
    note: str
    """Why it was published if it is not the result of a run, such as a rollback."""


class UnreadableSnapshot(Answered):
    """A snapshot of the store whose document is damaged."""

    number: int
    """Its number."""
    problem: str
    """What is wrong with its document, and what to do."""


class SnapshotList(Answered):
    """The newest snapshots of the store."""

    serving: int
    """Number of the snapshot that this replica serves."""
    encoder_id: str
    """Fingerprint of the encoder of that snapshot."""
    snapshots: list[SnapshotSummary]
    """The newest first."""
    damaged: list[UnreadableSnapshot] = Field(default_factory=list)
    """Older ones among them whose documents are damaged, the newest first; a damaged live one is an error."""
    timings_ms: StepTimings
    """Time taken."""


class LatencyBucket(Answered):
    """A bucket of the histogram of search times."""

    up_to_ms: float | None
    """Upper bound of the bucket in milliseconds; its lower bound is that of the bucket before. null: no bound."""
    searches: int
    """Searches in the bucket."""


class ShadowSample(Answered):
    """Some questions of users, whose answers were compared with those of exact search."""

    compared: int
    """Questions that were compared."""
    skipped: int
    """Questions that were drawn while another one was compared, or too soon after that."""
    failed: int
    """Questions for which the exact search failed; the log says why."""
    recall: float | None
    """Share of the hits of exact search that the answers had; null as long as nothing was compared."""


class ShardStatus(Answered):
    """A process that holds one part of the index."""

    number: int
    """Its number, from 0, which partial answers name."""
    answers: bool
    """Whether it answered when this replica asked it last."""
    snapshots: list[int]
    """Those that it has open of the snapshots that this replica answers from."""


class Status(Answered):
    """One replica of the service: what it serves, and what it has done since it started."""

    replica: str
    """Its name, which labels its metrics; it changes with each start."""
    replicas: Mapping[str, int] | None
    """State → how many replicas of this service are in it, as Ray Serve counts them; null outside of Ray Serve."""
    shards: list[ShardStatus] | None
    """The processes that hold the index; null: this replica holds it itself."""
    started_at: str
    """When it started: UTC, ISO 8601."""
    health: Health
    """What it serves, and whether it is the newest."""
    published_at: str
    """When the snapshot that it serves was published: UTC, ISO 8601."""
    waiting: int
    """Questions that wait for a batch."""
    requests: Mapping[str, int]
    """HTTP status → how many requests were answered with it."""
    latency: list[LatencyBucket]
    """Time from request to answer of all searches, whatever their answer."""
    shadow: ShadowSample
    """How good the answers to users' questions were."""
