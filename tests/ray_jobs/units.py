"""A unit for tests of the executor, which its steps answer with another one."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sample:
    """A unit, and what a step found out about where it ran."""

    number: int
    text: str = ""
    size: float = 0.0
    process: int = 0
    gpus: tuple[str, ...] = ()
    rows: int = 1

    @property
    def record(self) -> str:
        return f"runs/1/{self.number}.json"

    @property
    def read_bytes(self) -> int:
        return 0


def samples(count: int, rows: int = 1) -> list[Sample]:
    """Return units with the numbers from 0 on, each of `rows` rows."""
    return [Sample(number, rows=rows) for number in range(count)]
