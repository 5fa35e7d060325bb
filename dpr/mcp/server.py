"""The MCP server: `search` and `fetch`, in the form that the connectors of ChatGPT and Claude expect.

`search` returns results with id, title, url and a text to judge them by; `fetch` returns one passage with all of its
text. Both by the official SDK, which gives them as JSON text and as structured content.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError, UnexpectedToolError
from mcp_types import CallToolResult, InputRequiredResult, ToolAnnotations
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.applications import Starlette

from dpr import __version__
from dpr.errors import DprError
from dpr.mcp.addresses import Addresses
from dpr.mcp.tool_sources import Found, Source
from dpr.search.filters import EXAMPLE, shown
from dpr.search.hits import Extra

MAX_K, MAX_QUERY_CHARS, MAX_SHOWN_CHARS = 100, 10_000, 1000
_INSTRUCTIONS = "Search the collection first, then fetch passages by their ids where the shown text is not enough."
_READS_ONLY = ToolAnnotations(read_only_hint=True, idempotent_hint=True, destructive_hint=False, open_world_hint=False)


class Result(BaseModel):
    """A passage that may answer the query."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    id: str
    """Its id, for fetch."""
    title: str
    """Its title, or its id if it has none."""
    url: str
    """Its address, to be cited."""
    text: str
    """Its text; cut with … if it is long."""
    metadata: Mapping[str, str | int | float | bool | None]
    """Its extra columns, which filters may name; its `score`, higher is better; and the `snapshot` it was read from.

    If an extra column is named `score` or `snapshot`, the other value is `search_score` or `search_snapshot`.
    """


class Results(BaseModel):
    """What search returns."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    results: list[Result]
    """The best first."""


Query = Annotated[str, Field(description="What to look for: a question or key words, in plain language.")]
K = Annotated[int, Field(description=f"How many passages, from 1 to {MAX_K}.")]
Where = Annotated[
    dict[str, object] | None,
    Field(
        description='Only passages whose metadata match: a value, {"in": […]}, or a range with gt, gte, lt, lte; '
        'and, or, not combine filters. Such as {"lang": "de", "year": {"gte": 1990}}.'
    ),
]
Id = Annotated[str, Field(description="The id of a passage, as search returned it.")]


_ALLOWED = {
    "query": f"a text of 1 to {MAX_QUERY_CHARS:,} characters",
    "k": f"a whole number from 1 to {MAX_K}",
    "filter": f"null, or an object such as {EXAMPLE}",
    "id": "a text, as search returned it",
}
"""Which values each argument of a tool may have."""


class Server(MCPServer[None]):
    """A server that refuses unknown arguments, which the SDK ignores, and says in one sentence which one is wrong."""

    async def call_tool(
        self, name: str, arguments: dict[str, Any], context: Context[None, Any] | None = None
    ) -> CallToolResult | InputRequiredResult:
        """Call a tool. Raises ToolError for arguments that it does not take."""
        for tool in await self.list_tools():
            known = tool.input_schema["properties"]
            if tool.name == name and (unknown := [each for each in arguments if each not in known]):
                raise ToolError(f"{name} has no argument {shown(unknown[0])}; its arguments are {', '.join(known)}")
        try:
            return await super().call_tool(name, arguments, context)
        except ToolError as error:
            if isinstance(error, UnexpectedToolError) or not isinstance(error.__cause__, ValidationError):
                raise
            problem = error.__cause__.errors()[0]
            argument = str(problem["loc"][0])
            state = "missing" if problem["type"] == "missing" else shown(problem["input"])
            raise ToolError(f"argument {argument} of {name} is {state}; it must be {_ALLOWED[argument]}") from error


def make_server(source: Source, addresses: Addresses) -> Server:
    """Return a server whose tools answer from `source`."""
    server = Server("dpr", title="dpr", version=__version__, instructions=_INSTRUCTIONS, log_level="WARNING")

    # the SDK calls plain functions in threads of their own, so the event loop is not blocked
    @server.tool(annotations=_READS_ONLY)
    def search(query: Query, k: K = 10, filter: Where = None) -> Results:  # noqa: A002 - what an agent sees
        """Find passages of the collection that answer a query, the best first."""
        if not query.strip() or "\x00" in query or len(query) > MAX_QUERY_CHARS:
            raise ToolError(f"query must be a text of 1 to {MAX_QUERY_CHARS:,} characters, not blank and without NUL")
        if not 1 <= k <= MAX_K:
            raise ToolError(f"k is {k}; it must be from 1 to {MAX_K}")
        try:
            found = source.search(query, k, filter)
        except DprError as error:
            raise ToolError(str(error)) from error
        return Results(results=[_result(one, addresses, MAX_SHOWN_CHARS) for one in found])

    @server.tool(annotations=_READS_ONLY)
    def fetch(id: Id) -> Result:  # noqa: A002 - what an agent sees
        """Return a passage of the collection by its id, with all of its text."""
        try:
            found = source.passage(id)
        except DprError as error:
            raise ToolError(str(error)) from error
        if found is None:
            raise ToolError(f"there is no passage with id {id[:100]!r}; ids are those that search returns")
        return _result(found, addresses, len(found.text))

    return server


def http_app(server: Server, host: str | None) -> Starlette:
    """Return the server as an ASGI application: streamable HTTP at /mcp, without sessions, so that any may restart.

    `host`: the loopback address at which no key is needed. Requests for other hosts are refused there, since a page in
    a browser could send them (DNS rebinding). None: a key is needed, which such a page does not have.
    """
    return server.streamable_http_app(stateless_http=True, json_response=True, host=host or "")


def _result(found: Found, addresses: Addresses, max_chars: int) -> Result:
    text = found.text if len(found.text) <= max_chars else f"{found.text[:max_chars]}…"
    about = {"snapshot": found.snapshot} | ({} if found.score is None else {"score": found.score})
    return Result(
        id=found.id,
        title=found.title or found.id,
        url=addresses.of(found.id, found.extra),
        text=text,
        metadata={**{_beside(found.extra, name): value for name, value in about.items()}, **found.extra},
    )


def _beside(extra: Extra, name: str) -> str:
    """Return a name for a value of the search that no extra column has."""
    while name in extra:
        name = f"search_{name}"
    return name
