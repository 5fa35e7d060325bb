"""Corpora behind URLs: an S3 server, and fsspec's own memory."""

import functools
import gzip
import http.server
import io
import json
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import s3fs

from dpr.corpus.reading import read_slice
from dpr.corpus.slices import plan_slices
from dpr.errors import CorpusError, RecipeError
from dpr.evaluate.text_files import is_folder
from dpr.recipe import CorpusConfig
from tests.corpus.reading import read
from tests.services.endpoint import S3Endpoint

RECORDS = [{"id": str(n), "title": "é", "text": f"passage {n}"} for n in range(3000)]
LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


def parquet() -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(RECORDS), sink, row_group_size=1000)
    return sink.getvalue()


@pytest.fixture
def bucket(moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> str:
    moto_endpoint.use(monkeypatch)
    name = f"corpus-{uuid.uuid4().hex}"
    moto_endpoint.client().create_bucket(Bucket=name)
    return name


@pytest.mark.parametrize(
    ("key", "data", "slices"),
    [
        ("c.jsonl", LINES, 3),
        ("c.jsonl.gz", gzip.compress(LINES), 1),
        ("c.parquet", parquet(), 3),
        ("c.txt", b" ".join(record["text"].encode() for record in RECORDS), 1),
    ],
)
@pytest.mark.parametrize("path", ["s3://{bucket}/night/", "s3://{bucket}/night/{key}", "s3://{bucket}/*/c.*"])
def test_s3_objects_read_as_local_files(
    moto_endpoint: S3Endpoint, bucket: str, key: str, data: bytes, slices: int, path: str
) -> None:
    moto_endpoint.client().put_object(Bucket=bucket, Key=f"night/{key}", Body=data)
    corpus = CorpusConfig(path=path.format(bucket=bucket, key=key), slice_bytes=-(-len(data) // slices))
    if key.endswith("parquet"):
        corpus = corpus.model_copy(update={"slice_bytes": 1})
    planned = plan_slices(corpus).slices
    assert len(planned) == slices
    assert {row.source for row in read(corpus.path)} == {f"s3://{bucket}/night/{key}"}
    found = [row.passage for slice_ in planned for row in read_slice(slice_, corpus)]
    if key.endswith("txt"):
        assert [passage.id.rpartition("#")[2] for passage in found if passage] == [str(n) for n in range(60)]
    else:
        assert [passage and passage._asdict() for passage in found] == RECORDS


def test_an_s3_object_that_was_replaced_is_an_error(moto_endpoint: S3Endpoint, bucket: str) -> None:
    client = moto_endpoint.client()
    client.put_object(Bucket=bucket, Key="c.jsonl", Body=LINES)
    corpus = CorpusConfig(path=f"s3://{bucket}/c.jsonl")
    (slice_,) = plan_slices(corpus).slices
    client.put_object(Bucket=bucket, Key="c.jsonl", Body=LINES.replace(b"passage 7", b"passage 8"))
    with pytest.raises(CorpusError, match=r"c\.jsonl changed while it was being scanned"):
        next(read_slice(slice_, corpus))


@pytest.mark.parametrize("path", ["s3://{bucket}/gone", "s3://no-such-bucket-anywhere/x", "s3://{bucket}/*.jsonl"])
def test_nothing_there_on_s3_is_one_sentence(bucket: str, path: str) -> None:
    with pytest.raises(CorpusError, match=r"^corpus .*s3://") as caught:
        plan_slices(CorpusConfig(path=path.format(bucket=bucket)))
    assert "\n" not in str(caught.value)


SETTINGS = {
    "AWS_ACCESS_KEY_ID": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and that they may list bucket",
    "AWS_SECRET_ACCESS_KEY": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, and that they may list",
}


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("path", ["s3://{bucket}/c.jsonl", "s3://{bucket}/folder", "s3://{bucket}/*.jsonl"])
def test_wrong_credentials_are_one_sentence(
    ceph_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch, name: str, path: str
) -> None:
    ceph_endpoint.use(monkeypatch)
    monkeypatch.setenv(name, "hush-hush-secret")
    assert SETTINGS[name] in refusal(path.format(bucket="corpus"), ceph_endpoint.url)


def test_no_credentials_are_one_sentence(moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(monkeypatch)
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    assert "(The config profile (nobody) could not be found); correct it or AWS_PROFILE" in refusal("s3://b/c.jsonl")
    for name in ("AWS_PROFILE", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for path in ("s3://b/c.jsonl", "s3://b/folder", "s3://b/*.jsonl"):
        assert "there are no complete AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS" in refusal(path)
    with pytest.raises(RecipeError, match=r"^file s3://b/q\.jsonl cannot be read: .*; set AWS_ACCESS_KEY_ID and"):
        is_folder("s3://b/q.jsonl")


def test_an_endpoint_that_is_not_there_is_one_sentence(
    moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    moto_endpoint.use(monkeypatch)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    assert "cannot connect to http://127.0.0.1:1; check AWS_ENDPOINT_URL" in refusal("s3://b/c.jsonl")


def refusal(path: str, *parts: str) -> str:
    """Return why a corpus on S3 cannot be read: in one sentence, with its address and without secrets."""
    s3fs.S3FileSystem.clear_instance_cache()  # one that is kept has the settings that it was made with
    with pytest.raises(CorpusError) as caught:
        plan_slices(CorpusConfig(path=path))
    message = str(caught.value)
    assert all(part in message for part in (path, *parts))
    assert "\n" not in message
    assert "hush" not in message
    s3fs.S3FileSystem.clear_instance_cache()
    return message


class QuietHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, without ranges and without a log."""

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def http_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Path, str]]:
    """Give a folder and the URL that a server without support for ranges has it under."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    handler = functools.partial(QuietHandler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield tmp_path, f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize(("name", "data"), [("c.jsonl", LINES * 20), ("c.jsonl.gz", gzip.compress(LINES * 20, 0))])
def test_an_http_server_without_ranges_will_do_for_a_file_that_is_read_from_its_beginning(
    http_folder: tuple[Path, str], name: str, data: bytes
) -> None:
    folder, url = http_folder
    (folder / name).write_bytes(data)
    assert len(data) > 2 * 2**20, "more than planning reads"
    assert [row.passage and row.passage._asdict() for row in read(f"{url}/{name}")] == RECORDS * 20


def test_any_fsspec_url_will_do_and_an_unknown_one_is_one_sentence() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/night/c.jsonl", LINES)
    try:
        found = read("memory://night/", slice_bytes=10_000)
        assert [row.passage and row.passage._asdict() for row in found] == RECORDS
    finally:
        memory.rm("/night", recursive=True)
    with pytest.raises(CorpusError, match="nosuch://x cannot be read: Protocol not known: nosuch"):
        read("nosuch://x")


@pytest.mark.parametrize("url", ["postgresql+psycopg://user:secret@host/db", "sqlite:///c.db", "jdbc:mysql://host/db"])
def test_a_database_is_told_from_files_and_its_password_is_not_printed(url: str) -> None:
    with pytest.raises(CorpusError, match=r"is a database, and dpr reads files; write .* to Parquet") as caught:
        read(url)
    assert "secret" not in str(caught.value)


def test_a_data_set_of_the_hub_without_its_scheme_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"BeIR/scifact is not there; .* of the Hugging Face hub is hf://datasets/"):
        read(tmp_path / "BeIR/scifact")
