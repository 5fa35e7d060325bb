"""What the embed stage reports of its speed, against worked numbers."""

import signal
import subprocess
import sys
import time

import pytest

from dpr.stages.embed_meter import STOPPED_SECONDS, BusyClock, Encoding, EncodingWatch
from dpr.stages.write_segment import SegmentResult


def result(rows: int, tokens: int, encoder: str = "bf16", **seconds: float) -> SegmentResult:
    return SegmentResult(
        rows=rows, segment=None, refused_rows=0, refused=None, tokens=tokens, seconds=seconds, encoder=encoder
    )


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
    busy = result(100, 9_000, read=1.0, tokenise=2.0, wait=0.5, encode=9.5, write=3.0)
    idle = result(50, 4_000, "fp32", read=1.0, tokenise=9.0, wait=10.0, encode=0.5, write=8.0)
    one, both = Encoding.of([busy]), Encoding.of([busy, idle])
    assert one.busy_share == pytest.approx(0.95)
    assert one.waits_for == "encoding"
    assert (both.passages, both.tokens, both.choices) == (150, 13_000, ["bf16", "fp32"])
    assert both.busy_share == pytest.approx(10 / 20.5)
    assert both.waits_for == "tokenising"  # 11 seconds, writing took as many and comes later
    assert Encoding.of([idle]).seconds["write"] == 8.0
    assert Encoding().busy_share == 0.0


def test_an_encoder_is_named_once_and_speed_each_time() -> None:
    named: list[tuple[str, str]] = []
    watch = EncodingWatch(lambda topic, text: named.append((topic, text)))
    done = result(100, 9_000, read=1.0, tokenise=2.0, wait=0.5, encode=9.5, write=3.0)
    lines = [watch(done), watch(done)]
    assert named == [("encoder", "bf16")]
    for line in lines:
        assert "tokens/s, encoder busy 0.95, waits for encoding" in line


STOPPED = """
import sys, time
from dpr.stages.embed_meter import BusyClock
clock, started = BusyClock(), time.perf_counter()
with clock:
    print("computing", flush=True)
    sys.stdin.read(1)
    time.sleep(2.5)
print(time.perf_counter() - started - clock.take()[0])
"""


@pytest.mark.slow
def test_a_stopped_encoder_is_not_busy() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stdout.readline() == "computing\n"
        process.send_signal(signal.SIGSTOP)
        time.sleep(2 * STOPPED_SECONDS)
        process.send_signal(signal.SIGCONT)
        out, _ = process.communicate("x")
    assert float(out) > STOPPED_SECONDS  # seconds of the clock on the wall in which it was not busy
