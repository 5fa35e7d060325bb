"""The client for programs without an event loop."""

import itertools
import time
from collections.abc import Sequence
from typing import Unpack

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
from dpr.closing import Closing


class Client(Asker, Closing):
    """Asks a service, from any number of threads; a context manager that closes its connections.

    Its methods raise the errors that `Asker` names.
    """

    def _connect(self, address: Address) -> None:
        self._http = httpx.Client(base_url=address.url, headers=address.headers, timeout=address.timeout)

    def search(self, query: str | Sequence[str], **options: Unpack[SearchOptions]) -> SearchAnswer:
        """Find the passages that answer one question, or several."""
        return self._answer(search_call(query, options))

    def embed(
        self, texts: str | Sequence[str], model: Tower = "question", dimensions: int | None = None
    ) -> EmbeddingAnswer:
        """Turn texts into vectors, by the tower for questions or by that for passages."""
        return self._answer(embed_call(texts, model, dimensions))

    def passage(self, id_: str) -> PassageAnswer:
        """Return a stored passage by its id. Raises RefusedError with status 404 if there is none."""
        return self._answer(passage_call(id_))

    def snapshots(self, limit: int = 20) -> SnapshotList:
        """List the newest snapshots of the store."""
        return self._answer(snapshots_call(limit))

    def health(self) -> Health:
        """Return which snapshot is served, and whether it is the newest."""
        return self._answer(HEALTH)

    def ready(self) -> Ready:
        """Check that requests are accepted; needs no key."""
        return self._answer(READY)

    def status(self) -> Status:
        """Return what one replica has done since it started: requests, times, and the quality of its answers."""
        return self._answer(STATUS)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def _answer(self, call: Call[A]) -> A:
        for attempt in itertools.count():
            outcome = self._send(call)
            seconds = self._patience.pause_seconds(attempt, outcome)
            if seconds is None:
                break
            time.sleep(seconds)
        return answer_of(call, outcome)

    def _send(self, call: Call[A]) -> httpx.Response | httpx.RequestError:
        try:
            return self._http.request(call.method, call.path, content=call.content(), params=call.parameters)
        except httpx.RequestError as error:
            return error
