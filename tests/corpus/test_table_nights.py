"""Nights on Delta, Iceberg and Lance tables: what a night reads, and that the snapshot holds what the table holds."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pytest

from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError
from dpr.recipe import Columns, CorpusConfig
from tests.collection import Collection
from tests.corpus.reading import read
from tests.tiny import Quiet, random_texts

deltalake = pytest.importorskip("deltalake")
lance = pytest.importorskip("lance")
catalogs = pytest.importorskip("pyiceberg.catalog.sql")


def rows(name: str, count: int = 12) -> pa.Table:
    texts = random_texts(count, name, seed=len(name))
    columns = {"id": list(texts), "title": [""] * count, "text": list(texts.values()), "year": [2000] * count}
    return pa.table(columns)


class Delta:
    """A Delta table, as its own library writes and reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "table")

    def append(self, table: pa.Table) -> None:
        deltalake.write_deltalake(self.path, table, mode="append")

    def delete(self, passage_id: str) -> None:
        deltalake.DeltaTable(self.path).delete(f"id = '{passage_id}'")

    def ids(self) -> set[str]:
        return set(deltalake.DeltaTable(self.path).to_pyarrow_table()["id"].to_pylist())


class Iceberg:
    """An Iceberg table in a catalogue that the system under test does not know."""

    def __init__(self, folder: Path) -> None:
        catalog = catalogs.SqlCatalog("c", uri=f"sqlite:///{folder}/c.db", warehouse=f"file://{folder}/house")
        catalog.create_namespace("n")
        self._table = catalog.create_table("n.t", schema=rows("p").schema)
        self._engine = catalog.engine
        self.path = f"{folder}/house/n/t"

    def append(self, table: pa.Table) -> None:
        self._table.append(table)

    def delete(self, passage_id: str) -> None:
        self._table.delete(f"id = '{passage_id}'")

    def ids(self) -> set[str]:
        return set(self._table.scan().to_arrow()["id"].to_pylist())


class Lance:
    """A Lance table, as its own library writes and reads it."""

    def __init__(self, folder: Path) -> None:
        self.path = str(folder / "table.lance")

    def append(self, table: pa.Table) -> None:
        lance.write_dataset(table, self.path, mode="append")

    def delete(self, passage_id: str) -> None:
        lance.dataset(self.path).delete(f"id = '{passage_id}'")

    def ids(self) -> set[str]:
        return set(lance.dataset(self.path).to_table()["id"].to_pylist())


TABLES: dict[str, Callable[[Path], Any]] = {"delta": Delta, "iceberg": Iceberg, "lance": Lance}


@pytest.mark.slow
@pytest.mark.parametrize("kind", TABLES)
@pytest.mark.filterwarnings("ignore")
def test_each_night_reads_what_changed_between_versions_and_holds_what_the_table_holds(
    kind: str, tmp_path: Path, encoder: Path
) -> None:
    table = TABLES[kind](tmp_path)
    collection = Collection(tmp_path / "night", encoder, corpus={"path": table.path, "format": "auto"})
    scanned: list[int] = []

    def night() -> str:
        progress = Quiet()
        outcome = collection.night(progress=progress)
        body = outcome.snapshot.body
        # the table's own library, and a scan of everything into no store, say what there must be
        whole = {row.passage.id for row in read(table.path) if row.passage is not None}
        assert set(collection.live_rows(body)) == table.ids() == whole
        scanned.append(progress.rows.get("scan", 0))
        return next((line for line in progress.messages if "version" in line or "snapshot" in line), "")

    table.append(rows("first"))
    table.append(rows("second"))
    first_version = night()
    assert first_version.startswith(f"corpus: read as of {kind} table {table.path}, ")
    table.append(rows("third"))
    assert night() not in ("", first_version)
    table.delete("first003")
    night()
    assert night() == "", "nothing changed, so nothing is done"
    # two files, one new file, one file that was written again or has a deletion
    assert scanned == [24, 12, 11, 0]


@pytest.mark.parametrize("kind", TABLES)
def test_a_library_that_is_not_installed_is_named(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr("dpr.corpus.table_versions.import_module", missing)
    with pytest.raises(CorpusError, match=rf"is a table of {kind}, .* install it with: pip install 'dpr\[{kind}\]'"):
        plan_slices(CorpusConfig(path=str(tmp_path), format=kind))


@pytest.mark.parametrize("kind", TABLES)
def test_a_folder_that_is_no_table_is_one_sentence(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=f"(?i){kind}") as caught:
        plan_slices(CorpusConfig(path=str(tmp_path), format=kind))
    assert "\n" not in str(caught.value)


def test_rows_that_a_delta_table_marks_as_deleted_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = Delta(tmp_path)
    table.append(rows("p"))
    marked = SimpleNamespace(reader_features=["deletionVectors"])
    monkeypatch.setattr(deltalake.DeltaTable, "protocol", lambda _: marked)
    monkeypatch.setattr(deltalake.DeltaTable, "deletion_vectors", lambda _: iter([SimpleNamespace(num_rows=2)]))
    with pytest.raises(CorpusError, match="deletion vectors on 2 files, which are not supported; rewrite"):
        plan_slices(CorpusConfig(path=table.path))


@pytest.mark.filterwarnings("ignore")
def test_deletes_by_equality_are_refused(tmp_path: Path) -> None:
    """Flink writes them, and pyiceberg does not; the summary of a snapshot counts them."""
    table = Iceberg(tmp_path)
    table.append(rows("p"))
    newest = max(Path(table.path, "metadata").glob("*.metadata.json"))
    metadata = json.loads(newest.read_text())
    metadata["snapshots"][-1]["summary"]["total-equality-deletes"] = "1"
    newest.write_text(json.dumps(metadata))
    with pytest.raises(CorpusError, match=r"Iceberg table with delete files, .*compact it \(rewrite_data_files\)"):
        plan_slices(CorpusConfig(path=table.path))


@pytest.mark.filterwarnings("ignore")
def test_a_renamed_column_of_iceberg_is_refused(tmp_path: Path) -> None:
    table = Iceberg(tmp_path)
    table.append(rows("p"))
    with table._table.update_schema() as update:
        update.rename_column("text", "body")
        update.rename_column("title", "text")
    with pytest.raises(CorpusError, match="a column of the recipe was renamed"):
        plan_slices(CorpusConfig(path=table.path, columns={"title": None}))


@pytest.mark.parametrize("kind", ["delta", "lance"])
def test_any_names_of_folders_and_any_values_of_keys_will_do(kind: str, tmp_path: Path) -> None:
    values = ["a b", "é/ü%20=", None]
    table = pa.table({"id": ["a", "b", "c"], "title": [""] * 3, "text": ["x"] * 3, "lang": values})
    path = str(tmp_path / "t é")
    if kind == "delta":
        deltalake.write_deltalake(path, table, partition_by=["lang"])
    else:
        lance.write_dataset(table, path)
    found = read(path, columns=Columns.model_validate({"extra": ["lang"]}))
    assert {row.passage.id: row.extra for row in found if row.passage} == {
        id_: (value,) for id_, value in zip("abc", values, strict=True)
    }
