"""Known kinds of bugs, put back into the product on purpose: what the simulator must find."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import patch

import dpr.run_recipe
from dpr.formats import objects
from dpr.formats.manifest import SnapshotBody
from dpr.formats.records import ObjectRef, Result, write_record
from dpr.run import Run
from dpr.stages.gate import GateResult
from dpr.store import Store


@contextlib.contextmanager
def records_without_if_absent() -> Iterator[None]:
    """A second worker's record replaces that of the first."""

    def write(store: Store, name: str, result: Result) -> Result:
        store.put(name, result.to_bytes())
        return result

    with patch("dpr.engine.stage.write_record", write):
        yield


@contextlib.contextmanager
def records_before_their_objects() -> Iterator[None]:
    """A unit is declared done, and then its objects are stored."""
    waiting: list[tuple[Store, str, bytes]] = []

    def put(store: Store, stem: str, path: Path, sha256: str | None = None) -> ObjectRef:
        sha256 = sha256 or objects.file_sha256(path)
        name = f"{stem}-{sha256[:32]}{path.suffix}"
        waiting.append((store, name, path.read_bytes()))
        return ObjectRef(name=name, size_bytes=path.stat().st_size, sha256=sha256)

    def write(store: Store, name: str, result: Result) -> Result:
        written = write_record(store, name, result)
        while waiting:
            store, name, data = waiting.pop()
            store.put_if_absent(name, data)
        return written

    with (
        patch("dpr.stages.scan.put_object", put),
        patch("dpr.stages.build.put_object", put),
        patch("dpr.engine.stage.write_record", write),
    ):
        yield


@contextlib.contextmanager
def publish_without_gate() -> Iterator[None]:
    """The report of the gate is not compared with what the recipe demands."""
    with patch("dpr.stages.publish.check_gate", lambda *_: None):
        yield


@contextlib.contextmanager
def publish_before_measuring() -> Iterator[None]:
    """A later night publishes with the report of the previous night."""
    original: Callable[..., tuple[SnapshotBody, GateResult]] = dpr.run_recipe.make_body

    def make_body(run: Run, made: object, indexed: object) -> tuple[SnapshotBody, GateResult]:
        body, measured = original(run, made, indexed)
        return (body.model_copy(update={"gate": run.base.body.gate}) if run.base else body), measured

    with patch("dpr.run_recipe.make_body", make_body):
        yield


@contextlib.contextmanager
def lease_is_not_checked() -> Iterator[None]:
    """A run goes on without asking whether it still holds the lease."""
    with patch("dpr.store.lease.Lease.check", lambda _: None):
        yield


@contextlib.contextmanager
def lease_is_taken_from_the_living() -> Iterator[None]:
    """Every process takes the lease, even from a living holder."""
    with patch("dpr.store.lease._holder_is_dead", lambda *_: True):
        yield


BUGS: dict[str, Callable[[], contextlib.AbstractContextManager[None]]] = {
    "overwritten": records_without_if_absent,
    "is not in the simulated store": records_before_their_objects,
    "which the gate of its recipe refuses": publish_without_gate,
    "whose index the gate has not measured": publish_before_measuring,
    "without having looked at its lease": lease_is_not_checked,
    "took the lease": lease_is_taken_from_the_living,
}
"""What a violation says → the bug that leads to it."""
