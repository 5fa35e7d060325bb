"""Stages that begin before their units are known: their workers load while other stages run."""

import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue
from typing import Any, Protocol

import pyarrow as pa
import ray
import ray.data

from dpr.engine.stage import Work
from ray_jobs.feed import Feed, start_feed
from ray_jobs.heartbeats import Handle
from ray_jobs.transport import ROWS, Row, run_all

WAITING_CPUS = 0
"""CPUs of the task that waits for units."""
Source = Callable[[pa.Table], Iterator[pa.Table]]


class Begun(Protocol):
    """A stage that has begun."""

    def run(self, units: Sequence[Row]) -> Iterator[Row]:
        """Send the units through the steps, and yield the results as they come."""

    def cancel(self) -> None:
        """Release the workers; this does not wait until they have ended."""


class BegunTask:
    """A task that has started: it makes its operators, waits for units, and processes them one after another.

    `options` are those of the Ray task.
    """

    def __init__(self, work: Work[Any, Any], heartbeats: Handle, **options: Any) -> None:
        feed = self._feed = start_feed()
        self._results = start_for_all(work, lambda: ray.get(feed.units.remote()), heartbeats, **options)

    def run(self, units: Sequence[Row]) -> Iterator[Row]:
        self._feed.give.remote(list(units))
        yield from ray.get(self._results)

    def cancel(self) -> None:
        self._feed.give.remote([])


def start_for_all(
    work: Work[Any, Any], wait_for_units: Callable[[], list[Row]], heartbeats: Handle, **options: Any
) -> "ray.ObjectRef[list[Row]]":
    """Start a task that makes the operators of some work once, and returns the results of all units.

    `options` are those of the Ray task.
    """
    return ray.remote(run_all).options(**options).remote(ray.put(work), wait_for_units, heartbeats)


class BegunDataset:
    """A dataset that has started, and makes its actors before it has units.

    `with_steps` adds a stage's operators to a dataset of units.
    """

    def __init__(self, with_steps: Callable[[ray.data.Dataset], ray.data.Dataset]) -> None:
        self._feed = start_feed()
        waiting = ray.data.from_items([{"units": 0}]).map_batches(
            _source(self._feed), batch_format="pyarrow", num_cpus=WAITING_CPUS
        )
        units = waiting.repartition(target_num_rows_per_block=1)  # an operator receives blocks of rows
        # With the same resources the task that waits divides the units, too; else Ray Data starts another process then,
        # which first imports Ray Data for seconds. `repartition` has no argument for that.
        units._logical_plan.dag.ray_remote_args["num_cpus"] = WAITING_CPUS
        self._dataset = with_steps(units)
        self._results: SimpleQueue[Row | Exception | None] = SimpleQueue()
        threading.Thread(target=self._pump, name="stage", daemon=True).start()

    def run(self, units: Sequence[Row]) -> Iterator[Row]:
        self._feed.give.remote(list(units))
        while (result := self._results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result

    def cancel(self) -> None:
        self._feed.give.remote([])

    def _pump(self) -> None:
        try:
            for row in self._dataset.iter_rows():
                self._results.put(row)
        except Exception as error:  # raised where the results are awaited
            self._results.put(error)
        finally:
            self._results.put(None)


def _source(feed: "ray.actor.ActorHandle[Feed]") -> Source:
    """Return the operator that turns the dataset's only row into the units."""

    def units(_: pa.Table) -> Iterator[pa.Table]:
        yield pa.Table.from_pylist(ray.get(feed.units.remote()), ROWS)

    return units
