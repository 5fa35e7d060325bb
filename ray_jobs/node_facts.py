"""The facts of one machine: versions, clock, memory, disks, GPUs, and where its Ray can be reached from."""

import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from ipaddress import ip_address
from pathlib import Path

from dpr.store.cache import local_cache

PACKAGES = ("dpr", "ray", "torch", "transformers", "tokenizers", "faiss-cpu", "numpy", "pyarrow", "bm25s")
"""Packages whose versions must be the same everywhere: vectors, codes, words or messages between machines depend on
them."""
_LISTENS = "0A"
_RAY_PROCESSES = ("raylet", "gcs_server", "ray::", "dashboard", "ray_client")
_SMI = ("nvidia-smi", "--query-gpu=name,ecc.errors.uncorrected.volatile.total", "--format=csv,noheader")
_SMI_SECONDS = 30


@dataclass(frozen=True)
class NodeFacts:
    """One machine, as a process on it sees it."""

    name: str
    versions: dict[str, str]
    """Python's, and those of PACKAGES that are installed."""
    clock: float
    """When it was inspected, in seconds since 1970."""
    shared_bytes: int
    """Size of /dev/shm; 0 if there is none."""
    cache: str
    """The cache's folder."""
    cache_free_bytes: int | None
    """None if the cache cannot be written."""
    gpus: tuple[str, ...]
    gpu_faults: tuple[str, ...]
    """Faults of its GPUs, a sentence each."""
    reachable: tuple[str, ...]
    """Addresses beyond loopback at which Ray's processes listen: `process address:port`."""
    is_root: bool
    """Whether Ray runs as root."""


def facts_here() -> NodeFacts:
    """Look at this machine."""
    gpus, faults = _gpus()
    cache = local_cache().folder
    return NodeFacts(
        name=socket.gethostname(),
        versions=versions_here(),
        clock=time.time(),
        shared_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else 0,
        cache=str(cache),
        cache_free_bytes=_free_bytes(cache),
        gpus=gpus,
        gpu_faults=faults,
        reachable=tuple(sorted(_reachable())),
        is_root=os.geteuid() == 0,
    )


def versions_here() -> dict[str, str]:
    """Return Python's version, and those of PACKAGES that are installed.

    What follows a plus sign names the build, such as one for GPUs, which need not be the same everywhere.
    """
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            found[package] = version(package).partition("+")[0]
    return found


def _free_bytes(folder: Path) -> int | None:
    """Return the bytes that are free for a folder, which is made; None if it cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return shutil.disk_usage(folder).free if os.access(folder, os.W_OK | os.X_OK) else None
    except OSError:
        return None


def _gpus() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the names of the GPUs, and what NVIDIA's own tool finds wrong; nothing on a machine without the tool."""
    if shutil.which(_SMI[0]) is None:
        return (), ()
    try:
        found = subprocess.run(_SMI, capture_output=True, text=True, timeout=_SMI_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return (), (f"nvidia-smi does not answer ({error})",)
    if found.returncode:
        return (), (f"nvidia-smi fails: {' '.join((found.stdout + found.stderr).split())[:200]}",)
    rows = [line.rpartition(",") for line in found.stdout.splitlines() if line.strip()]
    names = tuple(name.strip() for name, _, _ in rows)
    faults = (
        f"GPU {number} ({name.strip()}) has {errors.strip()} memory errors that could not be corrected"
        for number, (name, _, errors) in enumerate(rows)
        if errors.strip().isdecimal() and int(errors)
    )
    return names, tuple(faults)


def _reachable() -> Iterator[str]:
    """Yield the addresses of Ray's processes that other machines can reach, as far as this user may look."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            name = process.joinpath("comm").read_text().strip()
            if name.startswith(_RAY_PROCESSES):
                yield from (f"{name} {place}" for place in _listening(process))
        except OSError:  # it has ended, or belongs to another user
            continue


def _listening(process: Path) -> Iterator[str]:
    """Yield `address:port` of each TCP socket at which a process listens beyond loopback."""
    inodes = {os.readlink(link) for link in process.joinpath("fd").iterdir()}
    for table in ("tcp", "tcp6"):
        for line in process.joinpath("net", table).read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == _LISTENS and f"socket:[{row[9]}]" in inodes:
                written, _, port = row[1].partition(":")
                raw = bytes.fromhex(written)
                # groups of four bytes, each in little-endian order
                address = ip_address(b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4)))
                address = getattr(address, "ipv4_mapped", None) or address
                if not address.is_loopback:
                    yield f"{address}:{int(port, 16)}"
