"""A load generator in a process of its own: clients that ask the next question as soon as they have an answer.

    python benchmarks/serve_load.py PORT QUESTIONS.txt CLIENTS SECONDS

It prints a JSON object. Clients are tasks of one thread that speak HTTP themselves, so that little of the machine goes
to them. Every question is another text, unless there are fewer questions than requests: then they are asked again.
"""

import asyncio
import json
import sys
import time
from collections.abc import Iterator
from itertools import cycle
from pathlib import Path

import numpy as np

HEAD = b"POST /v1/search HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
K = 10
WARM_SECONDS = 2.0


class Load:
    """What clients got."""

    def __init__(self, port: int, questions: Iterator[str], seconds: float) -> None:
        self._port, self._questions = port, questions
        self._counts_from = time.perf_counter() + WARM_SECONDS
        self._until = self._counts_from + seconds
        self.took: list[float] = []
        self.errors: list[str] = []

    async def client(self) -> None:
        """Ask until time is over.

        A connection that ends is followed by another. It is an error unless the answer before has announced it.
        """
        while time.perf_counter() < self._until:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            stays_open = True
            try:
                while stays_open and (sent := time.perf_counter()) < self._until:
                    error, stays_open = await self._ask(reader, writer)
                    if sent >= self._counts_from:
                        self.took.append(time.perf_counter() - sent)
                        self.errors += error
            except (EOFError, ConnectionError) as broken:
                self.errors.append(repr(broken))
            finally:
                writer.close()

    async def _ask(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> tuple[list[str], bool]:
        """Ask one question; return what was answered in place of hits, and whether the connection stays open."""
        body = json.dumps({"query": next(self._questions), "k": K, "mode": "dense"}).encode()
        writer.write(HEAD % len(body) + body)
        answer = (await reader.readuntil(b"\r\n\r\n")).lower()
        text = await reader.readexactly(int(answer.partition(b"content-length:")[2].split(b"\r\n")[0]))
        error = [] if answer.startswith(b"http/1.1 200") else [text.decode()[:200]]
        return error, b"\r\nconnection: close\r\n" not in answer

    async def run(self, clients: int) -> None:
        """Let all clients ask."""
        await asyncio.gather(*(self.client() for _ in range(clients)))


def main() -> None:
    """Ask, and print the times."""
    port, questions, clients, seconds = sys.argv[1:]
    load = Load(int(port), cycle(Path(questions).read_text(encoding="utf-8").splitlines()), float(seconds))
    asyncio.run(load.run(int(clients)))
    p50, p99 = np.percentile(1000 * np.array(load.took), (50, 99))
    found = {"p50_ms": p50, "p99_ms": p99, "per_second": len(load.took) / float(seconds), "errors": load.errors}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
