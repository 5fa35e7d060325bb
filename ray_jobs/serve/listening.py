"""The addresses at which a server may listen, and the rule that it needs keys if other machines can reach it."""

import errno
import ipaddress
import socket
from dataclasses import dataclass

from dpr.errors import ServeError
from dpr.store.reasons import reason_of
from ray_jobs.serve.keys import KEYS_VARIABLE, KeyRing, key_ring
from ray_jobs.serve.tls import Tls


@dataclass(frozen=True)
class Place:
    """The address at which a server listens."""

    address: str
    """Numeric."""
    port: int
    tls: Tls | None = None

    @property
    def reached_at(self) -> str:
        """Return the address at which this machine reaches it."""
        return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(self.address, self.address)

    @property
    def url(self) -> str:
        """Return the server's URL on this machine."""
        return f"{'http' if self.tls is None else 'https'}://{bracketed(self.reached_at)}:{self.port}"


def bracketed(address: str) -> str:
    """Return a numeric address in the form for a URL."""
    return f"[{address}]" if ":" in address else address


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens. Raises ServeError if none can there."""
    where = f"port {port} of {host}"
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, _, _, _, (address, *_) = min(found, key=lambda info: info[0] != socket.AF_INET)
        return socket.create_server((address, port), family=family)
    except socket.gaierror as error:
        raise ServeError(f"host {host} is unknown here; name an address of this machine with --host") from error
    except OSError as error:
        reason = {
            errno.EADDRINUSE: f"{where} is in use; stop what listens there, or choose another port with --port",
            errno.EADDRNOTAVAIL: f"{host} is not an address of this machine; name one of its own with --host",
            errno.EACCES: f"{where} may not be used by this user; choose a port from 1024 on with --port",
        }.get(error.errno or 0, f"{where} cannot be listened at: {reason_of(error)}; choose another")
        raise ServeError(reason) from error


def numeric_address(listening: socket.socket) -> str:
    """Return the numeric address at which a socket listens."""
    return str(listening.getsockname()[0])


def checked_keys(keys_file: str | None, host: str, address: str) -> KeyRing | None:
    """Return the keys; None if there are none.

    Raises ServeError for keys that cannot be used, and if other machines could ask without one.
    """
    keys = key_ring(keys_file)
    if keys is None and not ipaddress.ip_address(address).is_loopback:
        raise ServeError(
            f"{host} can be reached from other machines, and the service has no keys; make some with `dpr key` "
            f"and name their file with --keys (or in {KEYS_VARIABLE}), or listen at 127.0.0.1"
        )
    return keys
