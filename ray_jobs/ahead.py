"""A stage that is begun before its units are known: its actors load while other stages run."""

import asyncio
import threading
from collections.abc import Callable, Iterator, Sequence
from queue import SimpleQueue

import ray
import ray.data

from dpr.pipeline.execute import Unit

PATIENCE_SECONDS = 5.0
"""For actors to be asked for: about one; more would hold up a run that can do without."""
Source = Callable[[Unit], Iterator[Unit]]


class Feed:
    """An actor that keeps its callers waiting until there are units."""

    def __init__(self) -> None:
        self._asked, self._there, self._units = asyncio.Event(), asyncio.Event(), list[Unit]()

    async def asked(self) -> None:
        """Return once somebody waits for units."""
        await self._asked.wait()

    async def give(self, units: list[Unit]) -> None:
        """Let all callers go."""
        self._units = units
        self._there.set()

    async def units(self) -> list[Unit]:
        """The units, once they are known."""
        self._asked.set()
        await self._there.wait()
        return self._units


class Begun:
    """A dataset that runs from now on, and at first has nothing but actors to make.

    `with_steps` puts a stage's operators after a dataset of units.
    """

    def __init__(self, with_steps: Callable[[ray.data.Dataset], ray.data.Dataset]) -> None:
        self._feed = ray.remote(Feed).options(num_cpus=0).remote()
        waiting = ray.data.from_items([{"units": 0}]).flat_map(_source(self._feed), num_cpus=0)
        # one unit a block, as an operator takes blocks
        self._dataset = with_steps(waiting.repartition(target_num_rows_per_block=1))
        self._results: SimpleQueue[Unit | Exception | None] = SimpleQueue()
        threading.Thread(target=self._pump, name="stage", daemon=True).start()
        # Ray Data asks for actors, then for units: theirs are the first CPUs, not those that another stage leaves
        ray.wait([self._feed.asked.remote()], timeout=PATIENCE_SECONDS)

    def run(self, units: Sequence[Unit]) -> Iterator[Unit]:
        """Send the units through."""
        self._feed.give.remote(list(units))
        while (result := self._results.get()) is not None:
            if isinstance(result, Exception):
                raise result
            yield result

    def leave(self) -> None:
        """Let the actors go, without waiting for it."""
        self._feed.give.remote([])

    def _pump(self) -> None:
        try:
            for unit in self._dataset.iter_rows():
                self._results.put(unit)
        except Exception as error:  # raised where the results are awaited
            self._results.put(error)
        finally:
            self._results.put(None)


def _source(feed: "ray.actor.ActorHandle[Feed]") -> Source:
    def units(_: Unit) -> Iterator[Unit]:
        yield from ray.get(feed.units.remote())

    return units
