"""The role of each field of a file: as the recipe says, or by one of the layouts that are common in the field."""

from collections.abc import Collection, Mapping
from typing import Any, Final
from urllib.parse import unquote

from dpr.corpus.rows import Fields
from dpr.errors import OtherFileError
from dpr.recipe import Columns, CorpusConfig

LAYOUTS: Final = (
    Fields(id="_id"),  # BEIR
    Fields(id="docid"),  # Tevatron
    Fields(title=None, text="contents", title_in_text=True),  # pyserini
)
_NO_PARTITION: Final = "__HIVE_DEFAULT_PARTITION__"


def fields_of(path: str, corpus: CorpusConfig, names: Collection[str], *, title_optional: bool = False) -> Fields:
    """Return which of a file's `names` hold id, title and text. A key of a Hive folder (`lang=en/`) counts as a name.

    Raises CorpusError if one is missing or occurs twice. A title may be missing in the layouts that are recognised, and
    with `title_optional` if the recipe names none.
    """
    partitions = partition_values(path)
    columns, is_default = corpus.columns, has_default_names(corpus.columns)
    fields = Fields(id=columns.id, title=columns.title, text=columns.text)
    if corpus.format == "beir":
        fields = LAYOUTS[0]
    elif is_default:
        fields = next((layout for layout in LAYOUTS if _is_there(layout, names) and "id" not in names), fields)
        if "text" not in names and _is_there(LAYOUTS[2], names):
            fields = Fields(text="contents") if "title" in names else LAYOUTS[2]
    is_known = fields in LAYOUTS
    check_names(path, fields, names, partitions, title_optional=is_known or (title_optional and is_default))
    return fields


def has_default_names(columns: Columns) -> bool:
    """Return whether a recipe leaves the fields of id, title and text unspecified."""
    default = Columns()
    return (columns.id, columns.title, columns.text) == (default.id, default.title, default.text)


def check_names(
    path: str, fields: Fields, names: Collection[str], partitions: Mapping[str, object], *, title_optional: bool
) -> None:
    """Raise CorpusError if a field is not among a file's `names`, nor a key of its folders."""
    given = list(names)
    for role, name in roles(fields):
        is_there = given.count(str(name)) == 1 or name in partitions or str(name).partition(".")[0] in given
        if (is_there and given.count(str(name)) <= 1) or (role == "title" and title_optional):
            continue
        without = " (null: passages have no titles)" if role == "title" else ""
        raise OtherFileError(
            f"corpus file {path} has no column {name!r}, only {given}; set columns.{role} in the recipe{without}", given
        )


def roles(fields: Fields) -> list[tuple[str, str | int]]:
    """Return role and name of the fields that a passage is made of."""
    pairs = (("id", fields.id), ("title", fields.title), ("text", fields.text))
    return [(role, name) for role, name in pairs if name is not None]


def missing_extra(path: str, corpus: CorpusConfig, names: Collection[str]) -> tuple[str, ...]:
    """Return the extra columns of the recipe that a file does not have."""
    there = {*names, *partition_values(path)}
    return tuple(name for name in corpus.columns.extra if not {name, name.partition(".")[0]} & there)


def partition_values(path: str) -> dict[str, str | None]:
    """Return the columns that the folders of a path give, as Hive writes them: `lang=en/year=2024/part.parquet`."""
    pairs = [part.partition("=") for part in path.split("/")[:-1] if "=" in part]
    return {unquote(key): None if value == _NO_PARTITION else unquote(value) for key, _, value in pairs if key}


def value_at(document: Mapping[str, Any], name: str, default: object = None) -> object:
    """Return the value of a field; `meta.id` is the field `id` within `meta`, unless there is one of that name."""
    if name in document or "." not in name:
        return document.get(name, default)
    value: object = document
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return default
        value = value[part]
    return value


def title_and_text(contents: object) -> tuple[object, object]:
    """Divide pyserini's `contents`: the first line is the title, if more lines follow."""
    if not isinstance(contents, str):
        return None, contents
    title, _, text = contents.partition("\n")
    return (title.strip(), text) if text.strip() else (None, contents)


def _is_there(fields: Fields, names: Collection[str]) -> bool:
    return fields.id in names and fields.text in names
