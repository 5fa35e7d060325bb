"""A stage that is begun before its units are known: its actors load while other stages run."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import ray
import ray.data

from ray_jobs.transport import Row

ACTORS_ASKED_SECONDS = 5.0
"""Ray Data asks for actors within about one; waiting longer would hold up a run that can do without."""
Source = Callable[[Row], Iterator[Row]]


class Feed:
    """An actor that keeps its callers waiting until there are units."""

    def __init__(self) -> None:
        self._called, self._given, self._units = asyncio.Event(), asyncio.Event(), list[Row]()

    async def called(self) -> None:
        """Return once a caller waits for units."""
        await self._called.wait()

    async def give(self, units: list[Row]) -> None:
        """Let all callers go."""
        self._units = units
        self._given.set()

    async def units(self) -> list[Row]:
        """Return the units, once they are known."""
        self._called.set()
        await self._given.wait()
        return self._units


class BegunStage:
    """A dataset that runs from now on, and at first has nothing but actors to make.

    `with_steps` puts a stage's operators after a dataset of units.
    """

    def __init__(self, with_steps: Callable[[ray.data.Dataset], ray.data.Dataset]) -> None:
        self._feed = ray.remote(Feed).options(num_cpus=0).remote()
        waiting = ray.data.from_items([{"units": 0}]).flat_map(_source(self._feed), num_cpus=0)
        # one unit a block, as an operator takes blocks
        self._dataset = with_steps(waiting.repartition(target_num_rows_per_block=1))
        self._results: SimpleQueue[Row | Exception | None] = SimpleQueue()
        threading.Thread(target=self._pump, name="stage", daemon=True).start()
        # Ray Data asks for actors, then for units: theirs are the first CPUs, not those that another stage leaves
        ray.wait([self._feed.called.remote()], timeout=ACTORS_ASKED_SECONDS)

    def run(self, units: Sequence[Row]) -> Iterator[Row]:
        """Send the units through."""
        self._feed.give.remote(list(units))
        while (result := self._results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result

    def cancel(self) -> None:
        """Release the actors, without waiting for it."""
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
    def units(_: Row) -> Iterator[Row]:
        yield from ray.get(feed.units.remote())

    return units
