"""The one sentence that says what is wrong with a request."""

from collections.abc import Mapping
from typing import Any

from dpr.search.filters import EXAMPLE as FILTER_EXAMPLE
from dpr.search.filters import shown
from ray_jobs.serve.embedding_messages import EMBED_EXAMPLE, MAX_INPUT_CHARS, MAX_INPUTS
from ray_jobs.serve.messages import EXAMPLE, MAX_K, MAX_QUERIES, MAX_QUERY_CHARS

_TEXT = f"a text of 1 to {MAX_QUERY_CHARS:,} characters that is not blank and holds no NUL"
_SEARCH = {
    "query": _TEXT,
    "queries": f"a list of 1 to {MAX_QUERIES} texts, each {_TEXT}",
    "k": f"an integer from 1 to {MAX_K}",
    "mode": "dense, bm25 or hybrid",
    "exact": "true or false",
    "rerank": "true or false",
    "filter": f"a filter over the extra columns, such as {FILTER_EXAMPLE}",
}
_EMBED = {
    "input": f"a text of 1 to {MAX_INPUT_CHARS:,} characters that is not blank and holds no NUL, or a list of 1 to "
    f"{MAX_INPUTS} of them",
    "model": "question or passage",
    "dimensions": "a whole number from 1 on, or null",
    "encoding_format": "float or base64",
    "user": "a text, or null",
}
_GZIP = b"\x1f\x8b"
_COMPRESSED = ("gzip", "x-gzip", "deflate", "br", "zstd", "compress")
_OTHER = {"limit": "a whole number from 1 to 100"}
_ALLOWED = {"/v1/search": (_SEARCH, EXAMPLE), "/v1/embeddings": (_EMBED, EMBED_EXAMPLE)}
"""The values that the fields of a route's body may have, and an example of a body."""


def sentence(problem: Mapping[str, Any], path: str, content_type: str) -> str:
    """Return one sentence on the first of pydantic's problems with a request to this path, whose body has this type."""
    kind, where, value = problem["type"], [str(part) for part in problem["loc"][1:]], problem["input"]
    allowed, example = _ALLOWED.get(path, (_OTHER, ""))
    if kind == "json_invalid":
        return f"the body is not JSON ({problem['ctx']['error']}, character {where[0]}); send one such as {example}"
    if kind == "value_error":
        return str(problem["ctx"]["error"])
    if kind == "extra_forbidden":
        return f"field {shown('.'.join(where))} is unknown; the fields are {', '.join(allowed)}"
    if not where and "json" not in content_type.lower():  # so FastAPI does not read it as JSON; curl sends a form
        came = shown(content_type) if content_type else "no type"
        return f"the body came as {came}; send JSON such as {example} with the header Content-Type: application/json"
    if not where:
        return f"the body is not a JSON object; send one such as {example} as Content-Type application/json"
    if where[0] == "input" and _are_tokens(value):
        return (
            "field input holds numbers, and texts alone are encoded, since another tokenizer may have made them; send "
            "the texts themselves (in LangChain's OpenAIEmbeddings: check_embedding_ctx_length=False)"
        )
    if where == ["query"] and isinstance(value, list):
        return f"field query is a list; several questions are sent as queries, {_SEARCH['queries']}"
    if where[0] == "input":  # it also names the types that were tried
        where = where[:1]
    if kind == "missing":
        return f"the body has no field {where[0]}; send one such as {example}"
    return f"field {'.'.join(where)} is {shown(value)}; it must be {allowed[where[0]] if len(where) == 1 else _TEXT}"


def unreadable(cause: BaseException | None, path: str, content_encoding: str) -> str:
    """Return one sentence on a body to this path that could not be parsed because of `cause`.

    `content_encoding` is the header of that name, empty if there is none.
    """
    _, example = _ALLOWED.get(path, (_OTHER, EXAMPLE))
    if isinstance(cause, UnicodeDecodeError):
        packed = "gzip" if cause.object.startswith(_GZIP) else content_encoding.strip().lower()
        if packed in _COMPRESSED:
            return f"the body is compressed ({packed}), and only plain bodies are accepted; send one such as {example}"
        where = f"byte {cause.object[cause.start]:#04x} at position {cause.start:,}"
        return f"the body is not UTF-8 ({where}); send JSON in UTF-8, such as {example}"
    if isinstance(cause, RecursionError):
        return f"the body is nested too deeply; send one such as {example}"
    if isinstance(cause, ValueError):  # Python's limit of 4,300 digits
        return f"the body holds a number with too many digits; send one such as {example}"
    return f"the body is not JSON; send one such as {example}"


def _are_tokens(value: object) -> bool:
    """Return whether a value is a list of token numbers, or of such lists, which OpenAI's own service takes."""
    while isinstance(value, list) and value:
        value = value[0]
    return isinstance(value, int) and not isinstance(value, bool)
