"""TLS of the service: a certificate and its key, checked before anything is started."""

import os
import ssl
from dataclasses import dataclass
from pathlib import Path

from dpr.errors import ServeError
from dpr.recipe_service import ServeConfig

OLDEST = "TLSv1.2"


@dataclass(frozen=True)
class Tls:
    """The files of the certificate, with its chain, and of its key: both PEM."""

    certificate: Path
    key: Path


def tls_of(config: ServeConfig) -> Tls | None:
    """Return the certificate of a configuration; None: the service speaks HTTP without TLS.

    Raises ServeError if only one of both files is named, if they do not belong together, or cannot be used.
    """
    if config.tls_cert is None and config.tls_key is None:
        return None
    if config.tls_cert is None or config.tls_key is None:
        missing = "tls_key (--tls-key)" if config.tls_key is None else "tls_cert (--tls-cert)"
        raise ServeError(f"TLS needs a certificate and its key, and {missing} is not given; name both, or neither")
    tls = Tls(Path(config.tls_cert).absolute(), Path(config.tls_key).absolute())
    for what, path in (("certificate", tls.certificate), ("key", tls.key)):
        if not os.access(path, os.R_OK) or not path.is_file():
            raise ServeError(f"the TLS {what} {path} cannot be read; name a PEM file that this user may read")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.certificate, tls.key, password=_ask_nobody)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        reason = getattr(error, "reason", None) or str(error)
        raise ServeError(
            f"{tls.certificate} and {tls.key} cannot be used for TLS ({reason}); name a certificate in PEM and the key "
            "that belongs to it, which must not be encrypted"
        ) from error
    return tls


def _ask_nobody() -> str:
    # OpenSSL would ask at the terminal
    raise ValueError("the key is encrypted")
