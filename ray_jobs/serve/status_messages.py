"""What a replica says of itself at /v1/status, for the page that shows it."""

from collections.abc import Mapping

from ray_jobs.serve.messages import Health, Message


class LatencyBucket(Message):
    """How many searches took about as long."""

    up_to_ms: float | None
    """They were answered within so many milliseconds, and not within those of the bucket before; null: no bound."""
    searches: int
    """How many there were."""


class ShadowSample(Message):
    """Some questions of users, whose answers were compared with those of exact search."""

    compared: int
    """Questions that were compared."""
    skipped: int
    """Questions that were drawn while another one was compared, or too soon after that."""
    failed: int
    """Questions for which the exact search failed; the log says why."""
    recall: float | None
    """Share of the hits of exact search that the answers had; null as long as nothing was compared."""


class Status(Message):
    """One replica of the service: what it serves, and what it has done since it started."""

    replica: str
    """Its name, by which its metrics are told apart; it changes with each start."""
    replicas: Mapping[str, int] | None
    """State → how many replicas of this service are in it, as Ray Serve counts them; null outside of Ray Serve."""
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
