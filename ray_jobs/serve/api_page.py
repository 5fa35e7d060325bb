"""Make the page at /docs: the OpenAPI document as one HTML page that loads nothing from anywhere."""

from importlib.resources import files
from typing import Any

from jinja2 import Environment

Json = dict[str, Any]
"""An OpenAPI document or a part of it, whose fields are of many types."""

_BOUNDS = {
    "minimum": "from {}",
    "maximum": "to {}",
    "minLength": "at least {} characters",
    "maxLength": "at most {} characters",
    "minItems": "at least {} items",
    "maxItems": "at most {} items",
    "default": "default {}",
}


def docs_page(openapi: Json) -> str:
    """Return an OpenAPI document as HTML; everything from the document is escaped."""
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(type=_type, bounds=_bounds, schema_name=_schema_name)
    template = environment.from_string(files("ray_jobs.serve").joinpath("docs.html").read_text(encoding="utf-8"))
    return template.render(openapi=openapi)


def _schema_name(reference: str) -> str:
    return reference.rpartition("/")[2]


def _type(schema: Json) -> str:
    """Return a JSON schema's type in words."""
    if "$ref" in schema:
        return _schema_name(schema["$ref"])
    if "anyOf" in schema:
        return " or ".join(_type(choice) for choice in schema["anyOf"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    return str(schema.get("type", "anything"))


def _bounds(schema: Json) -> str:
    """Return a JSON schema's bounds and default in words."""
    parts = [part for part in [schema, *schema.get("anyOf", [])] if part.get("type") != "null"]
    return ", ".join(words.format(part[key]) for part in parts for key, words in _BOUNDS.items() if key in part)
