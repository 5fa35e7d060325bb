"""Re-ranking in the service, in a separate thread, so that other requests do not wait for it."""

import asyncio
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from dpr.errors import RecipeError
from dpr.recipe_service import MAX_RERANKED
from dpr.search.hits import Hit
from dpr.search.rerank import Reranker, check_depth

MAX_PAIRS = MAX_RERANKED
"""Pairs of question and passage that one request may have re-ranked: 23 seconds of a MiniLM on two CPU cores."""


@dataclass(frozen=True)
class Reranked:
    """Hits of several questions after re-ranking, and how long it took."""

    hits: list[list[Hit]]
    seconds: float = 0.0


class RerankQueue:
    """Re-ranks for one request after the other."""

    def __init__(self, reranker: Reranker | None) -> None:
        """`reranker`: None where the service has none, and refuses requests that want it."""
        self._reranker = reranker
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="rerank")

    def checked(self, questions: Sequence[str], k: int) -> Reranker:
        """Return the re-ranker, if it can re-rank k hits of these questions.

        Raises RecipeError if there is none, if k is more than it reads, or if there are too many questions.
        """
        reranker = self._reranker
        if reranker is None:
            raise RecipeError(
                "field rerank is true, and this service has no re-ranker; leave it out, or serve with a recipe that "
                "has a rerank section (dpr serve STORE --recipe RECIPE)"
            )
        check_depth(k, reranker.top)
        pairs = len(questions) * reranker.top
        if pairs > MAX_PAIRS:
            raise RecipeError(
                f"{len(questions)} questions with {reranker.top} passages each are {pairs:,} pairs to re-rank, and a "
                f"request may have {MAX_PAIRS:,}; send {MAX_PAIRS // reranker.top} at once at most"
            )
        return reranker

    async def rerank(self, reranker: Reranker, questions: Sequence[str], hits: list[list[Hit]], k: int) -> Reranked:
        """Return the best k of these hits of each question."""

        def work() -> Reranked:
            started = time.perf_counter()
            return Reranked(reranker.rerank(questions, hits, k), time.perf_counter() - started)

        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
