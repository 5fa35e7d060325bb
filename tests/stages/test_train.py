"""The sample that codebooks are trained on and measured with."""

from pathlib import Path

import numpy as np
import pyarrow as pa

from dpr.formats.deletions import DeletionSet, with_dead
from dpr.formats.manifest import SegmentEntry
from dpr.formats.objects import put_object
from dpr.formats.segment import passage_schema, write_segment
from dpr.stages.train import sample_vectors
from dpr.store import LocalStore

DIM = 4


def test_a_training_sample_is_uniform_over_the_live_rows_of_a_corpus_sorted_by_topic(tmp_path: Path) -> None:
    # topic t fills a run of rows; the vector's first value is the topic, the second says whether the row is live
    store, rng = LocalStore(tmp_path / "store"), np.random.default_rng(0)
    entries, dead = [], {}
    live_of_topic = np.zeros(8, np.int64)
    topic = 0
    for number, rows in enumerate((9_000, 40, 500, 2_500)):  # more than one row group, and far less
        topics = np.sort(np.arange(rows) * 2 // rows) + topic
        topic += 2
        dead[number] = np.flatnonzero(rng.random(rows) < (0.1, 0.5, 0.0, 0.9)[number]).astype(np.uint32)
        live = np.ones(rows, np.bool_)
        live[dead[number]] = False
        np.add.at(live_of_topic, topics[live], 1)
        vectors_ND = np.zeros((rows, DIM), np.float16)
        vectors_ND[:, 0], vectors_ND[:, 1] = topics, live
        text = pa.array([""] * rows, pa.string())
        hashes = pa.array([b"0" * 16] * rows, pa.binary(16))
        columns = [text, text, text, hashes, hashes]
        path = tmp_path / "segment.parquet"
        write_segment(path, pa.Table.from_arrays(columns, schema=passage_schema()), vectors_ND, "e")
        ref = put_object(store, f"segments/e/s{number}", path)
        entry = SegmentEntry(number=number, segment_id=f"s{number}", rows=rows, object=ref)
        entries.append(with_dead(entry, dead[number]))
    deletions = DeletionSet(dead).put(store)
    draws, size = 60, 400
    counts = np.zeros(8)
    for seed in range(draws):
        sample_ND = sample_vectors(store, entries, deletions, size, seed)
        assert len(sample_ND) == size
        assert (sample_ND[:, 1] == 1).all()
        counts += np.bincount(sample_ND[:, 0].astype(int), minlength=8)
    share = live_of_topic / live_of_topic.sum()
    expected = draws * size * share
    z = (counts - expected) / np.sqrt(expected * (1 - share))
    # 8 shares, each within 5 standard deviations of what uniform draws give
    assert np.abs(z).max() < 5
