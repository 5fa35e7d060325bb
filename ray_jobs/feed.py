"""The actor that hands a stage its units. Its process imports this module, and nothing that takes long."""

import asyncio

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
