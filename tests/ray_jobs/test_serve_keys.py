"""Who is let in: keys, roles, and what an answer and the access log hold."""

import hashlib
import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from dpr.errors import ServeError
from dpr.operations.follow import Follower
from dpr.recipe_service import ServeConfig
from ray_jobs.serve.app import make_app
from ray_jobs.serve.front import AccessLog
from ray_jobs.serve.keys import KEYS_VARIABLE, KeyRing, add_key, key_ring, parse_keys
from tests.collection import Collection, FirstNights
from tests.ray_jobs.conftest import Dpr
from tests.services.endpoint import free_ports

pytestmark = pytest.mark.without_ray
BODY = {"query": "w1 w2", "k": 2}


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Collection:
    return first_nights.copy(tmp_path_factory.mktemp("keys"))


@pytest.fixture(scope="module")
def follower(collection: Collection) -> Iterator[Follower]:
    with Follower(collection.store) as made:
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "keys"


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def test_only_known_keys_are_let_in(follower: Follower, file: Path) -> None:
    key = add_key(file, "alice", "search")
    client = TestClient(make_app(follower, keys=KeyRing(file)))
    for headers in (bearer(key), {"Authorization": f"bearer  {key}"}, {"X-API-Key": key}):
        assert client.post("/v1/search", json=BODY, headers=headers).status_code == 200
    refused = client.post("/v1/search", json=BODY)
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    send = "send one as the header Authorization: Bearer KEY"
    assert refused.json() == {"error": f"this service answers to keys only; {send}"}
    for wrong in (key[:-1], f"{key}x", hashlib.sha256(key.encode()).hexdigest(), "é"):
        answer = client.post("/v1/search", json=BODY, headers={"Authorization": f"Bearer {wrong}".encode()})
        assert (answer.status_code, answer.json()) == (401, {"error": f"the key is not known; {send}"})
    basic = client.post("/v1/search", json=BODY, auth=("alice", key))
    assert basic.status_code == 401


def test_without_a_key_there_is_nothing_of_the_store(follower: Follower, file: Path) -> None:
    add_key(file, "alice", "search")
    client = TestClient(make_app(follower, keys=KeyRing(file)))
    document = client.get("/openapi.json").json()
    paths = document["paths"]
    assert document["components"]["securitySchemes"]["HTTPBearer"]["scheme"] == "bearer"
    assert paths["/v1/search"]["post"]["security"] == [{"HTTPBearer": []}]
    assert "security" not in TestClient(make_app(follower)).get("/openapi.json").json()["paths"]["/v1/search"]["post"]
    for path, methods in paths.items():
        for method in methods:
            status = client.request(method, path.replace("{passage_id}", "p001")).status_code
            assert status == (200 if path == "/v1/ready" else 401), path
    assert client.get("/docs").status_code == 200
    assert client.get("/v1//search").status_code == client.get("/docs/../v1/health").status_code == 401


def test_exact_search_is_for_admins(follower: Follower, file: Path) -> None:
    plain, admin = add_key(file, "alice", "search"), add_key(file, "root", "admin")
    client = TestClient(make_app(follower, keys=KeyRing(file)))
    exact = BODY | {"exact": True}
    refused = client.post("/v1/search", json=exact, headers=bearer(plain))
    message = "field exact is true, and only keys of role admin may ask for it; leave it out"
    assert (refused.status_code, refused.json()) == (403, {"error": message})
    assert client.post("/v1/search", json=exact, headers=bearer(admin)).status_code == 200
    assert TestClient(make_app(follower)).post("/v1/search", json=exact).status_code == 200


def test_a_file_that_changes_is_read_again(follower: Follower, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ray_jobs.serve.keys.LOOK_SECONDS", 0.0)
    first = add_key(file, "alice", "search")
    client = TestClient(make_app(follower, keys=KeyRing(file)))

    def statuses(*keys: str) -> list[int]:
        return [client.get("/v1/health", headers=bearer(key)).status_code for key in keys]

    second = add_key(file, "bob", "search")
    assert statuses(first, second) == [200, 200]
    file.write_text(file.read_text().splitlines()[1] + "\n")
    assert statuses(first, second) == [401, 200]
    file.write_text("broken\n")
    assert statuses(first, second) == [401, 200]
    file.unlink()
    assert statuses(first, second) == [401, 200]
    third = add_key(file, "carol", "search")
    assert statuses(first, second, third) == [401, 401, 200]


def test_why_a_changed_file_is_not_used_is_in_health(
    follower: Follower, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever takes out a key and makes a slip elsewhere learns that the key is still taken."""
    monkeypatch.setattr("ray_jobs.serve.keys.LOOK_SECONDS", 0.0)
    key = add_key(file, "alice", "search")
    lines = file.read_text()
    client = TestClient(make_app(follower, keys=KeyRing(file)))

    def problem() -> str:
        health: dict[str, str] = client.get("/v1/health", headers=bearer(key)).json()
        status = client.get("/v1/status", headers=bearer(key)).json()["health"]
        assert status["keys_problem"] == health["keys_problem"]
        return health["keys_problem"]

    assert problem() == ""
    file.write_text(f"{lines}bob\n")
    assert problem().startswith(
        f"keys stay as they were, also those that were removed: line 2 of {file} is not a name, a role"
    )
    file.write_text(lines)
    assert problem() == ""
    caplog.clear()
    away = file.rename(file.with_name("away"))
    for _ in range(3):
        assert problem().endswith(f"the file of keys {file}: No such file or directory")
    assert len(caplog.records) == 1
    away.rename(file)  # it is exactly the one that was read
    assert problem() == ""


@pytest.mark.parametrize("form", ["\ufeff{}", "\ufeff# who may ask\r\n{}", "{}\r\n"])
def test_files_of_editors_on_windows_are_read(file: Path, form: str) -> None:
    key = add_key(file, "alice", "search")
    file.write_bytes(form.format(file.read_text().strip()).encode())
    assert (found := KeyRing(file).find(key)) is not None
    assert found.name == "alice"
    second = add_key(file, "bob", "admin")
    assert (found := KeyRing(file).find(second)) is not None
    assert found.name == "bob"
    with pytest.raises(ServeError, match="has a key named alice"):
        add_key(file, "alice", "search")


def test_a_file_that_is_none_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    for name, reason in (("", "Is a directory"), ("binary", "'utf-8' codec .*"), ("none", "No such file or directory")):
        message = (
            rf"^the file of keys \S+ cannot be read: {reason}; name a text file that `dpr key NAME --file FILE` has"
        )
        with pytest.raises(ServeError, match=message):
            KeyRing(tmp_path / name)


def test_a_file_holds_hashes_and_only_its_owner_reads_it(file: Path) -> None:
    key = add_key(file, "alice", "admin")
    assert file.read_text() == f"alice admin {hashlib.sha256(key.encode()).hexdigest()}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    with pytest.raises(ServeError, match=r"has a key named alice; take its line out first"):
        add_key(file, "alice", "search")
    with pytest.raises(ServeError, match=r"'a b' cannot name a key; use up to 64 letters"):
        add_key(file, "a b", "search")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "keys has no key, so nobody could ask; `dpr key NAME` makes one"),
        ("# alice\n\n", "keys has no key"),
        ("alice search secret-in-the-clear", r"line 1 of keys is not a name, a role \(search or admin\) and a SHA-256"),
        (f"# a\nalice owner {'0' * 64}", "line 2 of keys is not a name"),
    ],
)
def test_lines_that_are_no_keys_are_refused_and_not_shown(text: str, message: str) -> None:
    with pytest.raises(ServeError, match=message) as error:
        parse_keys(text, "keys")
    assert "secret" not in str(error.value)


def test_keys_may_come_from_the_environment(follower: Follower, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    assert key_ring(None) is None
    key = add_key(file, "alice", "search")
    monkeypatch.setenv(KEYS_VARIABLE, file.read_text())
    client = TestClient(make_app(follower, keys=key_ring(None)))
    assert client.get("/v1/health").status_code == 401
    assert client.get("/v1/health", headers=bearer(key)).status_code == 200
    with pytest.raises(ServeError, match=r"the file of keys .*missing cannot be read: .*No such file"):
        key_ring(str(file.parent / "missing"))


def test_answers_carry_headers_that_protect_browsers_and_let_no_other_origin_in(follower: Follower) -> None:
    client = TestClient(make_app(follower))
    for path in ("/v1/ready", "/docs", "/nothing", "/openapi.json"):
        headers = client.get(path, headers={"Origin": "https://example.org"}).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert not [name for name in headers if name.lower().startswith("access-control")]
    preflight = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    assert client.options("/v1/search", headers=preflight).status_code == 405


def test_the_access_log_names_requests_and_holds_nothing_secret(follower: Follower, tmp_path: Path) -> None:
    key = add_key(tmp_path / "keys", "alice", "search")
    log = tmp_path / "access.jsonl"
    client = TestClient(make_app(follower, keys=KeyRing(tmp_path / "keys"), access_log=AccessLog(log)))
    known = client.post("/v1/search?token=hidden", json=BODY, headers=bearer(key) | {"X-Request-Id": "my-id.7"})
    assert known.headers["X-Request-Id"] == "my-id.7"
    made = client.get("/v1/health", headers={"X-Request-Id": 'no"id\u00e9'.encode()}).headers["X-Request-Id"]
    assert len(made) == 32
    text = log.read_text()
    assert not [secret for secret in (key, "w1", "hidden", "Bearer") if secret in text]
    first, second = map(json.loads, text.splitlines())
    assert first.pop("milliseconds") > 0
    assert first.pop("time") <= second.pop("time")
    assert first == {
        "request_id": "my-id.7",
        "client": "testclient",
        "key": "alice",
        "method": "POST",
        "path": "/v1/search",
        "status": 200,
    }
    assert (second["request_id"], second["key"], second["status"]) == (made, None, 401)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray Serve's own
def test_an_access_log_that_cannot_be_written_is_found_before_anything_starts(
    collection: Collection, tmp_path: Path, dpr: Dpr
) -> None:
    (port,) = free_ports(1)
    for path, reason in ((tmp_path, "Is a directory"), (tmp_path / "no/log", "No such file or directory")):
        code, out, err = dpr("serve", collection.store.url, "--port", port, "--access-log", path)
        message = f"the access log {path} cannot be written: {reason}; name another file with --access-log, or leave it"
        assert (code, out, err) == (10, "", f"error: {message} out\n")


def test_a_full_disk_takes_lines_of_the_access_log_and_no_answers(
    follower: Follower, caplog: pytest.LogCaptureFixture
) -> None:
    client = TestClient(make_app(follower, access_log=AccessLog(Path("/dev/full"))))
    assert [client.post("/v1/search", json=BODY).status_code for _ in range(3)] == [200] * 3
    (record,) = caplog.records
    assert record.getMessage() == "lines of the access log /dev/full are lost: No space left on device"


def test_a_bug_is_a_sentence_with_a_request_id(
    follower: Follower, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "access.jsonl"
    client = TestClient(make_app(follower, access_log=AccessLog(log)))
    monkeypatch.setattr(Follower, "search", lambda *_, **__: 1 / 0)
    answer = client.post("/v1/search", json=BODY)
    message = "the service failed with ZeroDivisionError; its log has the details"
    assert (answer.status_code, answer.json()) == (500, {"error": message})
    assert json.loads(log.read_text())["request_id"] == answer.headers["X-Request-Id"]


def test_dpr_key_prints_a_key_once(tmp_path: Path, dpr: Dpr) -> None:
    file = tmp_path / "keys"
    code, out, err = dpr("key", "alice", "--file", file, "--role", "admin")
    assert (code, err) == (0, "")
    found = KeyRing(file).find(out.strip())
    assert found is not None
    assert (found.name, found.role) == ("alice", "admin")
    code, out, err = dpr("key", "alice", "--file", file)
    assert (code, out, err.count("\n")) == (10, "", 1)


@pytest.mark.filterwarnings("ignore:Using extra keyword arguments on `Field`:DeprecationWarning")  # Ray Serve's own
@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_who_can_be_reached_needs_keys(
    collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    from ray_jobs.serve.service import serve_store

    monkeypatch.delenv(KEYS_VARIABLE, raising=False)
    message = f"^{host} can be reached from other machines, and the service has no keys; make some with `dpr key`"
    with pytest.raises(ServeError, match=message), serve_store(collection.store.url, ServeConfig(host=host, port=8765)):
        pass
    (tmp_path / "keys").write_text("")
    config = ServeConfig(port=8765, keys_file=os.fspath(tmp_path / "keys"))
    with pytest.raises(ServeError, match="has no key, so nobody could ask"), serve_store(collection.store.url, config):
        pass
