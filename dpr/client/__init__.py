"""Ask the service from Python: `Client`, and `AsyncClient` for programs with an event loop.

Needs httpx and pydantic alone: neither PyTorch nor FAISS nor Ray is imported.
"""

from dpr.answers.embedding_answer import EmbeddingAnswer
from dpr.answers.search_answer import PassageAnswer, SearchAnswer, SearchHit
from dpr.answers.state_answer import Health, Ready, SnapshotList, Status
from dpr.client.async_client import AsyncClient
from dpr.client.blocking_client import Client
from dpr.client.calls import SearchOptions

__all__ = [
    "AsyncClient",
    "Client",
    "EmbeddingAnswer",
    "Health",
    "PassageAnswer",
    "Ready",
    "SearchAnswer",
    "SearchHit",
    "SearchOptions",
    "SnapshotList",
    "Status",
]
