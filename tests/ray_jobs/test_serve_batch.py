"""Batching: who goes with whom, and that nobody suffers from a neighbour."""

import asyncio
import threading
from collections.abc import Sequence

import pytest

from dpr.formats.lexical_entry import SearchMode
from dpr.search.hits import Hit
from dpr.search.retrieve import Answer
from ray_jobs.serve.batch import BATCH_QUESTIONS, Batcher

pytestmark = pytest.mark.without_ray


class Echo:
    """Answers each question with itself; "poison" cannot be answered. Waits for `go` before each batch."""

    def __init__(self) -> None:
        self.batches: list[tuple[list[str], int, SearchMode | None, bool]] = []
        self.threads: set[int] = set()
        self.begun = threading.Event()
        self.go = threading.Semaphore(0)

    def search(self, questions: Sequence[str], k: int, *, mode: SearchMode | None, exact: bool) -> Answer:
        self.begun.set()
        self.go.acquire()
        self.batches.append((list(questions), k, mode, exact))
        self.threads.add(threading.get_ident())
        if "poison" in questions:
            raise ValueError("poison")
        return Answer(
            1,
            "encoder",
            [[Hit(1, 1.0, question, "", "")] * k for question in questions],
            [len(question) for question in questions],
            0.5,
            0.25,
        )


async def busy(echo: Echo, batcher: Batcher) -> asyncio.Task[Answer]:
    """Send a question, and return once its batch is being answered, so that later questions have to wait."""
    first = asyncio.create_task(batcher.search(["first"], 1, exact=False))
    while not echo.begun.is_set():
        await asyncio.sleep(0.001)
    return first


def test_what_arrives_during_a_batch_goes_together_into_the_next() -> None:
    async def ask() -> tuple[Echo, list[Answer]]:
        echo = Echo()
        batcher = Batcher(echo)
        first = await busy(echo, batcher)
        later = [
            asyncio.create_task(batcher.search(questions, k, exact=exact))
            for questions, k, exact in [(["b"], 1, False), (["c"], 2, False), (["d", "e"], 1, False), (["f"], 1, True)]
        ]
        later.append(asyncio.create_task(batcher.search(["g"], 1, mode="bm25", exact=False)))
        await asyncio.sleep(0)
        echo.go.release(10)
        return echo, await asyncio.gather(first, *later)

    echo, answers = asyncio.run(ask())
    assert echo.batches == [
        (["first"], 1, None, False),
        (["b", "d", "e"], 1, None, False),
        (["c"], 2, None, False),
        (["f"], 1, None, True),
        (["g"], 1, "bm25", False),
    ]
    assert [[[hit.id for hit in hits] for hits in answer.hits] for answer in answers] == [
        [["first"]],
        [["b"]],
        [["c", "c"]],
        [["d"], ["e"]],
        [["f"]],
        [["g"]],
    ]
    assert [answer.lost_tokens for answer in answers] == [[5], [1], [1], [1, 1], [1], [1]]
    assert {(answer.encode_seconds, answer.search_seconds) for answer in answers} == {(0.5, 0.25)}
    assert len(echo.threads) == 1
    assert threading.get_ident() not in echo.threads


def test_batches_are_bounded_and_a_larger_request_goes_alone() -> None:
    async def ask() -> Echo:
        echo = Echo()
        batcher = Batcher(echo)
        large = [f"large{number}" for number in range(BATCH_QUESTIONS + 1)]
        searches = [batcher.search([f"q{number}"], 1, exact=False) for number in range(BATCH_QUESTIONS + 3)]
        tasks = [asyncio.create_task(one) for one in [*searches, batcher.search(large, 1, exact=False)]]
        echo.go.release(10)
        await asyncio.gather(*tasks)
        return echo

    echo = asyncio.run(ask())
    assert [len(questions) for questions, *_ in echo.batches] == [BATCH_QUESTIONS, 3, BATCH_QUESTIONS + 1]


def test_a_question_that_cannot_be_answered_fails_alone() -> None:
    async def ask() -> list[Answer | BaseException]:
        echo = Echo()
        batcher = Batcher(echo)
        echo.go.release(10)
        searches = [batcher.search([question], 1, exact=False) for question in ("a", "poison", "b")]
        return await asyncio.gather(*searches, return_exceptions=True)

    before, poison, after = asyncio.run(ask())
    assert isinstance(before, Answer)
    assert isinstance(after, Answer)
    assert (before.hits[0][0].id, after.hits[0][0].id) == ("a", "b")
    with pytest.raises(ValueError, match="poison"):
        raise poison  # type: ignore[misc]


def test_a_client_that_has_gone_costs_nothing() -> None:
    async def ask() -> Echo:
        echo = Echo()
        batcher = Batcher(echo)
        first = await busy(echo, batcher)
        gone, kept = (asyncio.create_task(batcher.search([question], 1, exact=False)) for question in ("gone", "kept"))
        await asyncio.sleep(0)
        gone.cancel()
        echo.go.release(10)
        await asyncio.gather(first, kept, gone, return_exceptions=True)
        return echo

    assert [questions for questions, *_ in asyncio.run(ask()).batches] == [["first"], ["kept"]]
