"""Ask the service from Python: `Client`, and `AsyncClient` for programs with an event loop.

Needs httpx and pydantic alone: neither PyTorch nor FAISS nor Ray is imported.
"""

from dpr.client.async_client import AsyncClient
from dpr.client.blocking_client import Client
from dpr.client.calls import SearchOptions
from dpr.client.replies import (
    EmbeddingAnswer,
    Health,
    PassageAnswer,
    Ready,
    SearchAnswer,
    SearchHit,
    SnapshotList,
    Status,
)

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
