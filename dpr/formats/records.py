"""The base of everything that a store holds as JSON, and references to stored objects.

A unit's result is written as JSON under the unit's record name, after the objects that it names. So a unit is done when
its record exists, and an object that no record names is unfinished work.
"""

from collections.abc import Iterator
from typing import Annotated, TypeVar

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from dpr.errors import IntegrityError, MissingObjectError
from dpr.fingerprint import canonical_json
from dpr.store import Store

OBJECT_NAME = r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*$"
"""Relative names of plain parts: no part begins with a dot, so a name never leaves its folder."""
Identifier = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,80}$")]
"""A fingerprint or another short id, which may become part of an object name."""
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class Document(BaseModel):
    """Base of everything that is stored as JSON: unknown fields are refused, values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    def to_bytes(self) -> bytes:
        """Return canonical JSON: equal documents are equal bytes."""
        return canonical_json(self.model_dump(mode="json"))


class ObjectRef(Document):
    """A stored object and how to recognise it."""

    name: Annotated[str, StringConstraints(pattern=OBJECT_NAME, max_length=500)]
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Result(Document):
    """The result of a finished unit; the base of every stage's result, whose JSON is the unit's record."""

    rows: int
    """Rows that the unit turned out to have."""

    def objects(self) -> Iterator[ObjectRef]:
        """Yield the objects that the unit stored: the references among the fields."""
        for name in type(self).model_fields:
            if isinstance(value := getattr(self, name), ObjectRef):
                yield value


R = TypeVar("R", bound=Result)


def read_record(store: Store, name: str, kind: type[R]) -> R | None:
    """Return the result of a finished unit, or None while the unit is not done.

    Raises IntegrityError for a record that this version cannot read.
    """
    try:
        return kind.model_validate_json(store.get(name))
    except MissingObjectError:
        return None
    except ValidationError as error:
        raise IntegrityError(
            f"object {name} in {store.url} is not a record of this version; delete it, and its unit is done again"
        ) from error


def write_record(store: Store, name: str, result: R) -> R:
    """Declare a unit done and return the result that counts: the first one that was written.

    Call it after all objects of the result are in the store. A second worker returns the result of the first.
    """
    if store.put_if_absent(name, result.to_bytes()):
        return result
    first = read_record(store, name, type(result))
    if first is None:
        raise IntegrityError(f"record {name} of {store.url} was deleted while a run was using it; start the run again")
    return first
