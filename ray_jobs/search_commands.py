"""The commands of `dpr` that answer questions and make keys: search, serve, key."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from dpr.errors import RecipeError
from dpr.formats.lexical_entry import SearchMode
from dpr.recipe_file import load_recipe
from dpr.recipe_section import MAX_PROCESSORS
from dpr.recipe_service import RerankConfig, ServeConfig, Topology
from dpr.search.filters import EXAMPLE as FILTER_EXAMPLE
from dpr.search.filters import parse_filter_text
from dpr.search.hits import Hit, Side
from dpr.store import open_store
from ray_jobs.cli_common import (
    Fields,
    Json,
    Model,
    Rerank,
    RerankLabel,
    RerankTop,
    SnapshotNumber,
    StoreArgument,
    check_effect,
    opened_reranker,
    reranker_fields,
    show,
)
from ray_jobs.output import console

app = typer.Typer()


@app.command()
def search(
    context: typer.Context,
    store: StoreArgument,
    question: Annotated[str, typer.Argument(help="What to ask.")],
    k: Annotated[int, typer.Option("-k", min=1, max=1000, help="Number of hits.")] = 5,
    mode: Annotated[
        SearchMode | None,
        typer.Option(help="Search by vectors, by words (BM25) or by both; default: as the snapshot says."),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Compare all vectors instead of using the index.")] = False,
    snapshot: SnapshotNumber = None,
    model: Model = None,
    rerank: Rerank = None,
    rerank_top: RerankTop = 50,
    rerank_label: RerankLabel = None,
    filter_: Annotated[
        str | None, typer.Option("--filter", metavar="JSON", help=f"Rank only passages that match: {FILTER_EXAMPLE}.")
    ] = None,
    json_: Json = False,
) -> None:
    """Ask a question, without a service."""
    from dpr.search.retrieve import Retriever

    if rerank is None:
        check_effect(context, ("rerank_top", "rerank_label"), "--rerank")
    if not question.strip():
        raise RecipeError("the question is empty; ask one with words")
    where = None if filter_ is None else parse_filter_text(filter_)
    reranker = None if rerank is None else opened_reranker(rerank, rerank_top, rerank_label, k)
    with Retriever.open(open_store(store), snapshot, model) as retriever:
        answer = retriever.search([question], reranker.top if reranker else k, mode=mode, exact=exact, where=where)
    (hits,) = reranker.rerank([question], answer.hits, k) if reranker else answer.hits
    lost_tokens = answer.lost_tokens[0]

    def draw(console: Console) -> None:
        if lost_tokens:
            console.print(f"the question is longer than the encoder's token limit: {lost_tokens:,} tokens were cut off")
        for hit in hits:
            _draw(console, hit)

    document: Fields = {"snapshot": retriever.number, "encoder_id": retriever.body.encoder_id}
    if reranker is not None:
        document["rerank"] = reranker_fields(reranker)
    show(json_, document | {"hits": [asdict(hit) for hit in hits], "lost_tokens": lost_tokens}, draw)


def _draw(console: Console, hit: Hit) -> None:
    console.print(f"{hit.rank}  {hit.score:.3f}  ", end="", highlight=False, style="bold")
    console.print(f"{hit.title}  ({hit.id})", highlight=False, style="cyan")
    sides = [_side("before", hit.before)] if hit.before else []
    if hit.dense and hit.bm25:
        sides += [_side("dense", hit.dense), _side("bm25", hit.bm25)]
    if sides:
        console.print(f"   {', '.join(sides)}", highlight=False, style="dim")
    console.print(f"   {hit.text}\n", highlight=False)
    if hit.extra:
        values = ", ".join(f"{name}: {value}" for name, value in hit.extra.items() if value is not None)
        console.print(f"   {values}\n", highlight=False, style="dim")


def _side(name: str, side: Side) -> str:
    """Describe the result of one kind of search: a rank, or that only the other kind found it."""
    return f"{name} {side.score:.3f} ({'found by the other alone' if side.rank is None else f'rank {side.rank}'})"


@app.command()
def serve(
    context: typer.Context,
    store: StoreArgument,
    host: Annotated[str, typer.Option(help="Address to bind to.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to bind to.")] = 8000,
    replicas: Annotated[
        int, typer.Option(min=1, max=MAX_PROCESSORS, help="Processes that each hold encoder and index.")
    ] = 1,
    topology: Annotated[
        Topology,
        typer.Option(help="single: each replica holds the index; sharded: separate processes each hold a part of it."),
    ] = "single",
    shards: Annotated[
        int, typer.Option(min=1, max=MAX_PROCESSORS, help="Number of these processes, with --topology sharded.")
    ] = 2,
    shard_deadline: Annotated[
        float,
        typer.Option(
            min=0.001, max=60.0, metavar="SECONDS", help="Seconds; shards that take longer are left out of an answer."
        ),
    ] = 1.0,
    model: Model = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="RECIPE", help="Recipe whose section rerank names a cross-encoder.")
    ] = None,
    keys: Annotated[
        str | None, typer.Option(metavar="FILE", help="Hashed keys of who may ask, as `dpr key` writes them.")
    ] = None,
    access_log: Annotated[
        str | None, typer.Option(metavar="FILE", help="Add a line of JSON to this file for each request.")
    ] = None,
    tls_cert: Annotated[
        str | None, typer.Option(metavar="FILE", help="Speak TLS, with the certificate of this PEM file.")
    ] = None,
    tls_key: Annotated[str | None, typer.Option(metavar="FILE", help="PEM file of the certificate's key.")] = None,
    shadow_share: Annotated[
        float,
        typer.Option(min=0.0, max=1.0, help="Share of the questions that are drawn to be compared with exact search."),
    ] = 0.01,
    cache_mb: Annotated[
        float,
        typer.Option(min=0.0, max=1e6, help="Memory for the answer cache of a replica, in 10⁶ bytes; 0: no cache."),
    ] = 32.0,
) -> None:
    """Serve the live snapshot over HTTP until interrupted."""
    if topology != "sharded":
        check_effect(context, ("shards", "shard_deadline"), "--topology sharded")
    from ray_jobs.serve.service import serve_store, wait_for_interrupt

    rerank = _rerank_section(recipe) if recipe is not None else None
    config = ServeConfig(
        host=host,
        port=port,
        replicas=replicas,
        topology=topology,
        shards=shards,
        shard_deadline_seconds=shard_deadline,
        keys_file=keys,
        access_log=access_log,
        tls_cert=tls_cert,
        tls_key=tls_key,
        shadow_share=shadow_share,
        cache_mb=cache_mb,
    )
    with serve_store(store, config, model, rerank) as url:
        console().print(f"serving {store} at {url} (API: {url}/docs); stop with Ctrl-C", highlight=False)
        wait_for_interrupt(url)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Name of the key's owner: letters, digits, and . _ -")],
    file: Annotated[str, typer.Option("--file", metavar="FILE", help="File of keys to which its hash is added.")],
    role: Annotated[
        Literal["search", "admin"], typer.Option(help="What it allows: admin may also use exact search.")
    ] = "search",
) -> None:
    """Make a key of the service, print it once, and add its hash to a file; a running service takes it at once."""
    from ray_jobs.serve.keys import add_key

    print(add_key(Path(file), name, role))


def _rerank_section(path: str) -> RerankConfig:
    found = load_recipe(path).rerank
    if found is None:
        raise RecipeError(
            f"recipe {path} has no section rerank, and dpr serve reads nothing else of it; add one that names a model, "
            "or leave --recipe out"
        )
    return found
