"""The passages that fp8 is judged by, and their texts and vectors as pyarrow reads them."""

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from dpr.evaluate.questions import Question, QuestionSet
from dpr.formats.deletions import DeletionSet, with_dead
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.segment import write_segment
from dpr.recipe_index import IndexConfig
from dpr.stages import fp8_sample
from dpr.stages.fp8_sample import nearest, read_sample, sampled_rows
from dpr.stages.train import IndexContext
from dpr.store import LocalStore
from tests.formats.samples import RemoteStore, passages, random_vectors

ROWS, DEAD = 300, np.arange(0, 300, 7, dtype=np.uint32)


@pytest.fixture
def context(tmp_path: Path) -> IndexContext:
    """Three segments of 300 passages `NUMBER-document-TENS#ROW`, of which every seventh row is dead."""
    store, entries = LocalStore(tmp_path / "store"), []
    for number in (1, 2, 5):
        table = passages(ROWS)
        names = [f"{number}-document-{row // 10}#{row}" for row in range(ROWS)]
        path = tmp_path / f"{number}.parquet"
        write_segment(path, table.set_column(0, table.schema.field(0), [names]), random_vectors(ROWS, 8, number), "e")
        ref = put_object(store, f"segments/e/s{number}", path)
        entries.append(with_dead(SegmentEntry(number=number, segment_id=f"s{number}", rows=ROWS, object=ref), DEAD))
    deletions = DeletionSet({entry.number: DEAD for entry in entries}).put(store)
    return IndexContext(store.url, "e", 8, IndexConfig(), tuple(entries), deletions)


def test_a_small_collection_is_taken_whole(context: IndexContext) -> None:
    rows_N = sampled_rows(LocalStore(Path(context.store_url)), context, None, np.empty(0, np.int64))
    assert len(rows_N) == context.rows
    assert not np.isin(rows_N & 0xFFFFFFFF, DEAD).any()


def test_answers_come_first_then_neighbours_then_others(context: IndexContext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fp8_sample, "PASSAGES", 60)
    store = LocalStore(Path(context.store_url))
    answers = ("2-document-29#299", "5-document-3", "5-document-0#0", "nowhere")  # a passage, a document, a dead row
    questions = QuestionSet((Question("?", answers),), "ids")
    near_n = np.array([(1 << 32) | row for row in range(1, 6)])
    rows_N = sampled_rows(store, context, questions, near_n)
    answering = {(2 << 32) | 299, *((5 << 32) | row for row in range(30, 40) if row not in DEAD)}
    assert answering | set(near_n.tolist()) <= set(rows_N.tolist())
    assert 50 <= len(rows_N) <= 60
    assert (np.diff(rows_N) > 0).all()
    assert len(np.unique(rows_N >> 32)) == 3
    assert not np.isin(rows_N & 0xFFFFFFFF, DEAD).any()
    np.testing.assert_array_equal(rows_N, sampled_rows(store, context, questions, near_n))


@pytest.mark.parametrize("kind", [LocalStore, RemoteStore])
def test_texts_and_vectors_belong_together(context: IndexContext, kind: type[LocalStore]) -> None:
    rows_N = np.array([(1 << 32) | 3, (2 << 32) | 5, (2 << 32) | 299, (5 << 32) | 1])
    sample = read_sample(kind(Path(context.store_url)), context, rows_N)
    tables = {entry.number: pq.read_table(Path(context.store_url, entry.object.name)) for entry in context.segments}
    for place, id_ in enumerate(rows_N.tolist()):
        row = {name: column[0] for name, column in tables[id_ >> 32].slice(id_ & 0xFFFFFFFF, 1).to_pydict().items()}
        assert (sample.ids[place], sample.titles[place], sample.texts[place]) == (row["id"], row["title"], row["text"])
        np.testing.assert_array_equal(sample.stored_ND[place], np.array(row["embedding"], np.float16))


def test_neighbours_are_taken_by_rank() -> None:
    ids_QK = np.array([[7, 3, 9], [7, 1, -1], [5, 7, 2]])
    assert nearest(ids_QK, 10).tolist() == [7, 5, 3, 1, 9, 2]
    assert nearest(ids_QK, 3).tolist() == [7, 5, 3]
