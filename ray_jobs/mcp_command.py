"""The command of `dpr` that lets agents search: mcp."""

import os
import signal
from contextlib import suppress
from importlib.util import find_spec
from typing import TYPE_CHECKING, Annotated

import typer

from dpr.errors import RecipeError
from ray_jobs.cli_common import Model, check_effect
from ray_jobs.output import console
from ray_jobs.serve.doors import Doors
from ray_jobs.serve.listening import Place, checked_keys, listen, numeric_address
from ray_jobs.signals import on_signals, signals_restored

if TYPE_CHECKING:
    from dpr.mcp.server import Server
    from dpr.mcp.tool_sources import ServiceSource, StoreSource

KEY_VARIABLE = "DPR_KEY"
SERVICE = ("http://", "https://")
"""How the address of a service begins."""
STOP_SECONDS = 5
app = typer.Typer()


@app.command()
def mcp(
    context: typer.Context,
    store: Annotated[
        str,
        typer.Argument(
            metavar="STORE",
            help=f"Folder, s3://bucket/prefix, or the address of a running service (its key in {KEY_VARIABLE}).",
        ),
    ],
    http: Annotated[bool, typer.Option("--http", help="Speak HTTP instead of stdin and stdout.")] = False,
    host: Annotated[str, typer.Option(help="Address to bind to, with --http.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind to, with --http.")] = 8001,
    keys: Annotated[
        str | None, typer.Option(metavar="FILE", help="Hashed keys of who may ask, with --http, as `dpr key` writes.")
    ] = None,
    model: Model = None,
    cite: Annotated[
        str | None,
        typer.Option(metavar="TEMPLATE", help="Address under which passages are cited: https://example.org/{id}."),
    ] = None,
) -> None:
    """Let agents search a store, by the tools `search` and `fetch` of an MCP server."""
    if not http:
        check_effect(context, ("host", "port", "keys"), "--http")
    if store.startswith(SERVICE) and model is not None:
        raise RecipeError(f"--model has no effect, since the service at {store} has its own model; leave --model out")
    if find_spec("mcp") is None:
        raise RecipeError("dpr mcp needs the package mcp, which is not here; install it with: pip install 'dpr[mcp]'")
    from dpr.mcp.addresses import Addresses
    from dpr.mcp.server import make_server

    addresses = Addresses() if cite is None else Addresses(cite)
    with _opened(store, model) as source:
        addresses.check_columns(source.why_lacked)
        server = make_server(source, addresses)
        if http:
            _serve_http(server, store, host, port, keys)
        else:
            _serve_stdio(server, source)


def _opened(store: str, model: str | None) -> "StoreSource | ServiceSource":
    from dpr.mcp.tool_sources import ServiceSource, StoreSource

    if store.startswith(SERVICE):
        return ServiceSource(store, os.environ.get(KEY_VARIABLE))
    return StoreSource(store, model)


def _serve_stdio(server: "Server", source: "StoreSource | ServiceSource") -> None:
    """Answer over stdin and stdout until stdin ends, or Ctrl-C or SIGTERM comes."""

    def end(*_: object) -> None:
        source.close()
        os._exit(0)  # a thread reads stdin, and Python would wait for it

    with signals_restored():
        on_signals(end, signal.SIGINT, signal.SIGTERM)
        server.run("stdio")


def _serve_http(server: "Server", store: str, host: str, port: int, keys_file: str | None) -> None:
    """Answer over HTTP until Ctrl-C or SIGTERM."""
    import uvicorn

    from dpr.mcp.server import http_app

    with listen(host, port) as listening, signals_restored():
        # uvicorn closes what is open, and then hands the signal on to this handler: no error, as in `dpr serve`
        on_signals(signal.default_int_handler, signal.SIGINT, signal.SIGTERM)
        address = numeric_address(listening)
        keys = checked_keys(keys_file, host, address)
        inner = http_app(server, address if keys is None else None)
        config = uvicorn.Config(
            inner if keys is None else Doors(inner, keys),
            log_level="warning",
            access_log=False,
            ws="none",
            timeout_graceful_shutdown=STOP_SECONDS,
        )
        url = f"{Place(address, port).url}/mcp"
        console().print(f"MCP server of {store} at {url}; stop with Ctrl-C", highlight=False)
        with suppress(KeyboardInterrupt):
            uvicorn.Server(config).run(sockets=[listening])
