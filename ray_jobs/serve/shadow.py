"""Compare some answers to users' questions with those of exact search, in a separate thread, so that users do not wait.

An exact search takes as long as there are passages. So one question is compared at a time, and after each the thread
pauses, so that all comparisons together take half a percent of the time: 99 of 100 requests run beside none.
"""

import logging
import random
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from dpr.operations.follow import Follower
from dpr.search.hits import Hit
from dpr.search.retrieve import Answer
from ray_jobs.serve.answer_cache import SearchOptions
from ray_jobs.serve.prometheus import Metrics

SHARE = 0.01
"""Share of the questions that are drawn."""
RESTS = 200.0
"""The pause of the thread, as a multiple of the time that it worked."""

_log = logging.getLogger(__name__)
_random = random.Random()
"""Not Python's shared generator, which a program may have seeded to get the same numbers each time."""


class Shadow:
    """Draws questions, and counts in the metrics how many hits of exact search their answers contained."""

    def __init__(self, follower: Follower, metrics: Metrics, share: float = SHARE) -> None:
        self._follower, self._metrics, self._share = follower, metrics, share
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._busy, self._rest_until = threading.Event(), 0.0

    @property
    def is_busy(self) -> bool:
        """Tell whether a question is being compared."""
        return self._busy.is_set()

    def draw(self, questions: Sequence[str], options: SearchOptions, answer: Answer) -> None:
        """Draw some of the answered questions, to compare their hits."""
        for question, hits in zip(questions, answer.hits, strict=True):
            if options.exact or answer.missing_shards or _random.random() >= self._share:
                continue
            if self.is_busy or monotonic() < self._rest_until:
                self._metrics.shadow("skipped")
                continue
            self._busy.set()
            self._thread.submit(self._compare, question, options, answer.snapshot, hits)

    def _compare(self, question: str, options: SearchOptions, snapshot: int, hits: Sequence[Hit]) -> None:
        started = monotonic()
        try:
            self._count(question, options, snapshot, hits)
        except Exception:  # any error: no user waits for this
            self._metrics.shadow("failed")
            _log.exception("a question could not be compared with exact search")
        finally:
            seconds = monotonic() - started
            self._metrics.step("shadow", seconds)
            self._rest_until = monotonic() + RESTS * seconds
            self._busy.clear()

    def _count(self, question: str, options: SearchOptions, snapshot: int, hits: Sequence[Hit]) -> None:
        with self._follower.snapshot() as retriever:
            default = retriever.body.lexical.mode if retriever.body.lexical else "dense"
            # the answers of BM25 are exact, and those of another snapshot cannot be compared
            if (options.mode or default) == "bm25" or retriever.number != snapshot:
                return
            answer = retriever.search([question], options.k, mode=options.mode, exact=True, where=options.where)
        if answer.missing_shards:
            self._metrics.shadow("skipped")
            return
        found = {hit.id for hit in hits}
        self._metrics.shadow("compared")
        self._metrics.shadow_hits(len(answer.hits[0]), sum(hit.id in found for hit in answer.hits[0]))
