"""`dpr mcp` as a process, called by the SDK's client over stdin and stdout and over HTTP."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anyio
import httpx
import httpx2
import pytest
from mcp import Client, StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from dpr.formats import layout
from dpr.formats.snapshots import publish_body
from dpr.search.retrieve import Retriever
from ray_jobs.serve.keys import add_key
from tests.collection import Collection
from tests.ray_jobs.conftest import Dpr
from tests.services.endpoint import free_ports

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.without_ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, static_encoder: Path) -> Collection:
    made = Collection(tmp_path_factory.mktemp("tools"), static_encoder)
    made.night()
    return made


async def check_tools(client: Client, collection: Collection, snapshot: int) -> None:
    """Search and fetch, and compare with the retriever."""
    assert sorted(tool.name for tool in (await client.list_tools()).tools) == ["fetch", "search"]
    with Retriever.open(collection.store, snapshot) as retriever:
        (hits,) = retriever.search(["w1 w2 w3"], 4).hits
    searched = await client.call_tool("search", {"query": "w1 w2 w3", "k": 4})
    assert searched.structured_content is not None
    found = searched.structured_content["results"]
    assert [(one["id"], one["text"], one["url"]) for one in found] == [
        (hit.id, hit.text, f"https://example.org/{hit.id}") for hit in hits
    ]
    assert {one["metadata"]["snapshot"] for one in found} == {snapshot}
    fetched = (await client.call_tool("fetch", {"id": hits[0].id})).structured_content
    assert fetched is not None
    assert fetched["text"] == collection.corpus[hits[0].id]


def test_over_stdin_and_stdout_it_follows_the_nights(collection: Collection, tmp_path: Path) -> None:
    own = collection.copy(tmp_path / "own")
    own.write_corpus()

    async def ask() -> None:
        command = ["-m", "ray_jobs.cli", "mcp", own.store.url, "--cite", "https://example.org/{id}"]
        server = StdioServerParameters(command=sys.executable, args=command, env=dict(os.environ), cwd=ROOT)
        # the handshake that clients have used up to now; over HTTP, the new one is tried, too
        async with Client(server, mode="legacy") as client:
            await check_tools(client, own, 1)
            publish_body(own.store, own.body(1), 1, run_id="later", inputs=None)
            with anyio.fail_after(60):
                while await served_snapshot(client) != 2:
                    await anyio.sleep(0.2)
            await check_tools(client, own, 2)

    anyio.run(ask)


async def served_snapshot(client: Client) -> int:
    found = (await client.call_tool("search", {"query": "w1", "k": 1})).structured_content
    assert found is not None
    return int(found["results"][0]["metadata"]["snapshot"])


def markers(collection: Collection) -> set[str]:
    """Return the marks that readers of the store have left."""
    return {name for name in collection.files() if layout.is_reader(name)}


def test_a_signal_ends_it_while_stdin_is_open(collection: Collection) -> None:
    """Until then, stdout holds the protocol and nothing else."""
    hello = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    command = [sys.executable, "-m", "ray_jobs.cli", "mcp", collection.store.url]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    before = markers(collection)
    with subprocess.Popen(command, cwd=ROOT, text=True, **pipes) as process:
        try:
            request = {"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": hello}
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            answer = json.loads(process.stdout.readline())
            assert (answer["id"], answer["result"]["serverInfo"]["name"]) == (1, "dpr")
            assert len(markers(collection) - before) == 1
            process.send_signal(signal.SIGTERM)
            assert (process.wait(60), process.stdout.read(), process.stderr.read()) == (0, "", "")
            assert markers(collection) == before
        finally:
            process.kill()


@contextmanager
def running(*arguments: object) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    """Start `dpr mcp --http`; give its process and address."""
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "ray_jobs.cli", "mcp", *map(str, arguments), "--http", "--port", str(port)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            found = re.search(r" at (\S+);", line)
            assert found is not None, (line, process.stderr.read() if process.stderr else "")
            yield process, found[1]
        finally:
            process.kill()


def test_over_http_it_answers_to_keys(collection: Collection, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "agent", "search")
    options = ("--cite", "https://example.org/{id}", "--keys", tmp_path / "keys")
    with running(collection.store.url, *options) as (process, url):

        async def ask() -> None:
            async with httpx2.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=60) as http:
                for mode in ("legacy", "auto"):
                    async with Client(streamable_http_client(url, http_client=http), mode=mode) as client:
                        await check_tools(client, collection, 1)

        anyio.run(ask)
        refused = httpx.post(url, json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
        assert (refused.status_code, "answers to keys only" in refused.json()["error"]) == (401, True)
        process.send_signal(signal.SIGTERM)
        assert (process.wait(60), process.stderr and process.stderr.read()) == (0, "")


def test_without_keys_it_answers_at_loopback_only(collection: Collection, dpr: Dpr) -> None:
    store = collection.store.url
    code, out, err = dpr("mcp", store, "--http", "--host", "0.0.0.0", "--port", free_ports(1)[0])
    assert (code, out, err.count("\n")) == (10, "", 1)
    assert "0.0.0.0 can be reached from other machines, and the service has no keys" in err


def test_a_column_that_is_not_there_is_one_sentence(collection: Collection, dpr: Dpr) -> None:
    for options in ([], ["--http", "--port", free_ports(1)[0]]):
        code, out, err = dpr("mcp", collection.store.url, "--cite", "https://example.org/{link}", *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert "names the extra column 'link', and the snapshot has no such column; it has none; name some in" in err


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["no/store"], 5, "no/store has no snapshot"),
        (["http://127.0.0.1:1"], 10, "http://127.0.0.1:1/v1/health gave no answer"),
        (["no/store", "--cite", "https://example.org"], 2, "does not name parts of a passage in braces"),
    ],
)
def test_what_cannot_start_is_one_sentence(arguments: Any, code: int, sentence: str, dpr: Dpr) -> None:
    ended, out, err = dpr("mcp", *arguments)
    assert (ended, out, err.count("\n")) == (code, "", 1)
    assert sentence in err
