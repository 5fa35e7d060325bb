"""What tests of the HTTP application share: a small store with extra columns, and the application without a server."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from starlette.testclient import TestClient
from starlette.types import ASGIApp

from dpr.operations.follow import Follower
from dpr.store import Store
from ray_jobs.serve.app import make_app
from tests.collection import Collection
from tests.services.endpoint import free_ports
from tests.tiny import random_texts

PASSAGES = 60


def extra_of(number: int) -> dict[str, Any]:
    """Return the extra columns of a passage."""
    return {"lang": ["de", "en", None][number % 3], "year": 1980 + number % 20}


def make_collection(folder: Path, encoder: Path) -> Collection:
    """Make a collection after its first night."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "rows.jsonl"
    texts = random_texts(PASSAGES, max_words=20)
    rows = [{"id": id_, "text": text} | extra_of(number) for number, (id_, text) in enumerate(texts.items())]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {"title": None, "extra": {"lang": "string", "year": "integer"}}
    made = Collection(folder / "night", encoder, corpus={"path": str(path), "columns": columns})
    assert made.night().published
    return made


@contextmanager
def client_of(store: Store) -> Iterator[TestClient]:
    """Give a client of the application over a store."""
    with Follower(store) as follower, TestClient(make_app(follower)) as client:
        yield client


@contextmanager
def served(app: ASGIApp) -> Iterator[str]:
    """Serve an application over HTTP while the block runs."""
    (port,) = free_ports(1)
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", ws="none"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
