"""Proof, before anything is published, that a store keeps the one promise that publishing rests on."""

from dpr.errors import StoreError
from dpr.store.base import Store, probe_name


def prove_put_if_absent(store: Store) -> None:
    """Raise StoreError unless `store` refuses to create an object that is there already.

    Some S3 servers ignore `If-None-Match: *`: on them the second of two publishers would silently replace what the
    first one published. The proof costs five requests and is needed once per run.
    """
    name = probe_name()
    first, second = b"first", b"second"
    try:
        if not store.put_if_absent(name, first):
            raise StoreError(
                f"store {store.url} claims that the new object {name} was there before; nothing was published, use a "
                "store that honours If-None-Match: *"
            )
        if store.put_if_absent(name, second) or store.get(name) != first:
            raise StoreError(
                f"store {store.url} ignores If-None-Match: * and lets a second writer replace an object, so two runs "
                "could publish over each other; nothing was published, use a store that honours it (AWS S3, Ceph, "
                "a local folder)"
            )
    finally:
        store.delete(name)
