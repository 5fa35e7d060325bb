"""Servers that belong to the test session; each starts when the first test needs it."""

import os
import shutil
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from dpr.store import LocalStore, Store, open_store
from tests.services.ceph import CephUnavailableError, ceph_gateway
from tests.services.endpoint import S3Endpoint, free_ports
from tests.services.fault_proxy import FaultProxy


@pytest.fixture(scope="session")
def moto_endpoint() -> Iterator[S3Endpoint]:
    """Give moto's S3. It is quick, checks no credentials, and looks before it writes, so its put-if-absent can race."""
    from moto.server import ThreadedMotoServer  # seconds, and tests of other things run where it is not installed

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield S3Endpoint(f"http://{host}:{port}", "moto-access", "moto-secret")
    server.stop()


@pytest.fixture(scope="session")
def ceph_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """Give a real Ceph RADOS Gateway; skip where it cannot run, unless DPR_REQUIRE_SERVICES=1."""
    folder = tmp_path_factory.mktemp("ceph")
    try:
        with ceph_gateway(folder) as endpoint:
            yield endpoint
    except CephUnavailableError as error:
        if os.environ.get("DPR_REQUIRE_SERVICES") == "1":
            raise
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def nanio_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Endpoint]:
    """Give nanio, a real S3 server over a folder, which ignores If-None-Match."""
    (port,) = free_ports(1)
    endpoint = S3Endpoint(f"http://127.0.0.1:{port}", uuid.uuid4().hex[:20], uuid.uuid4().hex)
    keys = {"NANIO_ACCESS_KEY": endpoint.access_key, "NANIO_SECRET_KEY": endpoint.secret_key}
    folder = tmp_path_factory.mktemp("nanio")
    program = shutil.which("nanio", path=Path(sys.executable).parent)
    assert program, "nanio is not installed; install the test extra"
    command = (program, "serve", "--host", "127.0.0.1", "--port", str(port), "--data-dir", str(folder / "data"))
    with (folder / "out").open("wb") as out:
        server = subprocess.Popen(command, env=os.environ | keys, stdout=out, stderr=out)
    try:
        _wait_for(endpoint.url, server, folder / "out")
        yield endpoint
    finally:
        server.terminate()
        server.wait()


@pytest.fixture
def fault_proxy(moto_endpoint: S3Endpoint) -> Iterator[FaultProxy]:
    """Give a proxy in front of moto that fails where a test wants it to."""
    with FaultProxy(moto_endpoint) as proxy:
        yield proxy


def _wait_for(url: str, server: "subprocess.Popen[bytes]", out: Path) -> None:
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(300):
        try:
            opener.open(url, timeout=2).close()
        except urllib.error.HTTPError as error:
            error.close()  # it answers
        except OSError:
            assert server.poll() is None, out.read_text()
            time.sleep(0.1)
            continue
        return
    raise AssertionError(out.read_text())


@pytest.fixture(params=["local", "moto", "ceph"])
def any_store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Store]:
    """Give an empty store, once of each kind."""
    if request.param == "local":
        yield LocalStore(tmp_path / "store")
        return
    endpoint: S3Endpoint = request.getfixturevalue(f"{request.param}_endpoint")
    bucket = f"bucket-{uuid.uuid4().hex[:8]}"
    endpoint.client().create_bucket(Bucket=bucket)
    with pytest.MonkeyPatch.context() as monkeypatch:
        endpoint.use(monkeypatch)
        yield open_store(f"s3://{bucket}/x")
