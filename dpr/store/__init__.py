"""Stores: where a collection lives. `open_store` chooses the kind of store by the URL."""

import functools
import os
import re

from dpr.errors import StoreError
from dpr.store.base import PARALLEL_READS, ObjectInfo, Store
from dpr.store.local import LocalStore

__all__ = ["PARALLEL_READS", "LocalStore", "ObjectInfo", "Store", "open_store"]

_MAX_SHARED_STORES = 8
_SCHEME_IN_PATH = re.compile(r"(^|/)s3a?:", re.IGNORECASE)


def open_store(url: str) -> Store:
    """Return the store at `url`: a local folder, or `s3://bucket/prefix`.

    A process has one store for an S3 URL and its AWS settings, since making its client takes a fifth of a second.
    """
    if url.startswith("s3://"):
        settings = tuple(sorted((name, value) for name, value in os.environ.items() if name.startswith("AWS_")))
        return _shared_s3_store(url, settings)
    if "://" in url:
        raise StoreError(
            f"store {url} has the scheme {url.split('://')[0]!r}; a store is a folder or s3://bucket/prefix"
        )
    if _SCHEME_IN_PATH.search(url):  # s3:/bucket/prefix, perhaps below the folder of a recipe
        raise StoreError(f"store {url} is neither a folder nor a URL of S3; write s3://bucket/prefix, with two slashes")
    return LocalStore(url)


@functools.lru_cache(maxsize=_MAX_SHARED_STORES)
def _shared_s3_store(url: str, settings: tuple[tuple[str, str], ...]) -> Store:  # noqa: ARG001
    """Return the store at `url`, which any number of threads and forked processes may use.

    It reads the AWS settings of the environment when it is first used, so other `settings` give another store.
    """
    from dpr.store.s3 import S3Store  # s3fs takes a second to import, and local stores never need it

    return S3Store(url)
