"""The cost of a run in dollars: the hours of its GPUs, and its requests to the object store. Pure."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from dpr.engine.run_state import Prices, StageReport
from dpr.formats.records import Document
from dpr.store.requests import REQUEST_CLASSES

MILLION = 1_000_000
WRITES = ("PUT", "LIST")
"""Classes of requests that are billed as writes; DELETE is free."""


class Bill(Document):
    """The resources that were used, and their cost."""

    gpu_hours: float = 0.0
    """Hours of the GPUs that encoders held while they embedded."""
    gpu_dollars: float | None = 0.0
    """None: GPUs were used, and the recipe gives no price."""
    requests: int = 0
    request_dollars: float = 0.0

    @property
    def dollars(self) -> float | None:
        """Return the whole sum; None if a part of it is not known."""
        return None if self.gpu_dollars is None else self.gpu_dollars + self.request_dollars

    def per_million(self, passages: int) -> float | None:
        """Return the bill of `passages` scaled to a million; None if there are none, or the sum is unknown."""
        return self.dollars / passages * MILLION if passages and self.dollars is not None else None


def bill(gpu_hours: float, requests: Mapping[str, int], prices: Prices) -> Bill:
    """Return the bill of one attempt."""
    gpu_dollars = gpu_hours * prices.gpu_hour if prices.gpu_hour is not None else None if gpu_hours else 0.0
    return Bill(
        gpu_hours=gpu_hours,
        gpu_dollars=gpu_dollars,
        requests=sum(requests.get(name, 0) for name in REQUEST_CLASSES),
        request_dollars=request_dollars(requests, prices),
    )


def request_dollars(requests: Mapping[str, int], prices: Prices) -> float:
    """Return the cost of requests, by class."""
    writes = sum(requests.get(name, 0) for name in WRITES)
    return (requests.get("GET", 0) * prices.thousand_reads + writes * prices.thousand_writes) / 1_000


def total(bills: Sequence[Bill]) -> Bill:
    """Return the sum of the bills of several attempts."""
    parts = [each.gpu_dollars for each in bills]
    known = [part for part in parts if part is not None]
    return Bill(
        gpu_hours=sum(each.gpu_hours for each in bills),
        gpu_dollars=sum(known) if len(known) == len(parts) else None,
        requests=sum(each.requests for each in bills),
        request_dollars=sum(each.request_dollars for each in bills),
    )


def all_requests(stages: Iterable[StageReport], others: Mapping[str, int]) -> dict[str, int]:
    """Return the requests of all stages, and others, by class; with the bytes that they moved."""
    found = Counter(others)
    for stage in stages:
        found.update(stage.requests)
    return dict(found)
