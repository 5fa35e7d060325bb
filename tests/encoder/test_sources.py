"""Where models come from: folders, packages, object stores (memory, and S3 over HTTP), and the hub's own cache."""

import sys
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from dpr.encoder.sources import fetch_model, find_model
from dpr.encoder.spec import resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.counting_server import CountingServer
from tests.encoder.models import save_to_hub_cache
from tests.services.endpoint import S3Endpoint


@pytest.fixture
def memory() -> Iterator[fsspec.AbstractFileSystem]:
    """Give an empty object store in memory."""
    remote = fsspec.filesystem("memory")
    yield remote
    remote.rm("/", recursive=True)


def test_a_folder_is_used_where_it_is(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)
    assert fetch_model(str(bert)).folder == bert
    assert fetch_model("bert").folder.resolve() == bert
    spec = resolve(EncoderConfig(model="bert", pooling="cls"))
    assert spec.passage.folder == bert  # absolute, so that it is still found after a change of folder


def test_a_package_is_found_without_running_its_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "site" / "models_to_test_with" / "deep" / "model"
    inside.mkdir(parents=True)
    (tmp_path / "site" / "models_to_test_with" / "__init__.py").write_text("raise RuntimeError('it ran')")
    (tmp_path / "site" / "outside").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert fetch_model("package:models_to_test_with/deep/model").folder == inside
    assert "models_to_test_with" not in sys.modules
    for folder in ("deep/other", "../outside"):
        with pytest.raises(EncoderError, match="package models_to_test_with has no folder"):
            fetch_model(f"package:models_to_test_with/{folder}")


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("package:no_such_package_here/model", "needs the Python package 'no_such_package_here', which is not"),
        ("package:os.path/model", "needs the Python package 'os.path'"),
        ("package:", "needs the Python package ''"),
        ("/no/such/folder", "model folder /no/such/folder does not exist"),
        ("./no_such_folder", "model folder ./no_such_folder does not exist"),
        ("nosuchscheme://bucket/model", "cannot be fetched: ValueError: Protocol not known"),
        ("memory://empty/model", "holds no model files"),
        ("a/b/c/d", "is not a local folder, and the hub did not give it"),
        ("no-one/no-such-model-ever", "is not a local folder, and the hub did not give it"),
    ],
)
def test_a_model_that_does_not_exist_is_one_sentence(
    reference: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=message) as raised:
        fetch_model(reference)
    assert "\n" not in str(raised.value)


def test_a_file_is_not_a_model_folder(shared_bert: Path) -> None:
    with pytest.raises(EncoderError, match="does not exist"):
        fetch_model(str(shared_bert / "config.json"))


def test_an_object_store_folder_is_fetched_once_and_again_when_it_changes(
    shared_bert: Path, own_cache: Path, memory: fsspec.AbstractFileSystem
) -> None:
    root = "/models/one"
    for path in shared_bert.iterdir():
        memory.pipe_file(f"{root}/{path.name}", path.read_bytes())
    memory.pipe_file(f"{root}/pytorch_model.bin", b"never fetched")
    memory.pipe_file(f"{root}/1_Pooling/config.json", b"{}")
    folder = fetch_model("memory://models/one").folder
    assert folder.is_relative_to(own_cache)
    fetched = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    originals = {path.name: path.read_bytes() for path in shared_bert.iterdir()}
    assert fetched == {**originals, "1_Pooling/config.json": b"{}"}
    remote_spec = resolve(EncoderConfig(model="memory://models/one", pooling="cls"))
    assert remote_spec.encoder_id == resolve(EncoderConfig(model=str(shared_bert), pooling="cls")).encoder_id
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert fetch_model("memory://models/one").folder == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    memory.pipe_file(f"{root}/1_Pooling/config.json", b"[]")
    changed = fetch_model("memory://models/one").folder
    assert changed != folder
    assert (changed / "1_Pooling" / "config.json").read_bytes() == b"[]"


def test_a_fetch_that_fails_leaves_nothing(
    tmp_path: Path, memory: fsspec.AbstractFileSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DPR_CACHE", str(tmp_path / "cache"))
    for name in ("config.json", "vocab.txt"):
        memory.pipe_file(f"/models/two/{name}", b"{}")
    get_whole_file = type(memory).get_file

    def get_file(self: object, path: str, target: str) -> None:
        if path.endswith("vocab.txt"):
            raise ConnectionResetError("the connection broke")
        get_whole_file(self, path, target)

    monkeypatch.setattr(type(memory), "get_file", get_file)
    with pytest.raises(EncoderError, match="ConnectionResetError: the connection broke"):
        fetch_model("memory://models/two")
    assert list((tmp_path / "cache").rglob("config.json")) == []


def test_a_model_comes_from_s3(shared_bert: Path, moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(monkeypatch)
    client = moto_endpoint.client()
    client.create_bucket(Bucket="encoder-models")
    for path in shared_bert.iterdir():
        client.upload_file(str(path), "encoder-models", f"bert/{path.name}")
    folder = fetch_model("s3://encoder-models/bert").folder
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in shared_bert.iterdir()
    }
    assert fetch_model("s3://encoder-models/bert").folder == folder
    with pytest.raises(EncoderError, match="s3://encoder-models/other holds no model files"):
        fetch_model("s3://encoder-models/other")


def test_the_hub_gives_the_requested_revision_and_its_commit(
    shared_bert: Path, hub: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    first = save_to_hub_cache(hub, "someone/bert", "a" * 40, shared_bert)
    second = save_to_hub_cache(hub, "someone/bert", "b" * 40, shared_bert, "v2")
    found = fetch_model("someone/bert")
    assert (found.folder, found.commit) == (first, "a" * 40)
    for found in (
        fetch_model("someone/bert", "v2"),
        fetch_model("someone/bert@v2"),
        fetch_model("someone/bert@v2", "v1"),
    ):
        assert (found.folder, found.commit) == (second, "b" * 40)
    with pytest.raises(EncoderError, match="the hub did not give it at revision v3"):
        fetch_model("someone/bert", "v3")


def test_finding_a_hub_model_makes_no_request(shared_bert: Path, hub: Path, web: CountingServer) -> None:
    folder = save_to_hub_cache(hub, "someone/bert", "a" * 40, shared_bert)
    found = find_model("someone/bert", "a" * 40)
    assert found is not None
    assert found.folder == folder
    for hub_id, revision in (
        ("someone/bert", "b" * 40), ("someone/bert", "main"), ("someone/bert", None), ("someone/bert", "../a"),
        ("someone/other", "a" * 40), ("a/b/c/d", "a" * 40), (f"{web.url}/model", "a" * 40),
    ):  # fmt: skip
        assert find_model(hub_id, revision) is None
    assert web.requests == 0
    with pytest.raises(EncoderError):
        fetch_model("someone/other")
    assert web.requests > 0  # so the server would have seen a request
