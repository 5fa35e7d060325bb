"""Batch without waiting: two batches are answered at a time, and requests that arrive meanwhile form the next.

So a lone question is never delayed, and batches grow with the load. While one batch is encoded, by as many threads as
there are processors, the other one is searched, which takes one thread. It begins once it has enough questions.

A question that comes alone, and that will not take long, is answered in the event loop's own thread: to hand it over to
another one and back takes 0.3 to 0.5 ms. On a busy machine one thread for everything would have to wait more often.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Protocol, TypeVar

from dpr.formats.lexical_entry import SearchMode
from dpr.idle_processors import IdleProcessors
from dpr.search.filters import Filter
from dpr.search.retrieve import Answer
from ray_jobs.serve.answer_cache import AnswerCache, SearchOptions
from ray_jobs.serve.prometheus import Metrics

BATCH_QUESTIONS = 64
BATCHES_AT_ONCE = 2
MIN_SECOND_QUESTIONS = 16
"""A batch begins beside another once so many questions wait, or as many as are being answered. Otherwise the first
request to arrive would begin it alone, and the rest would wait for that."""
QUICK_SECONDS, QUICK_CHARACTERS = 0.005, 200
"""The event loop answers a question that comes alone and is not longer than this, if the one before it, with the same
options, took less time than this, while a processor is idle."""
MAX_WAITING_QUESTIONS = 2048
"""About three seconds of a MiniLM on two CPU cores."""
T = TypeVar("T")


class BusyError(Exception):
    """More questions are waiting than the service accepts."""


class Searcher(Protocol):
    """The source of answers: `dpr.operations.follow.Follower`."""

    @property
    def number(self) -> int:
        """Return the number of the snapshot in use."""

    @property
    def is_here(self) -> bool:
        """Return whether this process answers from this machine alone."""

    def search(
        self, questions: Sequence[str], k: int, *, mode: SearchMode | None, exact: bool, where: Filter | None
    ) -> Answer:
        """Return the best k passages for each question."""


@dataclass(frozen=True)
class _Request:
    questions: Sequence[str]
    options: SearchOptions
    answer: asyncio.Future[Answer]
    since: float = field(default_factory=time.perf_counter)


class Batcher:
    """Gathers the requests of one event loop, and answers them in threads, so that the loop is not blocked for long."""

    def __init__(
        self,
        searcher: Searcher,
        metrics: Metrics | None = None,
        cache: AnswerCache | None = None,
        at_once: int = BATCHES_AT_ONCE,
        processors: IdleProcessors | None = None,
    ) -> None:
        """`at_once`: batches that are answered at the same time."""
        self._searcher, self._metrics, self._cache = searcher, metrics or Metrics(), cache
        self._at_once = at_once
        self._threads: asyncio.LifoQueue[ThreadPoolExecutor] = asyncio.LifoQueue()
        """Idle ones, of one thread each; the one used last comes first, since its processor has all in its caches."""
        for _ in range(at_once):
            self._threads.put_nowait(ThreadPoolExecutor(1, thread_name_prefix="search"))
        self._waiting: deque[_Request] = deque()
        self._tasks: list[asyncio.Task[None]] = []
        self._in_work = 0
        """Questions that are being answered."""
        self._processors = processors or IdleProcessors()
        self._quick: tuple[int, SearchOptions] | None = None
        """Snapshot and options of the last question that came alone, if it took little time."""

    async def search(self, questions: Sequence[str], options: SearchOptions) -> Answer:
        """Return the best k passages for each question, and the timings of the batch that they were part of.

        Cached answers take no time. Raises BusyError if too many questions wait.
        """
        if self._cache is not None:
            known = self._cache.find(self._searcher.number, questions, options)
            self._metrics.looked_up(len(questions), is_known=known is not None)
            if known is not None:
                return known
        if self._is_quick(questions, options):
            self._metrics.waited(0.0)
            return self._noted(questions, options, self._search(questions, options))
        before = _questions(request for request in self._waiting if not request.answer.done())
        waiting = before + len(questions)
        if waiting > MAX_WAITING_QUESTIONS:
            raise BusyError(f"{before:,} questions wait for an answer, and no more are taken; ask again in a moment")
        self._metrics.waiting(waiting)
        request = _Request(questions, options, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._tasks = [task for task in self._tasks if not task.done()]
        if not self._tasks or (self._are_enough() and len(self._tasks) < self._at_once):
            self._tasks.append(asyncio.create_task(self._answer_all()))
        return await request.answer

    async def run(self, work: Callable[[], T]) -> tuple[T, float]:
        """Do other work in a thread that answers batches, between two of them; also return its seconds."""

        def timed() -> tuple[T, float]:
            started = time.perf_counter()
            return work(), time.perf_counter() - started

        return await self._in_thread(timed)

    async def _in_thread(self, work: Callable[[], T]) -> T:
        thread = await self._threads.get()
        try:
            return await asyncio.get_running_loop().run_in_executor(thread, work)
        finally:
            self._threads.put_nowait(thread)

    async def _answer_all(self) -> None:
        while self._are_enough() and (batch := self._next_batch()):
            questions = _questions(batch)
            self._in_work += questions
            try:
                await self._answer(batch)
            finally:
                self._in_work -= questions

    def _are_enough(self) -> bool:
        """Return whether what waits may form a batch now; what is too few goes into the batch after one under way."""
        waiting = _questions(request for request in self._waiting if not request.answer.done())
        return waiting >= min(MIN_SECOND_QUESTIONS, self._in_work)

    async def _answer(self, batch: Sequence[_Request]) -> None:
        questions = [question for request in batch for question in request.questions]
        first = batch[0]
        options = first.options
        try:
            found = await self._in_thread(partial(self._search, questions, options))
        except Exception as error:
            if len(batch) > 1:  # a question that cannot be answered must not make the rest of its batch fail
                for request in batch:
                    await self._answer([request])
            elif not first.answer.done():
                first.answer.set_exception(error)
            return
        self._noted(questions, options, found)
        hits, lost_tokens = iter(found.hits), iter(found.lost_tokens)
        for request in batch:
            rows = len(request.questions)
            answer = replace(found, hits=list(islice(hits, rows)), lost_tokens=list(islice(lost_tokens, rows)))
            if not request.answer.done():
                request.answer.set_result(answer)

    def _is_quick(self, questions: Sequence[str], options: SearchOptions) -> bool:
        """Return whether the event loop may answer, since it will do so soon and nothing else is under way."""
        return (
            len(questions) == 1
            and len(questions[0]) <= QUICK_CHARACTERS
            and self._quick == (self._searcher.number, options)
            and self._threads.qsize() == self._at_once
            and not self._waiting
            and self._searcher.is_here
            and self._processors.are_there(1)
        )

    def _search(self, questions: Sequence[str], options: SearchOptions) -> Answer:
        return self._searcher.search(questions, options.k, mode=options.mode, exact=options.exact, where=options.where)

    def _noted(self, questions: Sequence[str], options: SearchOptions, found: Answer) -> Answer:
        """Note what an answer took, and keep it."""
        self._metrics.batch(len(questions), found)
        if self._cache is not None and not found.missing_shards:
            self._cache.add(questions, options, found)
        if len(questions) == 1:
            seconds = found.filter_seconds + found.encode_seconds + found.search_seconds
            self._quick = (found.snapshot, options) if seconds < QUICK_SECONDS else None
        return found

    def _next_batch(self) -> list[_Request]:
        """Take the oldest request and all that can share its batch; requests whose client has gone are dropped."""
        batch: list[_Request] = []
        left: deque[_Request] = deque()
        questions = 0
        for request in self._waiting:
            if request.answer.done():
                continue
            fits = not batch or (
                batch[0].options == request.options and questions + len(request.questions) <= BATCH_QUESTIONS
            )
            (batch if fits else left).append(request)
            questions += len(request.questions) if fits else 0
        self._waiting = left
        self._metrics.waiting(_questions(left))
        for request in batch:
            self._metrics.waited(time.perf_counter() - request.since)
        return batch


def _questions(requests: Iterable[_Request]) -> int:
    return sum(len(request.questions) for request in requests)
