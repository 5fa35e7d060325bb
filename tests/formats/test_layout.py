"""Object names: each is plain, different from all others, and says what it is."""

import re

from hypothesis import given
from hypothesis import strategies as st

from dpr.formats import layout
from dpr.formats.records import OBJECT_NAME

numbers = st.integers(0, 99_999_999)
ids = st.text("0123456789abcdef", min_size=16, max_size=16)
digests = st.text("0123456789abcdef", min_size=64, max_size=64)


@given(numbers, ids)
def test_numbers_are_read_back_from_names(number: int, reader: str) -> None:
    assert layout.snapshot_number(layout.snapshot(number)) == number
    assert layout.read_number(layout.reader(number, reader)) == number


@given(st.integers(0, 10**12), ids)
def test_snapshots_and_markers_are_told_from_other_files(number: int, reader: str) -> None:
    names = layout.snapshot(number), layout.reader(number, reader)
    assert (layout.is_snapshot(names[0]), layout.is_reader(names[1])) == (True, True)
    foreign = [".DS_Store", "sub/00000001.json", "1.json", "0000000a.json", "٠٠٠٠٠٠٠١.json", "000000001.json", ""]
    foreign += [f"{number:08d}{rest}" for rest in ("", ".json.tmp", ".json~", ".jsonl", "x.json", "\n.json")]
    assert not any(layout.is_snapshot(f"{layout.SNAPSHOTS}{name}") for name in foreign)
    assert not any(layout.is_reader(f"{layout.READERS}{name}") for name in foreign)
    assert not layout.is_snapshot(f"x{names[0]}")


@given(st.lists(numbers, min_size=2, max_size=10))
def test_snapshots_sort_by_number(some: list[int]) -> None:
    assert sorted(map(layout.snapshot, some)) == [layout.snapshot(number) for number in sorted(some)]


@given(ids, ids, digests, digests, numbers)
def test_names_are_plain_and_each_its_own(one: str, other: str, sha256: str, sha256_b: str, number: int) -> None:
    stems = [
        layout.scan(one, other),
        layout.segment(one, other),
        layout.codebook(one, other),
        layout.part(sha256, sha256_b),
        layout.index(one),
        layout.questions(one, other),
        layout.truth(one, other, f"{sha256[: layout.SHORT_DIGEST]}-200"),
        layout.measured(one, other, one),
        layout.drift(one),
    ]
    names = [layout.snapshot(number), layout.reader(number, one), layout.plan(one), layout.report(one, "2026-a")]
    names += [layout.changes(one), layout.duplicates(one), layout.quarantine(one), layout.deletions()]
    names += [*stems, *map(layout.record, stems)]
    assert len(set(names)) == len(names)
    for name in names:
        assert re.match(OBJECT_NAME, name)
        assert name.startswith(layout.COLLECTED)


@given(numbers, numbers)
def test_checkpoints_sort_by_step_and_names_of_a_training_are_plain(step: int, other: int) -> None:
    stems = [layout.checkpoint(step), layout.best_weights(step), layout.trained_file("passage/1_Pooling/config.json")]
    names = [layout.TRAINING_PLAN, layout.TRAINED_MODEL, layout.TRAINING_QUARANTINE, *stems, *map(layout.record, stems)]
    assert len(set(names)) == len(names)
    assert all(re.match(OBJECT_NAME, name) for name in names)
    assert not any(name.startswith(layout.COLLECTED) for name in names)  # garbage collection leaves them alone
    records = [layout.record(layout.checkpoint(each)) for each in (step, other)]
    assert (records[0] < records[1]) == (step < other)
