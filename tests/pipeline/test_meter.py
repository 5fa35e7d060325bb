"""What the embed stage says of its speed, against worked numbers."""

import pytest

from dpr.stages.embed_meter import BusyClock, Encoding, EncodingWatch
from dpr.formats.records import Record


def record(rows: int, tokens: int, encoder: str = "bf16", **seconds: float) -> Record:
    facts = {"quarantined": 0, "tokens": tokens, "encoder": encoder, "seconds": seconds}
    return Record(unit="u", rows=rows, objects=[], facts=facts)


def test_a_clock_counts_units_that_overlap_once(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr("dpr.stages.embed_meter.time.perf_counter", lambda: now)
    clock = BusyClock()
    now = 2.0
    with clock:  # from 2 to 9
        now = 5.0
        with clock:  # from 5 to 8
            now = 8.0
        assert clock.take() == (6.0, 0.0)  # before the first unit it does not wait
        now = 9.0
    now = 13.0
    with clock:
        now = 13.5
    assert clock.take() == (1.5, 4.0)


def test_shares_and_what_is_waited_for() -> None:
    busy = record(100, 9_000, read=1.0, tokenise=2.0, wait=0.5, encode=9.5, limit=5.7, write=3.0)
    idle = record(50, 4_000, "fp32", read=1.0, tokenise=9.0, wait=10.0, encode=0.5, limit=0.3, write=8.0)
    one, both = Encoding.of([busy]), Encoding.of([busy, idle])
    assert (one.busy_share, one.limit_share) == pytest.approx((0.95, 0.57))
    assert one.waits_for == "encoding"
    assert (both.passages, both.tokens, both.choices) == (150, 13_000, ["bf16", "fp32"])
    assert (both.busy_share, both.limit_share) == pytest.approx((10 / 20.5, 6 / 20.5))
    assert both.waits_for == "tokenising"  # 11 seconds, writing took as many and comes later
    assert Encoding.of([idle]).seconds["write"] == 8.0
    assert Encoding().limit_share == 0.0


def test_an_encoder_is_named_once_and_speed_each_time() -> None:
    named: list[tuple[str, str]] = []
    watch = EncodingWatch(lambda about, text: named.append((about, text)))
    unit = record(100, 9_000, read=1.0, tokenise=2.0, wait=0.5, encode=9.5, limit=5.7, write=3.0)
    said = [watch(unit), watch(unit)]
    assert named == [("encoder", "bf16")]
    for line in said:
        assert "0.57 of the measured limit, encoder busy 0.95, waits for encoding" in line
