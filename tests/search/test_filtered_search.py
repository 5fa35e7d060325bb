"""Searching some rows only, in every mode, against ranking all rows and leaving out those that do not match.

Shapes: Q questions, K hits, N rows, D dimensions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dpr.formats.deletions import DeletionSet, with_dead
from dpr.formats.extra import EXTRA, extra_array, extra_field
from dpr.formats.loose import LooseRows
from dpr.formats.manifest import SegmentEntry, ShardEntry, SnapshotBody
from dpr.formats.objects import put_object
from dpr.formats.segment import write_segment
from dpr.index.kinds import inverted
from dpr.index.row_ids import ROW_BITS
from dpr.search.filtered_rows import FilteredRows, RowFilters
from dpr.search.filters import parse_filter
from dpr.search.opened import OpenObjects
from dpr.search.vector_search import VectorSearch
from dpr.store import LocalStore, Store
from tests.formats.samples import passages, random_vectors, snapshot_body
from tests.search.filter_oracle import FILTERS, TYPES, VALUES, Row, matches, parsed

DIM, ROWS = 16, 200
QUESTIONS_QD = np.random.default_rng(9).standard_normal((5, DIM)).astype(np.float32)
COLUMNS: dict[int, dict[str, str]] = {
    0: {},
    2: {"lang": "string", "year": "string"},
    5: TYPES,
    6: TYPES,
}
"""Segment number → its extra columns: an old one has none, and one has years of another type, all of which are null."""
LIVE, LOOSE = {0: 190, 2: 200, 5: 150, 6: 200}, range(180, 200)
"""Live rows of each segment; loose rows of segment 6."""


@dataclass(frozen=True, repr=False)
class Stored:
    """A snapshot, and what each live row has."""

    store: Store
    body: SnapshotBody
    rows: dict[int, Row]
    ids_N: npt.NDArray[np.int64]
    vectors_ND: npt.NDArray[np.float32]

    def best(self, document: Any, k: int) -> npt.NDArray[np.int64]:
        """Return the ids of the k best matching rows for each question, by numpy; -1 where there are fewer."""
        wanted_N = np.array([matches(document, self.rows[id_]) for id_ in self.ids_N.tolist()])
        scores_QN = QUESTIONS_QD.astype(np.float64) @ self.vectors_ND[wanted_N].T.astype(np.float64)
        ids_QK = np.full((len(QUESTIONS_QD), k), -1)
        found_QK = self.ids_N[wanted_N][np.argsort(-scores_QN, axis=1)[:, :k]]
        ids_QK[:, : found_QK.shape[1]] = found_QK
        return ids_QK


def put_segment(
    store: Store, folder: Path, number: int, vectors_ND: npt.NDArray[np.float16]
) -> tuple[SegmentEntry, list[dict[str, Any]]]:
    """Store a segment with random values in its extra columns, and return what each row has."""
    types, rng = COLUMNS[number], np.random.default_rng(number)
    null = {"year"} if types.get("year") == "string" else set()
    written = [
        {
            name: None if name in null or rng.random() < 0.2 else rng.choice(np.array(VALUES[name], object))
            for name in types
        }
        for _ in range(len(vectors_ND))
    ]
    values = [{name: parsed(name, value) for name, value in row.items()} for row in written]
    table = passages(len(vectors_ND), 1_000_000 * number)
    if types:
        rows = [tuple(row[name] for name in types) for row in values]
        table = table.append_column(extra_field(types), extra_array(types, rows))  # type: ignore[arg-type]
    path = folder / f"segment-{number}.parquet"
    write_segment(path, table, vectors_ND, "e")
    ref = put_object(store, f"segments/e/s{number}", path)
    return SegmentEntry(number=number, segment_id=f"s{number}", rows=len(vectors_ND), object=ref), values


def make_snapshot(folder: Path, factory: str) -> Stored:
    """Make four segments and two shards; shards hold dead rows too, and no loose ones."""
    store = LocalStore(folder / "store")
    trained = faiss.index_factory(DIM, factory, faiss.METRIC_INNER_PRODUCT)
    trained.train(random_vectors(2000, DIM, seed=7).astype(np.float32))
    entries, dead, rows, all_ids, all_vectors, loose = [], {}, {}, [], [], []
    indexes = [faiss.clone_index(trained) for _ in range(2)]
    for place, (number, living) in enumerate(LIVE.items()):
        vectors_ND = random_vectors(ROWS, DIM, seed=number)
        dead[number] = np.sort(np.random.default_rng(number).permutation(ROWS)[living:]).astype(np.uint32)
        entry, values = put_segment(store, folder, number, vectors_ND)
        entries.append(with_dead(entry, dead[number]))
        held = np.arange(ROWS)
        if number == 6:
            loose.append(LooseRows.of_segment(number, np.array(LOOSE), vectors_ND[LOOSE.start : LOOSE.stop]))
            held = np.setdiff1d(held, LOOSE)
        indexes[place % 2].add_with_ids(vectors_ND[held].astype(np.float32), (number << ROW_BITS) | held)
        live = np.setdiff1d(np.arange(ROWS), dead[number])
        all_ids.append((number << ROW_BITS) | live)
        all_vectors.append(vectors_ND[live].astype(np.float32))
        rows |= {(number << ROW_BITS) | row: values[row] for row in live.tolist()}
    shards = []
    for place, index in enumerate(indexes):
        path = folder / f"{place}.faiss"
        faiss.write_index(index, str(path))
        numbers = list(LIVE)[place::2]
        living = sum(LIVE[number] for number in numbers) - (len(LOOSE) if 6 in numbers else 0)
        shards.append(
            ShardEntry(
                rows=int(index.ntotal),
                live_rows=living,
                segments=numbers,
                left_out=None,
                object=put_object(store, f"indexes/i{place}", path),
            )
        )
    ids_N, vectors_ND = np.concatenate(all_ids), np.concatenate(all_vectors)
    body = snapshot_body(
        len(ids_N), DIM, segments=entries, next_segment_number=7, deletions=DeletionSet(dead).put(store)
    )
    reference = LooseRows.joined(loose, DIM).put(store, "indexes/loose")
    fields = {
        "rows": len(ids_N),
        "nprobe": 8,
        "rescore": 400,
        "shards": shards,
        "loose": reference,
        "loose_rows": len(LOOSE),
    }
    return Stored(
        store, body.model_copy(update={"index": body.index.model_copy(update=fields)}), rows, ids_N, vectors_ND
    )


@pytest.fixture(scope="module", params=["IVF8,SQ8", "IVF8,PQ8x4", "IDMap,SQ8"])
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Stored:
    return make_snapshot(tmp_path_factory.mktemp("filtered"), request.param)


@pytest.fixture(scope="module")
def search(stored: Stored) -> VectorSearch:
    return VectorSearch.open(stored.store, stored.body)


def found_rows(search: VectorSearch, document: Any, few_bytes: int) -> FilteredRows:
    """Return the rows that match, to be compared if their vectors take no more bytes than that."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dpr.search.filtered_rows.FEW_BYTES", few_bytes)
        return RowFilters(search.segments, search.index).rows(parse_filter(document))


@settings(deadline=None, max_examples=15, derandomize=True)
@given(document=FILTERS, k=st.integers(1, 40))
def test_the_best_of_the_rows_that_match_are_found(stored: Stored, search: VectorSearch, document: Any, k: int) -> None:
    """All lists are visited, and as many candidates re-scored, so that the index misses none."""
    expected_QK = stored.best(document, k)
    few, many = (found_rows(search, document, few_bytes) for few_bytes in (1 << 30, -1))
    assert len(few) == len(many) == sum(matches(document, row) for row in stored.rows.values())
    assert (few.few is None, few.index, many.few) == (len(few) == 0, None, None)
    for rows in (few, many):
        np.testing.assert_array_equal(search.top(QUESTIONS_QD, k, rows)[1], expected_QK)
    np.testing.assert_array_equal(search.exact(QUESTIONS_QD, k, many)[1], expected_QK)


@pytest.mark.parametrize("document", [{"lang": "de"}, {"year": None}, {"and": [{"lang": "en"}, {"checked": True}]}])
@pytest.mark.parametrize("k", [3, 30, 500])
def test_k_hits_come_back_whenever_so_many_match(stored: Stored, document: Any, k: int) -> None:
    """Though a question visits few lists at first."""
    body = stored.body.model_copy(update={"index": stored.body.index.model_copy(update={"nprobe": 1, "rescore": 0})})
    search = VectorSearch.open(stored.store, body)
    rows = found_rows(search, document, -1)
    matching = {id_ for id_, row in stored.rows.items() if matches(document, row)}
    assert 0 < len(matching) == len(rows) < len(stored.rows)
    for ids_K in search.top(QUESTIONS_QD, k, rows)[1]:
        found = ids_K[ids_K >= 0].tolist()
        assert len(found) == len(set(found)) == min(k, len(matching))
        assert set(found) <= matching


def test_lists_are_searched_by_a_selector_and_a_table_row_by_row(search: VectorSearch) -> None:
    rows = found_rows(search, {"lang": "de"}, -1)
    assert (rows.index is None) == (inverted(search.index.shards[0]) is None)
    if rows.index is not None:
        scores_QK, ids_QK = rows.index.search(QUESTIONS_QD, 5, nprobe=1)
        assert rows.bits.contain(ids_QK).all()
        assert (np.diff(scores_QK) <= 0).all()


def test_rows_are_kept_and_columns_read_once(stored: Stored, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also by the next snapshot, which is opened beside this one."""
    read: list[str] = []
    reading = pq.ParquetFile.read_row_group

    def counted(file: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        read.extend(columns)
        return reading(file, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", counted)
    opened = OpenObjects()
    search, where = VectorSearch.open(stored.store, stored.body, opened), parse_filter({"lang": "de"})
    rows = search.filters.rows(where)
    assert read == [f"{EXTRA}.lang"] * 3
    assert search.filters.rows(parse_filter({"lang": "de"})) is rows
    later = VectorSearch.open(stored.store, stored.body, opened)
    del search
    later.filters.rows(parse_filter({"lang": {"in": ["en"]}}))
    later.filters.rows(parse_filter({"lang": {"gt": "e"}}))
    assert read == [f"{EXTRA}.lang"] * 3
    later.filters.rows(parse_filter({"year": 1984}))
    later.filters.rows(parse_filter({"lang": "fr"}))
    assert read == [f"{EXTRA}.lang"] * 3 + [f"{EXTRA}.year"] * 2
    monkeypatch.setattr("dpr.search.extra_columns.KEPT_BYTES", 1)
    read.clear()
    small = VectorSearch.open(stored.store, stored.body, OpenObjects())
    for where in ({"lang": "de"}, {"year": 1984}, {"lang": "fr"}):
        small.filters.rows(parse_filter(where))
    assert read == [f"{EXTRA}.lang"] * 3 + [f"{EXTRA}.year"] * 2 + [f"{EXTRA}.lang"] * 3


def test_few_filters_are_kept(search: VectorSearch) -> None:
    filters = [parse_filter({"year": year}) for year in range(17)]
    first = search.filters.rows(filters[0])
    assert search.filters.rows(filters[0]) is first
    for where in filters[1:]:
        search.filters.rows(where)
    assert search.filters.rows(filters[0]) is not first
