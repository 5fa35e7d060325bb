"""Ask the parts of an index through Ray Serve: all at once, and none for longer than the deadline.

A part that missed a deadline is not asked again until it has answered that question. So a process that hangs gets one
question, and delays one batch by the deadline; later answers are given without it, until it is back.
"""

import logging
import threading
import time
import uuid
import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Any

from ray.exceptions import RayError
from ray.serve.exceptions import BackPressureError, RayServeException
from ray.serve.handle import DeploymentHandle

from dpr.answers.state_answer import ShardStatus
from dpr.errors import DprError, IntegrityError, StoreError
from dpr.operations.shard_host import Kept
from dpr.search.shard_search import ShardAnswer, ShardQuestion
from ray_jobs.failures import quoted_error

KEEP_SECONDS = 1.0
"""Seconds between two messages that name the snapshots which this process uses."""
OPEN_SECONDS = 600.0
"""Seconds that all parts may take to open a snapshot."""
PREPARE_SECONDS = 30.0
"""Seconds that a part may take to find the rows of a filter."""
_FAILED = (TimeoutError, RayError, RayServeException, BackPressureError)

_log = logging.getLogger(__name__)


class HandleShards:
    """The parts of an index, each behind a handle of Ray Serve."""

    def __init__(self, handles: Sequence[DeploymentHandle], deadline_seconds: float) -> None:
        for handle in handles:
            # otherwise a replica may run its handles in its own loop, where no thread could wait for an answer
            if not handle.is_initialized:
                handle._init(_run_router_in_separate_loop=True)
        self._handles, self._deadline_seconds = list(handles), deadline_seconds
        self._front = uuid.uuid4().hex
        self._held: Counter[int] = Counter()
        self._overdue: dict[int, Any] = {}  # Ray Serve's responses
        self._kept: list[Kept | None] = [None] * len(handles)
        self._answered = [True] * len(handles)
        self._lock = threading.Lock()
        ended = threading.Event()
        weakref.finalize(self, ended.set).atexit = False
        threading.Thread(target=_keep_on, args=(weakref.ref(self), ended), name="keep", daemon=True).start()

    def ask(self, question: ShardQuestion) -> Sequence[ShardAnswer | None]:
        """Return the answer of each part; None for one that has not answered within the deadline."""
        return self._ask(question, self._deadline_seconds)

    def prepare(self, question: ShardQuestion) -> None:
        """Let all find the rows of the filter of a question; those that take too long find them when they are asked."""
        self._ask(question, PREPARE_SECONDS)

    def hold(self, snapshot: int) -> None:
        """Let all open a snapshot, and keep it until `let_go`; returns when all have it.

        Raises StoreError if one cannot open it, or takes too long, IntegrityError if the snapshot is damaged.
        """
        with self._lock:
            self._held[snapshot] += 1
        try:
            self._wait_until_open(snapshot)
        except BaseException:
            self.let_go(snapshot)
            raise

    def let_go(self, snapshot: int) -> None:
        """Report that a holder of a snapshot asks no more questions of it."""
        with self._lock:
            self._held[snapshot] -= 1
            self._held = +self._held

    def states(self) -> list[ShardStatus]:
        """Return the state of each part."""
        with self._lock:
            kept, answered = list(self._kept), list(self._answered)
        return [
            ShardStatus(number=number, answers=is_there, snapshots=list(each.open) if each else [])
            for number, (each, is_there) in enumerate(zip(kept, answered, strict=True))
        ]

    def keep(self, seconds: float = KEEP_SECONDS) -> list[Kept | None]:
        """Tell each part which snapshots this process uses; return the replies, None for one that came too late."""
        with self._lock:
            held = sorted(self._held)
        waiting = [handle.keep.remote(self._front, held) for handle in self._handles]
        until = time.monotonic() + seconds
        replies = [_result(response, until) for response in waiting]
        kept = [each if isinstance(each, Kept) else None for each in replies]
        with self._lock:
            self._kept = kept
        return kept

    def _wait_until_open(self, snapshot: int) -> None:
        until = time.monotonic() + OPEN_SECONDS
        while True:
            kept = self.keep()
            missing = [number for number, each in enumerate(kept) if each is None or snapshot not in each.open]
            if not missing:
                return
            for number in missing:
                each = kept[number]
                if each is not None and each.problem:
                    problem = f"shard {number} cannot open snapshot {snapshot}: {each.problem}"
                    raise IntegrityError(problem) if each.is_final else StoreError(problem)
            if time.monotonic() > until:
                raise StoreError(
                    f"shards {', '.join(map(str, missing))} have not opened snapshot {snapshot} in {OPEN_SECONDS:.0f} s"
                )
            time.sleep(0.05)

    def _ask(self, question: ShardQuestion, seconds: float) -> list[ShardAnswer | None]:
        until = time.monotonic() + seconds
        waiting = [self._send(number, question) for number in range(len(self._handles))]
        return [self._receive(number, response, until) for number, response in enumerate(waiting)]

    def _send(self, number: int, question: ShardQuestion) -> Any:
        """Ask one part; None: it has not answered an earlier question yet, and is not asked."""
        with self._lock:
            overdue = self._overdue.get(number)
        if overdue is not None and isinstance(_result(overdue, time.monotonic()), TimeoutError):
            return None
        with self._lock:
            self._overdue.pop(number, None)
        return self._handles[number].answer.remote(question)

    def _receive(self, number: int, response: Any, until: float) -> ShardAnswer | None:
        found = TimeoutError() if response is None else _result(response, until)
        if isinstance(found, DprError):
            raise found
        with self._lock:
            if response is not None and isinstance(found, TimeoutError):
                self._overdue[number] = response
            self._answered[number] = isinstance(found, ShardAnswer)
        return found if isinstance(found, ShardAnswer) else None


def _result(response: Any, until: float) -> object:
    """Return the reply of a part, or why there is none: this project's own error, TimeoutError, or another of Ray's."""
    try:
        # a replica is made within its loop, and the router that waits here has another one
        return response.result(timeout_s=max(0.0, until - time.monotonic()), _skip_asyncio_check=True)
    except _FAILED as error:
        return quoted_error(str(error)) or error


def _keep_on(shards: "weakref.ref[HandleShards]", ended: threading.Event) -> None:
    """Repeatedly send which snapshots are used, until nobody refers to the shards."""
    while not ended.wait(KEEP_SECONDS):
        if (alive := shards()) is not None:
            try:
                alive.keep()
            except Exception:  # the next message may succeed, and answers without a part name it
                _log.exception("the message to the shards on which snapshots are used failed")
            del alive
