"""The metrics at /metrics for Prometheus: the number of requests, their times, and what is served.

Each replica counts for itself under a label of its own, since a scrape through the proxy reaches any one of them.
"""

import uuid
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Literal

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from dpr.operations.follow import Follower
from dpr.search.retrieve import Answer

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
Compared = Literal["compared", "skipped", "failed"]
"""The outcome of a question that was drawn for comparison with exact search."""
QUESTIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The measurements of one replica."""

    def __init__(self) -> None:
        self._registry, self._replica = CollectorRegistry(), uuid.uuid4().hex[:8]
        self.started_at = datetime.now(UTC).isoformat(timespec="seconds")
        self._requests = self._counter("dpr_requests", "Requests answered.", ["path", "method", "status"])
        self._request_seconds = self._histogram("dpr_request_seconds", "Time from request to answer.", ["path"])
        self._queue_seconds = self._histogram("dpr_queue_seconds", "Wait of a request for the batch before.")
        self._step_seconds = self._histogram("dpr_step_seconds", "Time of a batch in each step.", ["step"])
        self._batch_questions = self._histogram(
            "dpr_batch_questions", "Questions that were answered together.", buckets=QUESTIONS
        )
        self._waiting = self._gauge("dpr_waiting_questions", "Questions that wait for a batch.")
        self._looked_up = self._counter(
            "dpr_cache_questions", "Questions looked up in the cache of answers.", ["found"]
        )
        self._partial = self._counter("dpr_partial_questions", "Questions answered without some of the shards.")
        self._refused = self._counter("dpr_refused_requests", "Requests refused for overload or time.", ["why"])
        self._shadow = self._counter(
            "dpr_shadow_questions", "Questions drawn to be compared with exact search.", ["result"]
        )
        self._shadow_hits = self._counter("dpr_shadow_hits", "Hits of exact search to the questions compared.")
        self._shadow_found = self._counter("dpr_shadow_hits_found", "Those of them that the answers had.")
        self._snapshot = self._gauge("dpr_snapshot_number", "Number of the snapshot that is served.")
        self._live = self._gauge("dpr_live_snapshot_number", "Number of the newest snapshot that was seen.")
        self._published = self._gauge(
            "dpr_snapshot_published_timestamp_seconds", "When the snapshot that is served was published."
        )
        self._passages = self._gauge("dpr_passages", "Passages that can be found.")

    def request(self, path: str, method: str, status: int, seconds: float) -> None:
        """Count a request to a route."""
        self._requests.labels(self._replica, path, method, str(status)).inc()
        self._request_seconds.labels(self._replica, path).observe(seconds)

    def refused(self, why: str) -> None:
        """Count a request that was refused for a reason other than its content."""
        self._refused.labels(self._replica, why).inc()

    def waited(self, seconds: float) -> None:
        """Note how long a request waited for its batch."""
        self._queue_seconds.labels(self._replica).observe(seconds)

    def waiting(self, questions: int) -> None:
        """Note how many questions wait."""
        self._waiting.labels(self._replica).set(questions)

    def looked_up(self, questions: int, *, is_known: bool) -> None:
        """Count questions that were looked up in the cache of answers."""
        self._looked_up.labels(self._replica, "yes" if is_known else "no").inc(questions)

    def batch(self, questions: int, answer: Answer) -> None:
        """Note what a batch took."""
        self._batch_questions.labels(self._replica).observe(questions)
        self._partial.labels(self._replica).inc(questions if answer.missing_shards else 0)
        self.step("encode", answer.encode_seconds)
        self.step("search", answer.search_seconds)

    def step(self, step: str, seconds: float) -> None:
        """Note what a step took."""
        self._step_seconds.labels(self._replica, step).observe(seconds)

    def shadow(self, result: Compared) -> None:
        """Count a question that was drawn to be compared with exact search."""
        self._shadow.labels(self._replica, result).inc()

    def shadow_hits(self, hits: int, found: int) -> None:
        """Count the hits of exact search to a question, and those of them that its answer had."""
        self._shadow_hits.labels(self._replica).inc(hits)
        self._shadow_found.labels(self._replica).inc(found)

    @property
    def replica(self) -> str:
        """Return the name of this replica, which is the label of all that it measures."""
        return self._replica

    def totals(self, sample: str, label: str, **labels: str) -> Mapping[str, float]:
        """Return the values of a sample by one of its labels, added up over the others; only those with `labels`."""
        found: dict[str, float] = defaultdict(float)
        for metric in self._registry.collect():
            for each in metric.samples:
                if each.name == sample and labels.items() <= each.labels.items():
                    found[each.labels[label]] += each.value
        return found

    def total(self, sample: str) -> float:
        """Return the value of a sample, added up over all labels."""
        return sum(self.totals(sample, "replica").values())

    def text(self, follower: Follower) -> bytes:
        """Return all metrics in Prometheus' text format."""
        with follower.snapshot() as retriever:
            self._snapshot.labels(self._replica).set(retriever.number)
            self._passages.labels(self._replica).set(retriever.body.passages)
            published = datetime.fromisoformat(retriever.published_at).timestamp()
            self._published.labels(self._replica).set(published)
        self._live.labels(self._replica).set(follower.state.live)
        text: bytes = generate_latest(self._registry)
        return text

    def _histogram(
        self, name: str, meaning: str, labels: list[str] | None = None, buckets: tuple[float, ...] = SECONDS
    ) -> Histogram:
        return Histogram(name, meaning, ["replica", *(labels or [])], buckets=buckets, registry=self._registry)

    def _counter(self, name: str, meaning: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, meaning, ["replica", *(labels or [])], registry=self._registry)

    def _gauge(self, name: str, meaning: str) -> Gauge:
        return Gauge(name, meaning, ["replica"], registry=self._registry)
