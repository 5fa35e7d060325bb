"""The cache of answers: only what was asked before, with the same options, of the snapshot in use; within its limit."""

import asyncio
from collections.abc import Sequence

import pytest

from dpr.search.filters import parse_filter
from dpr.search.hits import Hit
from dpr.search.retrieve import Answer
from ray_jobs.serve.answer_cache import AnswerCache, SearchOptions
from ray_jobs.serve.batch import Batcher

pytestmark = pytest.mark.without_ray
OPTIONS = [
    SearchOptions(1),
    SearchOptions(2),
    SearchOptions(1, "bm25"),
    SearchOptions(1, exact=True),
    SearchOptions(1, where=parse_filter({"year": 1})),
    SearchOptions(1, where=parse_filter({"year": True})),
]


class Counting:
    """Answers a question with how many it was asked before, from the snapshot `number`."""

    def __init__(self) -> None:
        self.searched: list[str] = []
        self.number = 1

    def search(self, questions: Sequence[str], k: int, **options: object) -> Answer:  # noqa: ARG002
        hits = [[Hit(1, float(len(self.searched)), question, "", "")] for question in questions]
        self.searched += questions
        return Answer(self.number, f"encoder {self.number}", hits, [7] * len(hits), 0.5, 0.25)


def ask(batcher: Batcher, questions: Sequence[str], options: SearchOptions = OPTIONS[0]) -> Answer:
    return asyncio.run(batcher.search(questions, options))


def test_a_question_is_searched_once_in_each_way() -> None:
    counting = Counting()
    batcher = Batcher(counting, cache=AnswerCache(10**6))
    first = [ask(batcher, ["a"], options) for options in OPTIONS]
    assert counting.searched == ["a"] * len(OPTIONS)
    again = [ask(batcher, ["a"], options) for options in OPTIONS]
    assert counting.searched == ["a"] * len(OPTIONS)
    assert [answer.hits for answer in again] == [answer.hits for answer in first]
    assert {(answer.snapshot, answer.encoder_id, *answer.lost_tokens) for answer in again} == {(1, "encoder 1", 7)}
    assert {(answer.encode_seconds, answer.search_seconds) for answer in again} == {(0.0, 0.0)}


def test_several_questions_are_answered_by_the_cache_if_all_are_known() -> None:
    counting = Counting()
    batcher = Batcher(counting, cache=AnswerCache(10**6))
    ask(batcher, ["a", "b"])
    assert [hits[0].id for hits in ask(batcher, ["b", "a", "b"]).hits] == ["b", "a", "b"]
    assert counting.searched == ["a", "b"]
    assert [hits[0].id for hits in ask(batcher, ["b", "c"]).hits] == ["b", "c"]
    assert counting.searched == ["a", "b", "b", "c"]


def test_a_new_snapshot_is_asked_again_and_so_is_an_old_one_that_comes_back() -> None:
    counting = Counting()
    batcher = Batcher(counting, cache=AnswerCache(10**6))
    for number in (1, 2, 1):
        counting.number = number
        answers = [ask(batcher, ["a"]) for _ in range(2)]
        assert [(answer.snapshot, answer.encoder_id) for answer in answers] == [(number, f"encoder {number}")] * 2
    assert counting.searched == ["a"] * 3


def test_beyond_the_limit_the_least_recently_asked_are_dropped() -> None:
    counting = Counting()
    batcher = Batcher(counting, cache=AnswerCache(3_300))  # three answers of one hit without text
    for question in ("a", "b", "c", "a", "d"):
        ask(batcher, [question])
    assert counting.searched == ["a", "b", "c", "d"]
    for question in ("a", "c", "d"):
        ask(batcher, [question])
    assert counting.searched == ["a", "b", "c", "d"]
    ask(batcher, ["b"])
    assert counting.searched == ["a", "b", "c", "d", "b"]


def test_an_answer_larger_than_the_limit_is_given_and_not_kept() -> None:
    counting = Counting()
    batcher = Batcher(counting, cache=AnswerCache(10))
    assert [ask(batcher, ["a"]).hits[0][0].id for _ in range(2)] == ["a", "a"]
    assert counting.searched == ["a", "a"]
