"""Find out from the kernel where processes listen."""

import os
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

LISTENS = "0A"


def listening_at(pid: int) -> set[tuple[IPv4Address | IPv6Address, int]]:
    """Return addresses and ports at which a process listens for TCP; an IPv4 address within IPv6 is given as IPv4."""
    try:
        inodes = {os.readlink(link) for link in Path(f"/proc/{pid}/fd").iterdir()}
    except OSError:  # it ended meanwhile
        return set()
    rows = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
    there = {row[1] for row in rows if row[3] == LISTENS and f"socket:[{row[9]}]" in inodes}
    return {(_address(address), int(port, 16)) for address, port in (written.split(":") for written in there)}


def _address(written: str) -> IPv4Address | IPv6Address:
    raw = bytes.fromhex(written)
    # words of four bytes, each in the order of a little-endian machine
    address = ip_address(b"".join(raw[start : start + 4][::-1] for start in range(0, len(raw), 4)))
    return getattr(address, "ipv4_mapped", None) or address
