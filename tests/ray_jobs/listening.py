"""Find out from the kernel where processes listen."""

import os
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import NamedTuple

LISTENS = "0A"


class Listener(NamedTuple):
    """A process that listens for TCP; an IPv4 address within IPv6 is given as IPv4."""

    name: str
    address: IPv4Address | IPv6Address
    port: int


def listeners(pids: Iterable[int]) -> set[Listener]:
    """Return who listens where.

    Names are read last: a process that has become HAProxy was called "python" before it had these sockets.
    """
    found = set()
    for pid in pids:
        try:
            places = _listening_at(pid)
            name = Path(f"/proc/{pid}/comm").read_text().strip()
        except OSError:  # it ended meanwhile
            continue
        found |= {Listener(name, address, port) for address, port in places}
    return found


def _listening_at(pid: int) -> set[tuple[IPv4Address | IPv6Address, int]]:
    inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    there = {row[1] for row in rows if row[3] == LISTENS and f"socket:[{row[9]}]" in inodes}
    return {(_address(address), int(port, 16)) for address, port in (written.split(":") for written in there)}


def _address(written: str) -> IPv4Address | IPv6Address:
    raw = bytes.fromhex(written)
    # words of four bytes, each in the order of a little-endian machine
    address = ip_address(b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4)))
    return getattr(address, "ipv4_mapped", None) or address
