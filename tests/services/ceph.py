"""A real Ceph RADOS Gateway, by default on loopback: one monitor, one memory-backed storage daemon, one gateway.

Debian's own packages are downloaded with apt and unpacked into a cache folder (DPR_TEST_CACHE, by default
~/.cache/dpr-tests): nothing is installed, and nothing outlives the tests but that folder.
"""

import contextlib
import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

from tests.services.endpoint import S3Endpoint, free_ports

_PACKAGES = ("ceph-mon", "ceph-osd", "radosgw")
_START_SECONDS = 120

_CONFIGURATION = """
[global]
fsid = {fsid}
mon_host = [v2:127.0.0.1:{mon_port}/0,v1:127.0.0.1:{mon_port_v1}/0]
public_addr = 127.0.0.1
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pg_autoscale_mode = off
mon_allow_pool_size_one = true
paxos_propose_interval = 0.05
osd_crush_chooseleaf_type = 0
run_dir = {folder}
admin_socket =
log_file = {folder}/$name.log
plugin_dir = {libraries}/ceph
erasure_code_dir = {libraries}/ceph/erasure-code
osd_class_dir = {libraries}/rados-classes
[mon.a]
mon_data = {folder}/mon
[osd.0]
osd_data = {folder}/osd
osd_objectstore = memstore
memstore_device_bytes = 4294967296
[client.rgw.a]
rgw_frontends = beast endpoint={host}:{s3_port}
rgw_data = {folder}/rgw
ms_mon_client_mode = crc
"""


# librados, without its binding: argv is a configuration file and a monitor's command in JSON
_MON_COMMAND = """
import ctypes, sys
rados = ctypes.CDLL("librados.so.2")
cluster = ctypes.c_void_p()
configuration, command = sys.argv[1].encode(), ctypes.c_char_p(sys.argv[2].encode())
status = rados.rados_create(ctypes.byref(cluster), None)
status = status or rados.rados_conf_read_file(cluster, configuration)
status = status or rados.rados_connect(cluster)
status = status or rados.rados_mon_command(cluster, ctypes.byref(command), 1, None, 0, None, None, None, None)
sys.exit(f"librados returned {status}" if status else 0)
"""


class CephUnavailableError(Exception):
    """This machine cannot run Ceph; the message says why."""


@contextlib.contextmanager
def ceph_gateway(folder: Path, host: str = "127.0.0.1") -> Iterator[S3Endpoint]:
    """Give a running gateway at this address of this machine, whose data and logs lie below the empty `folder`.

    Raises CephUnavailableError where the packages cannot be had, RuntimeError where they do not run.
    """
    root = _unpacked_packages()
    libraries = next(root.glob("usr/lib/*-linux-gnu"))
    s3_port, mon_port, mon_port_v1 = free_ports(3)
    endpoint = S3Endpoint(f"http://{host}:{s3_port}", uuid.uuid4().hex[:20], uuid.uuid4().hex)
    fsid = str(uuid.uuid4())
    for name in ("mon", "osd", "rgw"):
        (folder / name).mkdir(parents=True)
    configuration = folder / "ceph.conf"
    places = {"host": host, "s3_port": s3_port, "mon_port": mon_port, "mon_port_v1": mon_port_v1}
    configuration.write_text(_CONFIGURATION.format(fsid=fsid, folder=folder, libraries=libraries, **places))
    cluster = _Cluster(root, libraries, configuration)
    try:
        cluster.make_monitor(fsid, f"[v2:127.0.0.1:{mon_port},v1:127.0.0.1:{mon_port_v1}]")
        cluster.start("ceph-mon", "-f", "-i", "a")
        cluster.make_storage()
        cluster.start("ceph-osd", "-f", "-i", "0")
        cluster.start("radosgw", "-f", "-n", "client.rgw.a")
        cluster.wait_for(endpoint.url)
        keys = ("--access-key", endpoint.access_key, "--secret-key", endpoint.secret_key)
        cluster.run("radosgw-admin", "user", "create", "--uid=tests", "--display-name=tests", *keys)
        yield endpoint
    finally:
        cluster.stop()


class _Cluster:
    def __init__(self, root: Path, libraries: Path, configuration: Path) -> None:
        self._folder = configuration.parent
        self._configuration = configuration
        self._programs = root / "usr" / "bin"
        folders = (libraries, libraries / "ceph", root / "usr/lib", root / "lib" / libraries.name)
        self._environment = os.environ | {"LD_LIBRARY_PATH": ":".join(map(str, folders))}
        # the daemons end with the tests even where those are killed
        self._prefix = ("setpriv", "--pdeathsig", "KILL") if shutil.which("setpriv") else ()
        self._daemons: list[subprocess.Popen[bytes]] = []

    def make_monitor(self, fsid: str, addresses: str) -> None:
        monmap = str(self._folder / "monmap")
        self.run("monmaptool", "--create", "--fsid", fsid, "--addv", "a", addresses, monmap)
        self.run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)

    def make_storage(self) -> None:
        osd_uuid = str(uuid.uuid4())
        # the `ceph` command would do this, but it runs on Debian's own Python alone
        command = json.dumps({"prefix": "osd new", "id": 0, "uuid": osd_uuid})
        self._check((sys.executable, "-c", _MON_COMMAND, str(self._configuration), command))
        self.run("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd_uuid)

    def run(self, program: str, *arguments: str) -> None:
        self._check(self._command(program, arguments))

    def start(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.out").open("wb") as out:
            command = (*self._prefix, *self._command(program, arguments))
            self._daemons.append(subprocess.Popen(command, env=self._environment, stdout=out, stderr=out))

    def wait_for(self, url: str) -> None:
        until = time.monotonic() + _START_SECONDS
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        while True:
            try:
                opener.open(url, timeout=2).close()
                return
            except OSError as error:
                outputs = {path.name: path.read_text()[-1000:] for path in self._folder.glob("*.out")}
                if any(daemon.poll() is not None for daemon in self._daemons):
                    raise RuntimeError(f"a Ceph daemon ended: {outputs}") from error
                if time.monotonic() > until:
                    raise RuntimeError(f"Ceph did not start in {_START_SECONDS} s: {outputs}") from error
            time.sleep(0.1)

    def stop(self) -> None:
        for daemon in reversed(self._daemons):
            daemon.kill()  # nothing in memory is worth an orderly end
            daemon.wait()

    def _check(self, command: tuple[str, ...]) -> None:
        done = subprocess.run(command, check=False, env=self._environment, capture_output=True, timeout=_START_SECONDS)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} failed: {done.stderr.decode()[-2000:]}")

    def _command(self, program: str, arguments: tuple[str, ...]) -> tuple[str, ...]:
        return (str(self._programs / program), *arguments, "-c", str(self._configuration))


def _unpacked_packages() -> Path:
    cache = Path(os.environ.get("DPR_TEST_CACHE", "~/.cache/dpr-tests")).expanduser()
    root, ready = cache / "ceph", cache / "ceph" / "complete"
    if ready.exists():
        return root
    if not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise CephUnavailableError("Ceph comes from Debian packages, and this system has no apt-get")
    if os.geteuid() != 0:
        raise CephUnavailableError(f"Ceph's packages are not in {root}, and only root can download them with apt-get")
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "ceph.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # several test runs may start at once
        if not ready.exists():
            shutil.rmtree(root, ignore_errors=True)
            _download(cache / "debs")
            for package in sorted((cache / "debs").glob("*.deb")):
                subprocess.run(("dpkg", "-x", package, root), check=True)
            shutil.rmtree(cache / "debs")
            ready.touch()
    return root


def _download(folder: Path) -> None:
    (folder / "partial").mkdir(parents=True, exist_ok=True)
    options = ("-y", "--no-install-recommends", "--download-only", "-o", f"Dir::Cache::archives={folder}")
    command = ("apt-get", "install", *options, *_PACKAGES)
    if subprocess.run(command, check=False, capture_output=True).returncode == 0:
        return
    subprocess.run(("apt-get", "update"), check=False, capture_output=True)  # a fresh container has no package lists
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    if done.returncode:
        raise CephUnavailableError(f"apt-get cannot download {', '.join(_PACKAGES)}: {done.stderr.strip()[-500:]}")
