"""The addresses under which agents cite passages."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from string import Formatter
from urllib.parse import quote

from dpr.errors import RecipeError
from dpr.search.hits import Extra

DEFAULT = "dpr:{id}"


@dataclass(frozen=True)
class Addresses:
    """Makes a passage's address from its id and extra columns.

    In `template`, `{id}` and `{NAME}` stand for the id and for extra columns. A column at the beginning of an address
    is inserted unchanged; elsewhere, values are percent-encoded.
    """

    template: str = DEFAULT

    def __post_init__(self) -> None:
        """Raise RecipeError for a template that names no part of a passage."""
        try:
            pieces = list(Formatter().parse(self.template))
        except ValueError as error:
            raise RecipeError(f"--cite {self.template!r} is not a template ({error}); {_ALLOWED}") from error
        names = [name for _, name, _, _ in pieces if name is not None]
        if not all(names) or not names or any(form or change for _, _, form, change in pieces):
            raise RecipeError(f"--cite {self.template!r} does not name parts of a passage in braces; {_ALLOWED}")

    @property
    def columns(self) -> list[str]:
        """Return the extra columns that the template names."""
        names = (name for _, name, _, _ in Formatter().parse(self.template) if name is not None)
        return [name for name in names if name != "id"]

    def check_columns(self, why_lacked: Callable[[str], str | None]) -> None:
        """Raise RecipeError if the passages lack a column that the template names.

        `why_lacked` returns None for a column that they have, else a sentence that names those that they have.
        """
        for name in self.columns:
            if (reason := why_lacked(name)) is not None:
                raise RecipeError(f"--cite {self.template!r} names the extra column {name!r}, and {reason}")

    def of(self, id_: str, extra: Extra) -> str:
        """Return the address of a passage; a column that it does not have is replaced by nothing."""
        values: Mapping[str, object] = {**extra, "id": id_}
        address = ""
        for before, name, _, _ in Formatter().parse(self.template):
            address += before
            value = None if name is None else values.get(name)
            if value is not None:
                address += quote(str(value), safe="") if address else str(value)
        return address


_ALLOWED = "give an address with {id} or names of extra columns, such as https://example.org/{id}, or {link}"
