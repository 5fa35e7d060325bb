"""The deployments of `topology: sharded`: each is one process that holds and searches one part of the index."""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from ray import serve
from ray.serve.schema import LoggingConfig

from dpr.operations.shard_host import Kept, ShardHost
from dpr.search.shard_groups import GroupPlace
from dpr.search.shard_search import ShardAnswer, ShardQuestion
from dpr.store import open_store
from ray_jobs.serve.replica_log import log_with_serve

LOGGING = LoggingConfig(log_level="WARNING", enable_access_log=False)
MAX_ONGOING_QUESTIONS = 64
THREADS = 2
"""That search: FAISS lets other threads run."""


class _ShardReplica:
    """One process with one part of the index."""

    def __init__(self, store: str, place: GroupPlace) -> None:
        log_with_serve()
        self._host = ShardHost(open_store(store), place)
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="shard")

    async def keep(self, front: str, snapshots: Sequence[int]) -> Kept:
        """Have these snapshots open, as `ShardHost.keep` does."""
        return self._host.keep(front, snapshots)

    async def answer(self, question: ShardQuestion) -> ShardAnswer | None:
        """Return the best of this part, as `ShardHost.answer` does."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, self._host.answer, question)


ShardReplica = serve.deployment(
    _ShardReplica, max_ongoing_requests=MAX_ONGOING_QUESTIONS, logging_config=LOGGING, num_replicas=1
)


def shard_name(number: int) -> str:
    """Return the name of the deployment of a part."""
    return f"shard-{number}"
