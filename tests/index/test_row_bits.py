"""Sets of rows as bits, against Python's sets, and the memory that they take."""

import resource
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from dpr.errors import RoomError
from dpr.index.row_bits import RowBits
from dpr.index.row_ids import ROW_BITS


def resident_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_a_set_holds_the_rows_of_its_masks() -> None:
    rng = np.random.default_rng(0)
    masks = {
        number: rng.random(rows) < share for number, rows, share in [(0, 9, 0.5), (3, 50_000, 0.1), (700, 65, 0.0)]
    }
    masks[900] = np.ones(8, np.bool_)
    expected = {
        (number << ROW_BITS) | row for number, mask_N in masks.items() for row in np.flatnonzero(mask_N).tolist()
    }
    before = resident_bytes()
    rows = RowBits(masks)
    assert len(rows) == len(expected)
    assert [id_ for ids_N in rows.ids() for id_ in ids_N.tolist()] == sorted(expected)
    ids = np.array([*sorted(expected)[:99], -1, 9, (3 << ROW_BITS) | 50_001, (5 << ROW_BITS) | 1, (901 << ROW_BITS)])
    assert rows.contain(ids.reshape(2, -1)).ravel().tolist() == [id_ in expected for id_ in ids.tolist()]
    assert rows.bits_B.nbytes > 400e9
    assert resident_bytes() - before < 20e6


def test_an_empty_set_contains_nothing() -> None:
    rows = RowBits({4: np.zeros(9, np.bool_)})
    assert (len(rows), list(rows.ids()), rows.contain(np.array([0, -1])).any()) == (0, [], False)


def few_addresses() -> str:
    resource.setrlimit(resource.RLIMIT_AS, (64 << 30, 64 << 30))
    try:
        RowBits({900: np.ones(8, np.bool_)})
    except RoomError as error:
        return str(error)
    return ""


@pytest.mark.slow
def test_too_few_addresses_are_one_sentence() -> None:
    with ProcessPoolExecutor(1, get_context("spawn")) as pool:
        message = pool.submit(few_addresses).result()
    assert message.startswith("a filter needs 484 GB of addresses, of which it uses little, and this process may not")
