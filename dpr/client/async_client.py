"""The client for programs with an event loop; method by method the one in blocking_client.py."""

import asyncio
import itertools
from collections.abc import Sequence
from types import TracebackType
from typing import Self, Unpack

import httpx

from dpr.answers.embedding_answer import EmbeddingAnswer, Tower
from dpr.answers.search_answer import PassageAnswer, SearchAnswer
from dpr.answers.state_answer import Health, Ready, SnapshotList, Status
from dpr.client.calls import (
    HEALTH,
    READY,
    STATUS,
    A,
    Address,
    Asker,
    Call,
    SearchOptions,
    answer_of,
    embed_call,
    passage_call,
    search_call,
    snapshots_call,
)


class AsyncClient(Asker):
    """Asks a service from one event loop; an asynchronous context manager that closes its connections.

    Its methods raise the errors that `Asker` names.
    """

    def _connect(self, address: Address) -> None:
        self._http = httpx.AsyncClient(base_url=address.url, headers=address.headers, timeout=address.timeout)

    async def search(self, query: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Find the passages that answer one question, or several."""
        return await self._answer(search_call(query, options))

    async def embed(
        self, texts: str | Sequence[str], model: Tower = "question", dimensions: int | None = None
    ) -> EmbeddingAnswer:
        """Turn texts into vectors, by the tower for questions or by that for passages."""
        return await self._answer(embed_call(texts, model, dimensions))

    async def passage(self, id_: str) -> PassageAnswer:
        """Return a stored passage by its id. Raises RefusedError with status 404 if there is none."""
        return await self._answer(passage_call(id_))

    async def snapshots(self, limit: int = 20) -> SnapshotList:
        """List the newest snapshots of the store."""
        return await self._answer(snapshots_call(limit))

    async def health(self) -> Health:
        """Return which snapshot is served, and whether it is the newest."""
        return await self._answer(HEALTH)

    async def ready(self) -> Ready:
        """Check that requests are accepted; needs no key."""
        return await self._answer(READY)

    async def status(self) -> Status:
        """Return what one replica has done since it started: requests, times, and the quality of its answers."""
        return await self._answer(STATUS)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _answer(self, call: Call[A]) -> A:
        for attempt in itertools.count():
            outcome = await self._send(call)
            seconds = self._patience.pause_seconds(attempt, outcome)
            if seconds is None:
                break
            await asyncio.sleep(seconds)
        return answer_of(call, outcome)

    async def _send(self, call: Call[A]) -> httpx.Response | httpx.RequestError:
        try:
            return await self._http.request(call.method, call.path, content=call.content(), params=call.parameters)
        except httpx.RequestError as error:
            return error
