"""The actor that hands a stage its units. Its process imports this module, and nothing that takes long."""

import asyncio

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from ray_jobs.transport import Row


class Feed:
    """An actor whose callers wait until there are units."""

    def __init__(self) -> None:
        self._given, self._units = asyncio.Event(), list[Row]()

    async def give(self, units: list[Row]) -> None:
        """Hand the units to all callers."""
        self._units = units
        self._given.set()

    async def units(self) -> list[Row]:
        """Return the units, once they are known."""
        await self._given.wait()
        return self._units


def start_feed() -> "ray.actor.ActorHandle[Feed]":
    """Start a feed on the driver's machine, so that the stage does not depend on one more machine."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(Feed).options(num_cpus=0, scheduling_strategy=here).remote()
