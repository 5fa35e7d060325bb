"""Where the tools get their answers: from a store, in this process, or from a running service."""

import threading
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus
from typing import Protocol

from dpr.client import Client
from dpr.closing import Closing
from dpr.errors import RefusedError
from dpr.operations.follow import Follower
from dpr.search.filter_values import known_columns
from dpr.search.filters import CONNECTIVES, parse_filter
from dpr.search.hits import Extra
from dpr.store import open_store


@dataclass(frozen=True)
class Found:
    """A passage, and the snapshot that it was read from."""

    snapshot: int
    id: str
    title: str
    text: str
    """Its text. In an answer to a question, a long text that is split is represented by its best window."""
    extra: Extra
    score: float | None = None
    """None: it was fetched by its id."""


class Source(Protocol):
    """A source of answers, also for several threads. The methods raise a DprError if they cannot answer."""

    def search(self, query: str, k: int, filter_: Mapping[str, object] | None) -> Sequence[Found]:
        """Return the best k passages that match the filter, the best first."""

    def passage(self, id_: str) -> Found | None:
        """Return a passage by its id, with all of its text; None if there is none."""

    def why_lacked(self, column: str) -> str | None:
        """Return None for an extra column that the passages have; for another one, a sentence that names those."""


class StoreSource(Closing):
    """Answers from the live snapshot of a store, and follows its nights; a context manager that closes it."""

    def __init__(self, url: str, model: str | None = None) -> None:
        """Open the store; `model`: where its model is, if it has moved."""
        self.follower = Follower(open_store(url), model)
        self._one_at_a_time = threading.Lock()

    def search(self, query: str, k: int, filter_: Mapping[str, object] | None) -> Sequence[Found]:
        """Search in the default mode of the snapshot."""
        where = None if filter_ is None else parse_filter(filter_)
        with self._one_at_a_time:
            answer = self.follower.search([query], k, where=where)
        return [
            Found(answer.snapshot, hit.id, hit.title, hit.text, hit.extra, hit.score)
            for hits in answer.hits
            for hit in hits
        ]

    def passage(self, id_: str) -> Found | None:
        """Look the passage up in the segments."""
        with self.follower.snapshot() as retriever:
            found = retriever.passage(id_)
            if found is None:
                return None
            return Found(retriever.number, found.id, found.title, joined(found.texts), found.extra)

    def why_lacked(self, column: str) -> str | None:
        """Look at the segments."""
        with self.follower.snapshot() as retriever:
            types = retriever.extra_types
        return None if column in types else f"the snapshot has no such column; {known_columns(types)}"

    def close(self) -> None:
        """Stop following, and close the snapshot."""
        self.follower.close()


class ServiceSource(Closing):
    """Answers through a running service; a context manager that closes its connections."""

    def __init__(self, url: str, key: str | None = None) -> None:
        """Ask the service once, so that a wrong address or key is found at the start."""
        with ExitStack() as stack:
            self._client = stack.enter_context(Client(url, key))
            self._client.health()
            stack.pop_all()

    def search(self, query: str, k: int, filter_: Mapping[str, object] | None) -> Sequence[Found]:
        """Search in the default mode of the service."""
        answer = self._client.search(query, k=k, filter=filter_)
        return [Found(answer.snapshot, hit.id, hit.title, hit.text, hit.extra, hit.score) for hit in answer.hits]

    def passage(self, id_: str) -> Found | None:
        """Ask the service for it."""
        try:
            found = self._client.passage(id_)
        except RefusedError as error:
            if error.status == HTTPStatus.NOT_FOUND:
                return None
            raise
        return Found(found.snapshot, found.id, found.title, joined(found.texts), found.extra)

    def why_lacked(self, column: str) -> str | None:
        """Ask the service with a filter that names the column, since it refuses one that it does not have."""
        if column in CONNECTIVES:  # no filter can name it
            return None
        try:
            self._client.search("a passage", k=1, filter={column: None})
        except RefusedError as error:
            if error.status == HTTPStatus.UNPROCESSABLE_ENTITY:
                return f"the service answers: {error}"
            raise
        return None

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def joined(windows: Sequence[str]) -> str:
    """Return the text that was split into these windows, each of which begins with the end of the one before it."""
    text = ""
    for window in windows:
        shared = next(n for n in range(min(len(text), len(window)), -1, -1) if text.endswith(window[:n]))
        text += window[shared:]
    return text
