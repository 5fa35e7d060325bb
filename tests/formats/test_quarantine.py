"""Quarantine files: every row as it came, in memory that does not grow with them."""

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.errors import IntegrityError
from dpr.formats.quarantine import QuarantinedRow, QuarantineWriter, join_quarantine, write_quarantine
from tests.formats.samples import flip_a_bit

rows = st.lists(
    st.builds(
        QuarantinedRow,
        st.sampled_from(["a.jsonl", "s3://b/é.tsv"]),
        st.integers(0, 2**62),
        st.sampled_from(["no text", "duplicate id: an earlier passage has 'x'", "duplicate id: an earlier has 'y'"]),
        st.binary(max_size=50),
    ),
    max_size=20,
)


def read(path: Path) -> list[QuarantinedRow]:
    return [QuarantinedRow(**row) for row in pq.read_table(path).to_pylist()]


@settings(deadline=None, max_examples=50)
@given(st.lists(rows, max_size=4), st.sampled_from([1, 3, 1000]))
def test_rows_are_kept_as_they_came_and_counted_by_reason(
    tmp_path_factory: pytest.TempPathFactory, files: list[list[QuarantinedRow]], held: int
) -> None:
    folder = tmp_path_factory.mktemp("quarantine")
    written = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr.formats.quarantine._MAX_HELD_ROWS", held)
        for number, some in enumerate(files):
            path = folder / f"{number}.parquet"
            assert write_quarantine(path, some) == len(some)
            assert path.exists() == bool(some)  # no row: no file
            if some:
                assert read(path) == some
                written.append(path)
        reasons = join_quarantine(folder / "all.parquet", written)
    together = [row for some in files for row in some]
    assert read(folder / "all.parquet") == together
    assert reasons.counts == Counter(row.reason.partition(":")[0] for row in together)
    assert reasons.examples == {row.reason.partition(":")[0]: row for row in reversed(together)}


def test_rows_are_written_while_others_still_come(tmp_path: Path) -> None:
    path, raw = tmp_path / "bad.parquet", bytes(1 << 20)
    with QuarantineWriter(path) as writer:
        for number in range(8):  # at most 8 MiB are held, however few the rows
            assert not path.exists()
            writer.add(QuarantinedRow("a", number, "no text", raw))
        assert path.exists()
        for number in range(1001):
            writer.add(QuarantinedRow("a", number, "no text", b""))
    assert writer.rows == 1009
    assert pq.read_metadata(path).num_rows == 1009


def test_an_error_meanwhile_is_not_hidden_by_the_file(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"

    def rows_that_end_early() -> Iterator[QuarantinedRow]:
        yield QuarantinedRow("a", 0, "no text", b"")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write_quarantine(path, rows_that_end_early())
    assert not path.exists()


MANY = """
import resource, sys
from pathlib import Path
from dpr.formats.quarantine import QuarantinedRow, QuarantineWriter, join_quarantine

def peak_bytes():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

folder = Path(sys.argv[1])
peaks = []
for number, rows in enumerate((5_000, 200_000)):
    path = folder / f"{number}.parquet"
    with QuarantineWriter(path) as writer:
        for row in range(rows):
            writer.add(QuarantinedRow("corpus.jsonl", row, "no text", b"%d " % row + bytes(2_000)))
    assert join_quarantine(folder / "all.parquet", [path]).counts.total() == rows
    peaks.append(peak_bytes())
print(peaks[1] - peaks[0])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_rows(tmp_path: Path) -> None:
    """200,000 rows of 2 kB, of which all would be 400 MB."""
    done = subprocess.run((sys.executable, "-c", MANY, str(tmp_path)), check=True, capture_output=True, text=True)
    assert int(done.stdout) < 60e6


def test_a_damaged_file_is_refused_in_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "bad.parquet"
    write_quarantine(path, (QuarantinedRow("a", n, "no text", b"%d" % n) for n in range(3000)))
    flip_a_bit(path)
    with pytest.raises(IntegrityError, match=r"bad\.parquet is damaged"):
        join_quarantine(tmp_path / "all.parquet", [path])
