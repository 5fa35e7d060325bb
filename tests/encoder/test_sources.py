"""Where models come from: folders, packages, object stores (memory, and S3 over HTTP), and the hub's own cache."""

import sys
from pathlib import Path

import fsspec
import pytest

from dpr.encoder.sources import cache_folder, fetch_model
from dpr.encoder.spec import resolve
from dpr.errors import EncoderError
from dpr.recipe import EncoderConfig
from tests.encoder.models import save_bert
from tests.services.endpoint import S3Endpoint


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    return save_bert(tmp_path / "bert")


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return cache_folder()


def test_a_folder_is_itself(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bert.parent)
    assert fetch_model(str(bert)) == bert
    assert fetch_model("bert").resolve() == bert
    spec = resolve(EncoderConfig(model="bert", pooling="cls"))
    assert spec.passage.folder == bert  # absolute, so that a change of folder does not lose it


def test_a_package_is_found_and_none_of_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "site" / "models_to_test_with" / "deep" / "model"
    inside.mkdir(parents=True)
    (tmp_path / "site" / "models_to_test_with" / "__init__.py").write_text("raise RuntimeError('it ran')")
    (tmp_path / "site" / "outside").mkdir()
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert fetch_model("package:models_to_test_with/deep/model") == inside
    assert "models_to_test_with" not in sys.modules
    for folder in ("deep/other", "../outside"):
        with pytest.raises(EncoderError, match="package models_to_test_with has no folder"):
            fetch_model(f"package:models_to_test_with/{folder}")


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("package:no_such_package_here/model", "there is no Python package 'no_such_package_here'"),
        ("package:os.path/model", "there is no Python package 'os.path'"),
        ("package:", "there is no Python package ''"),
        ("/no/such/folder", "model folder /no/such/folder is not there"),
        ("./no_such_folder", "model folder ./no_such_folder is not there"),
        ("nosuchscheme://bucket/model", "cannot be fetched: ValueError: Protocol not known"),
        ("memory://empty/model", "holds no model files"),
        ("a/b/c/d", "is no folder here, and the hub did not give it"),
        ("no-one/no-such-model-ever", "is no folder here, and the hub did not give it"),
    ],
)
def test_a_model_that_is_not_there_is_one_sentence(reference: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(EncoderError, match=said) as raised:
        fetch_model(reference)
    assert "\n" not in str(raised.value)


def test_a_file_is_no_model_folder(bert: Path) -> None:
    with pytest.raises(EncoderError, match="is not there"):
        fetch_model(str(bert / "config.json"))


def test_an_object_store_folder_is_fetched_once_and_again_when_it_changes(bert: Path, cache: Path) -> None:
    remote, root = fsspec.filesystem("memory"), "/models/one"
    for path in bert.iterdir():
        remote.pipe_file(f"{root}/{path.name}", path.read_bytes())
    remote.pipe_file(f"{root}/pytorch_model.bin", b"never fetched")
    remote.pipe_file(f"{root}/1_Pooling/config.json", b"{}")
    folder = fetch_model("memory://models/one")
    fetched = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert fetched == {**{path.name: path.read_bytes() for path in bert.iterdir()}, "1_Pooling/config.json": b"{}"}
    ours = resolve(EncoderConfig(model="memory://models/one", pooling="cls"))
    assert ours.encoder_id == resolve(EncoderConfig(model=str(bert), pooling="cls")).encoder_id
    stamp = (folder / "config.json").stat().st_mtime_ns
    assert fetch_model("memory://models/one") == folder
    assert (folder / "config.json").stat().st_mtime_ns == stamp
    remote.pipe_file(f"{root}/1_Pooling/config.json", b"[]")
    changed = fetch_model("memory://models/one")
    assert changed != folder
    assert (changed / "1_Pooling" / "config.json").read_bytes() == b"[]"
    assert [path.name for path in cache.iterdir() if path.name.startswith(".tmp-")] == []
    remote.rm("/models", recursive=True)


def test_a_fetch_that_fails_leaves_nothing(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remote = fsspec.filesystem("memory")
    for name in ("config.json", "vocab.txt"):
        remote.pipe_file(f"/models/two/{name}", b"{}")
    real = type(remote).get_file

    def get_file(self: object, path: str, target: str) -> None:
        if path.endswith("vocab.txt"):
            raise ConnectionResetError("the line went dead")
        real(self, path, target)

    monkeypatch.setattr(type(remote), "get_file", get_file)
    with pytest.raises(EncoderError, match="ConnectionResetError: the line went dead"):
        fetch_model("memory://models/two")
    assert list(cache.iterdir()) == []
    remote.rm("/models", recursive=True)


def test_a_model_comes_from_s3(bert: Path, moto_endpoint: S3Endpoint, monkeypatch: pytest.MonkeyPatch) -> None:
    moto_endpoint.use(monkeypatch)
    client = moto_endpoint.client()
    client.create_bucket(Bucket="encoder-models")
    for path in bert.iterdir():
        client.upload_file(str(path), "encoder-models", f"bert/{path.name}")
    folder = fetch_model("s3://encoder-models/bert")
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        path.name: path.read_bytes() for path in bert.iterdir()
    }
    assert fetch_model("s3://encoder-models/bert") == folder
    with pytest.raises(EncoderError, match="s3://encoder-models/other holds no model files"):
        fetch_model("s3://encoder-models/other")


def test_the_hub_gives_the_revision_asked_for(bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the layout that huggingface_hub documents for its cache, so that nothing is asked over the network
    repository = tmp_path / "hub" / "models--someone--bert"
    for revision, commit in (("main", "a" * 40), ("v2", "b" * 40)):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / revision).write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_bytes((bert / "config.json").read_bytes())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert fetch_model("someone/bert").name == "a" * 40
    assert fetch_model("someone/bert", "v2").name == "b" * 40
    with pytest.raises(EncoderError, match="the hub did not give it at revision v3"):
        fetch_model("someone/bert", "v3")
