"""Filters in the service: matching rows are found in a separate thread, before their questions are searched for.

So questions without a filter, and those with a known filter, do not wait while columns are read.
"""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor

from dpr.operations.follow import Follower
from dpr.search.filters import Filter


class FilterQueue:
    """Prepares one filter after the other."""

    def __init__(self, follower: Follower) -> None:
        self._follower = follower
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="filter")

    async def prepare(self, where: Filter) -> float:
        """Let the snapshot in use find the rows that match; returns the seconds that it took, with the wait.

        Raises RecipeError as `Retriever.prepare_filter` does. If the snapshot changes before the search, that prepares
        the filter once more.
        """
        started = time.perf_counter()
        await asyncio.get_running_loop().run_in_executor(self._thread, self._prepare, where)
        return time.perf_counter() - started

    def _prepare(self, where: Filter) -> None:
        with self._follower.snapshot() as retriever:
            retriever.prepare_filter(where)
