"""Bills, against sums done by hand."""

import pytest

from dpr.engine.run_state import Prices, StageReport
from dpr.operations.bill import Bill, all_requests, bill, total

PRICES = Prices(gpu_hour=4.0, thousand_reads=0.0004, thousand_writes=0.005)


def test_reads_and_writes_are_billed_by_the_thousand_and_deleting_is_free() -> None:
    found = bill(0.5, {"GET": 2_000, "PUT": 500, "LIST": 500, "DELETE": 9_000, "bytes read": 10**12}, PRICES)
    assert (found.gpu_hours, found.gpu_dollars, found.requests) == (0.5, 2.0, 12_000)
    assert found.request_dollars == pytest.approx(0.0008 + 0.005)
    assert found.dollars == pytest.approx(2.0058)
    assert found.per_million(500_000) == pytest.approx(4.0116)
    assert found.per_million(0) is None


def test_the_sum_is_unknown_if_gpus_without_a_price_were_used() -> None:
    unpriced = bill(0.5, {"GET": 1_000}, Prices(thousand_reads=0.0004))
    assert (unpriced.gpu_dollars, unpriced.dollars, unpriced.per_million(5)) == (None, None, None)
    assert unpriced.request_dollars == pytest.approx(0.0004)
    assert bill(0.0, {}, Prices()).dollars == 0.0  # no GPU was used
    assert total([unpriced, bill(1.0, {}, PRICES)]).dollars is None


def test_bills_of_attempts_add_up() -> None:
    both = total([bill(0.5, {"GET": 1_000}, PRICES), bill(0.25, {"PUT": 1_000}, PRICES)])
    assert both.model_dump() == pytest.approx(
        {"gpu_hours": 0.75, "gpu_dollars": 3.0, "requests": 2_000, "request_dollars": 0.0054}
    )
    assert total([]) == Bill()


def test_requests_of_stages_and_others_add_up() -> None:
    def stage(**requests: int) -> StageReport:
        return StageReport(
            stage="x", units=1, done_before=0, rows=1, seconds=1, read_bytes=0, written_bytes=0, requests=requests
        )

    assert all_requests([stage(GET=1, PUT=2), stage(GET=3)], {"LIST": 5}) == {"GET": 4, "PUT": 2, "LIST": 5}
