"""Build requests to the service and read their answers, without sending: nothing here waits for a network."""

import json
import reprlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypedDict, TypeVar
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from dpr import __version__
from dpr.answers.embedding_answer import EmbeddingAnswer, Tower
from dpr.answers.search_answer import PassageAnswer, SearchAnswer
from dpr.answers.state_answer import Health, Ready, SnapshotList, Status
from dpr.client.patience import Patience
from dpr.errors import RefusedError, ServeError, UnreachableError

A = TypeVar("A", bound=BaseModel)
CONNECT_SECONDS = 10.0
TIMEOUT_SECONDS = 70.0
"""A little longer than a service takes to give up, so that its own error message arrives."""
RETRIES = 3
MAX_SHOWN_CHARS = 200


class SearchOptions(TypedDict, total=False):
    """How questions are searched for; the service decides what is left out."""

    k: int
    """Hits per question, 1 to 1,000; 10 by default."""
    mode: Literal["dense", "bm25", "hybrid"] | None
    """Search by vectors, by words or by both; by default as the snapshot says."""
    exact: bool
    """Compare with every stored vector instead of using the index; for keys of role admin."""
    rerank: bool
    """Let the service's cross-encoder re-rank the best passages."""
    filter: Mapping[str, object] | None
    """Rank only passages whose extra columns match, such as `{"lang": "de", "year": {"gte": 1990}}`."""


@dataclass(frozen=True)
class Call(Generic[A]):
    """A request to one route, and the form of its answer."""

    answer: type[A]
    path: str
    body: Mapping[str, object] | None = None
    """What is posted; None: nothing is."""
    parameters: Mapping[str, int] = field(default_factory=dict)

    @property
    def method(self) -> str:
        """Return the method of HTTP."""
        return "GET" if self.body is None else "POST"

    def content(self) -> bytes | None:
        """Return what is posted, as JSON. Raises ServeError for what JSON cannot hold."""
        if self.body is None:
            return None
        try:
            return json.dumps(self.body, ensure_ascii=False, allow_nan=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            names = ", ".join(self.body)
            raise ServeError(
                f"the request to {self.path} cannot be written as JSON ({error}); correct one of {names}"
            ) from error


def search_call(query: str | Sequence[str], options: SearchOptions) -> Call[SearchAnswer]:
    """Ask one question, or several at once."""
    questions = _texts("query", query, "question")
    body = {"query": questions} if isinstance(questions, str) else {"queries": questions}
    return Call(SearchAnswer, "v1/search", {**body, **options})


def embed_call(texts: str | Sequence[str], model: Tower, dimensions: int | None) -> Call[EmbeddingAnswer]:
    """Ask for the vectors of texts; base64 takes a quarter of the bytes that decimal digits would."""
    body = {"input": _texts("texts", texts, "text"), "model": model, "dimensions": dimensions}
    return Call(EmbeddingAnswer, "v1/embeddings", {**body, "encoding_format": "base64"})


def passage_call(id_: str) -> Call[PassageAnswer]:
    """Ask for a passage by its id, whatever characters it has."""
    if not isinstance(id_, str):
        raise ServeError(f"the id of a passage is {_shown(id_)}; give a str")
    try:
        quoted = quote(id_, safe="")
    except UnicodeEncodeError as error:
        raise ServeError(f"the id of a passage is {_shown(id_)}, which is no valid Unicode; correct it") from error
    # a path that consists only of dots would mean a folder above
    return Call(PassageAnswer, f"v1/passages/{quoted if id_.strip('.') else quoted.replace('.', '%2E')}")


def snapshots_call(limit: int) -> Call[SnapshotList]:
    """Ask for the newest snapshots."""
    return Call(SnapshotList, "v1/snapshots", parameters={"limit": limit})


def _texts(name: str, value: object, kind: str) -> str | list[str]:
    """Return the texts that a caller gives. Raises ServeError for anything but a str, or some of them."""
    if isinstance(value, str):
        return value
    advice = f"give a {kind} as str, or a list of them"
    if not isinstance(value, Iterable) or isinstance(value, bytes | Mapping):
        raise ServeError(f"{name} is {_shown(value)}; {advice}")
    texts = list(value)
    if not texts:
        raise ServeError(f"{name} holds no {kind}; {advice}")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ServeError(f"{name}[{place}] is {_shown(text)}; {advice}")
    return texts


def _shown(value: object) -> str:
    return f"{reprlib.repr(value)}, of type {type(value).__name__}"


HEALTH = Call(Health, "v1/health")
READY = Call(Ready, "v1/ready")
STATUS = Call(Status, "v1/status")


@dataclass(frozen=True)
class Address:
    """The address of the service, and the headers of its requests."""

    url: httpx.URL
    headers: Mapping[str, str]
    timeout: httpx.Timeout

    @classmethod
    def of(cls, url: str, key: str | None, timeout_seconds: float) -> "Address":
        """Check what a user gives. Raises ServeError, which does not show the key."""
        try:
            parsed = httpx.URL(url.rstrip("/") + "/")
        except (httpx.InvalidURL, AttributeError, TypeError) as error:
            raise ServeError(f"{url!r} is not an address ({error}); give one such as http://127.0.0.1:8000") from error
        if parsed.scheme not in ("http", "https") or not parsed.host:
            raise ServeError(f"{url!r} is not the address of a service; give one such as http://127.0.0.1:8000")
        headers = {"User-Agent": f"dpr/{__version__}", "Content-Type": "application/json"}
        if key is not None:
            if not isinstance(key, str) or not key.isascii() or not key.isprintable() or not key.strip():
                raise ServeError("the key has characters that no key has, or none; give it as `dpr key` printed it")
            headers["Authorization"] = f"Bearer {key.strip()}"
        return cls(parsed, headers, httpx.Timeout(timeout_seconds, connect=min(CONNECT_SECONDS, timeout_seconds)))


class Asker(ABC):
    """What both clients have in common: the service's address, the headers of requests, and how often they repeat one.

    Every method raises RefusedError, which has the status, if the service refuses; UnreachableError if it gives no
    answer; ServeError if the answer does not come from such a service, or for arguments that cannot be sent. All of
    them are `ServeError`.
    """

    def __init__(
        self, url: str, key: str | None = None, timeout_seconds: float = TIMEOUT_SECONDS, retries: int = RETRIES
    ) -> None:
        """Prepare to ask the service at `url`, with a key if it has keys. Nothing is sent yet.

        `retries`: how often a request is sent again if the connection fails, or the service takes no request just now.
        """
        self._patience = Patience(retries)
        self._connect(Address.of(url, key, timeout_seconds))

    @abstractmethod
    def _connect(self, address: Address) -> None:
        """Prepare the connections."""


def answer_of(call: Call[A], outcome: httpx.Response | httpx.RequestError) -> A:
    """Return the typed answer.

    Raises UnreachableError for no answer, RefusedError for a refusal, ServeError for an answer that does not come from
    the service.
    """
    if isinstance(outcome, httpx.RequestError):
        reason = str(outcome) or type(outcome).__name__
        raise UnreachableError(
            f"{outcome.request.url} gave no answer ({reason}); check that the service runs and the address is right"
        ) from outcome
    if outcome.status_code != httpx.codes.OK:
        raise RefusedError(
            f"{outcome.request.url} answered {outcome.status_code}: {_sentence(outcome)}",
            outcome.status_code,
            outcome.headers.get("X-Request-Id", ""),
        )
    try:
        return call.answer.model_validate_json(outcome.content)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole of it"
        raise ServeError(
            f"{outcome.request.url} answered in a form that this client does not know ({where}: {first['msg']}); "
            "check the address, and that service and client are of like versions"
        ) from error


def _sentence(response: httpx.Response) -> str:
    """Return what a refusal says: the service's own sentence, else the text that a proxy sent instead, cut if long."""
    try:
        sentence = str(response.json()["error"])
    except (ValueError, KeyError, TypeError):
        sentence = " ".join(response.text.split()) or response.reason_phrase
    return sentence if len(sentence) <= 5 * MAX_SHOWN_CHARS else f"{sentence[:MAX_SHOWN_CHARS]}…"
