"""Batching: who goes with whom, and that nobody suffers from a neighbour."""

import asyncio
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import pytest

from dpr.formats.lexical_entry import SearchMode
from dpr.search.filters import Filter, parse_filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Answer
from ray_jobs.serve.answer_cache import SearchOptions
from ray_jobs.serve.batch import BATCH_QUESTIONS, QUICK_CHARACTERS, Batcher
from tests.processors import Processors

pytestmark = pytest.mark.without_ray


class Echo:
    """Answers each question with itself; "poison" cannot be answered. Waits for `go` before each batch."""

    def __init__(self) -> None:
        self.number = 1
        self.is_here = True
        self.seconds = 0.5
        self.batches: list[tuple[list[str], SearchOptions]] = []
        self.threads: set[int] = set()
        self.begun = 0
        self.go = threading.Semaphore(0)

    def search(
        self, questions: Sequence[str], k: int, *, mode: SearchMode | None, exact: bool, where: Filter | None
    ) -> Answer:
        self.begun += 1
        self.go.acquire()
        self.batches.append((list(questions), SearchOptions(k, mode, exact, where)))
        self.threads.add(threading.get_ident())
        if "poison" in questions:
            raise ValueError("poison")
        return Answer(
            1,
            "encoder",
            [[Hit(1, 1.0, question, "", "")] * k for question in questions],
            [len(question) for question in questions],
            self.seconds,
            self.seconds / 2,
        )


@dataclass(frozen=True)
class Second:
    """A question that follows a first one, and how things are when it comes."""

    questions: tuple[str, ...] = ("second",)
    k: int = 1
    number: int = 1
    """The snapshot in use."""
    seconds: float = 0.001
    """What the first question took."""
    idle: bool = True
    """Whether the processors are idle."""
    is_here: bool = True


async def busy(echo: Echo, batcher: Batcher) -> asyncio.Task[Answer]:
    """Send a question, and return once its batch is being answered, so that later questions have to wait."""
    first = asyncio.create_task(batcher.search(["first"], SearchOptions(1)))
    while not echo.begun:
        await asyncio.sleep(0.001)
    return first


def test_what_arrives_during_a_batch_goes_together_into_the_next() -> None:
    async def ask() -> tuple[Echo, list[Answer]]:
        echo = Echo()
        batcher = Batcher(echo, at_once=1)
        first = await busy(echo, batcher)
        later = [
            asyncio.create_task(batcher.search(questions, options))
            for questions, options in [
                (["b"], SearchOptions(1)),
                (["c"], SearchOptions(2)),
                (["d", "e"], SearchOptions(1)),
                (["f"], SearchOptions(1, exact=True)),
                (["g"], SearchOptions(1, "bm25")),
                (["h"], SearchOptions(1, where=parse_filter({"year": 1}))),
                (["i"], SearchOptions(1, where=parse_filter({"year": True}))),
                (["j"], SearchOptions(1, where=parse_filter({"year": 1}))),
            ]
        ]
        await asyncio.sleep(0)
        echo.go.release(10)
        return echo, await asyncio.gather(first, *later)

    echo, answers = asyncio.run(ask())
    assert echo.batches == [
        (["first"], SearchOptions(1)),
        (["b", "d", "e"], SearchOptions(1)),
        (["c"], SearchOptions(2)),
        (["f"], SearchOptions(1, exact=True)),
        (["g"], SearchOptions(1, "bm25")),
        (["h", "j"], SearchOptions(1, where=parse_filter({"year": 1}))),
        (["i"], SearchOptions(1, where=parse_filter({"year": True}))),
    ]
    assert [[[hit.id for hit in hits] for hits in answer.hits] for answer in answers] == [
        [["first"]],
        [["b"]],
        [["c", "c"]],
        [["d"], ["e"]],
        [["f"]],
        [["g"]],
        [["h"]],
        [["i"]],
        [["j"]],
    ]
    assert [answer.lost_tokens for answer in answers] == [[5], [1], [1], [1, 1], *[[1]] * 5]
    assert {(answer.encode_seconds, answer.search_seconds) for answer in answers} == {(0.5, 0.25)}
    assert len(echo.threads) == 1
    assert threading.get_ident() not in echo.threads


def test_a_second_batch_begins_with_as_many_questions_as_the_first_has() -> None:
    async def ask() -> Echo:
        echo = Echo()
        batcher = Batcher(echo)
        tasks = []

        async def send(questions: list[str], begun: int) -> None:
            """Send a request, and return once so many batches have begun."""
            tasks.append(asyncio.create_task(batcher.search(questions, SearchOptions(1))))
            await asyncio.sleep(0.01)
            while echo.begun < begun:
                await asyncio.sleep(0.001)
            assert echo.begun == begun

        await send(["a", "b"], begun=1)
        await send(["c"], begun=1)
        await send(["d"], begun=2)
        await send([f"e{number}" for number in range(9)], begun=2)
        echo.go.release(10)
        await asyncio.gather(*tasks)
        return echo

    echo = asyncio.run(ask())
    assert sorted(len(questions) for questions, _ in echo.batches) == [2, 2, 9]
    assert len(echo.threads) == 2


def test_few_questions_wait_for_the_batch_that_is_still_under_way() -> None:
    async def ask() -> Echo:
        echo = Echo()
        batcher = Batcher(echo)
        tasks = []
        for questions in (["a", "b"], ["c", "d"], ["e"]):
            tasks.append(asyncio.create_task(batcher.search(questions, SearchOptions(1))))
            await asyncio.sleep(0.01)
        while echo.begun < 2:
            await asyncio.sleep(0.001)
        echo.go.release()
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        await asyncio.sleep(0.01)
        assert echo.begun == 2
        echo.go.release(2)
        await asyncio.gather(*tasks)
        return echo

    assert [len(questions) for questions, _ in asyncio.run(ask()).batches] == [2, 2, 1]


def test_batches_are_bounded_and_a_larger_request_goes_alone() -> None:
    async def ask() -> Echo:
        echo = Echo()
        batcher = Batcher(echo, at_once=1)
        large = [f"large{number}" for number in range(BATCH_QUESTIONS + 1)]
        searches = [batcher.search([f"q{number}"], SearchOptions(1)) for number in range(BATCH_QUESTIONS + 3)]
        tasks = [asyncio.create_task(one) for one in [*searches, batcher.search(large, SearchOptions(1))]]
        echo.go.release(10)
        await asyncio.gather(*tasks)
        return echo

    echo = asyncio.run(ask())
    assert [len(questions) for questions, *_ in echo.batches] == [BATCH_QUESTIONS, 3, BATCH_QUESTIONS + 1]


def test_a_question_that_cannot_be_answered_fails_alone() -> None:
    async def ask() -> list[Answer | BaseException]:
        echo = Echo()
        batcher = Batcher(echo, at_once=1)
        echo.go.release(10)
        searches = [batcher.search([question], SearchOptions(1)) for question in ("a", "poison", "b")]
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
        batcher = Batcher(echo, at_once=1)
        first = await busy(echo, batcher)
        gone, kept = (
            asyncio.create_task(batcher.search([question], SearchOptions(1))) for question in ("gone", "kept")
        )
        await asyncio.sleep(0)
        gone.cancel()
        echo.go.release(10)
        await asyncio.gather(first, kept, gone, return_exceptions=True)
        return echo

    assert [questions for questions, *_ in asyncio.run(ask()).batches] == [["first"], ["kept"]]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        (Second(), True),
        (Second(idle=False), False),
        (Second(seconds=0.01), False),
        (Second(number=2), False),
        (Second(is_here=False), False),
        (Second(k=2), False),
        (Second(questions=("a", "b")), False),
        (Second(questions=("a" * (QUICK_CHARACTERS + 1),)), False),
    ],
)
def test_the_event_loop_answers_a_quick_question_that_comes_alone(second: Second, expected: bool) -> None:
    async def ask() -> list[set[int]]:
        echo = Echo()
        echo.seconds, echo.is_here = second.seconds, second.is_here
        batcher = Batcher(echo, processors=Processors(idle=second.idle))
        echo.go.release(10)
        threads = []
        for questions, k in ((("first",), 1), (second.questions, second.k)):
            echo.threads = set()
            answer = await batcher.search(questions, SearchOptions(k))
            assert [hits[0].id for hits in answer.hits] == list(questions)
            threads.append(echo.threads)
            echo.number = second.number
        return threads

    of_first, of_second = asyncio.run(ask())
    assert threading.get_ident() not in of_first
    assert (threading.get_ident() in of_second) == expected


def test_the_event_loop_answers_nothing_itself_while_a_batch_is_answered() -> None:
    async def ask() -> Echo:
        echo = Echo()
        echo.seconds = 0.001
        batcher = Batcher(echo, processors=Processors(idle=True))
        echo.go.release()
        await batcher.search(["quick"], SearchOptions(1))
        under_way = asyncio.create_task(batcher.search(["a", "b"], SearchOptions(1)))
        while echo.begun < 2:
            await asyncio.sleep(0.001)
        beside = asyncio.create_task(batcher.search(["c"], SearchOptions(1)))
        await asyncio.sleep(0)
        echo.go.release(2)
        await asyncio.gather(under_way, beside)
        return echo

    assert threading.get_ident() not in asyncio.run(ask()).threads
