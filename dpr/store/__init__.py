"""Stores: where a collection lives. `open_store` chooses the kind of store by the URL."""

from dpr.errors import StoreError
from dpr.store.base import READERS, ObjectInfo, Store
from dpr.store.local import LocalStore

__all__ = ["READERS", "LocalStore", "ObjectInfo", "Store", "open_store"]


def open_store(url: str) -> Store:
    """Return the store at `url`: a local folder, or `s3://bucket/prefix`."""
    if url.startswith("s3://"):
        from dpr.store.s3 import S3Store  # s3fs takes a second to import, and local stores never need it

        return S3Store(url)
    if "://" in url:
        raise StoreError(
            f"store {url} has the scheme {url.split('://')[0]!r}; a store is a folder or s3://bucket/prefix"
        )
    return LocalStore(url)
