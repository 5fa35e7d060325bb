"""The HTTP application: POST /v1/search, GET /v1/health, the OpenAPI document and a page that shows it.

It knows nothing of Ray: the deployment wraps it, and any ASGI server can run it.
"""

import time
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpr import __version__
from dpr.errors import DprError, RecipeError
from dpr.operations.follow import Follower
from dpr.search.hits import Hit, Side
from dpr.search.rerank import Reranker
from ray_jobs.serve.api_page import docs_page
from ray_jobs.serve.batch import Batcher
from ray_jobs.serve.filtering import FilterQueue
from ray_jobs.serve.messages import (
    EXAMPLE,
    MAX_BODY_BYTES,
    ErrorBody,
    Health,
    HitSide,
    NamedReranker,
    SearchHit,
    SearchRequest,
    SearchResponse,
    SearchResult,
    Timings,
    sentence,
)
from ray_jobs.serve.reranking import Reranked, RerankQueue

_DESCRIPTION = "Dense passage retrieval: questions in, the passages that answer them out, with scores and timings."
_ERRORS: dict[int | str, dict[str, Any]] = {  # FastAPI's own type
    413: {"model": ErrorBody, "description": f"The body is larger than {MAX_BODY_BYTES:,} bytes."},
    422: {"model": ErrorBody, "description": "The body is not a request; the sentence says which field, and why."},
    500: {"model": ErrorBody, "description": "The service failed."},
    503: {"description": "More requests are under way than the service takes; ask again."},
}


def make_app(follower: Follower, reranker: Reranker | None = None) -> FastAPI:
    """Return the application that answers from the snapshot that `follower` has, re-ranked for those who want it."""
    app = FastAPI(
        title="dpr",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own page loads its scripts from another host: blank behind a closed network
        redoc_url=None,
        exception_handlers={
            RequestValidationError: _bad_request,
            HTTPException: _http_error,
            RecipeError: _cannot_be_asked,
            DprError: _own_error,
            Exception: _bug,
        },
    )
    app.add_middleware(_BodyLimit)
    _add_search(app, follower, RerankQueue(reranker))
    _add_pages(app, follower)
    return app


def _add_search(app: FastAPI, follower: Follower, queue: RerankQueue) -> None:
    batcher, filters = Batcher(follower), FilterQueue(follower)

    @app.post("/v1/search", response_model=SearchResponse, responses=_ERRORS)
    async def search(request: SearchRequest) -> Response:
        """Find the passages that answer one question (`query`) or several (`queries`)."""
        started = time.perf_counter()
        questions = request.questions()
        if request.mode is not None:
            with follower.snapshot() as retriever:
                retriever.check_mode(request.mode)
        reranker = queue.checked(questions, request.k) if request.rerank else None
        way = request.way(reranker.top if reranker else request.k)
        filter_seconds = await filters.prepare(way.where) if way.where else 0.0
        answer = await batcher.search(questions, way)
        found = Reranked(answer.hits)
        if reranker is not None:
            found = await queue.rerank(reranker, questions, answer.hits, request.k)
        results = [
            SearchResult(query=question, hits=[_hit(hit) for hit in hits], lost_tokens=lost_tokens)
            for question, hits, lost_tokens in zip(questions, found.hits, answer.lost_tokens, strict=True)
        ]
        timings = Timings(
            filter=_milliseconds(filter_seconds + answer.filter_seconds),
            encode=_milliseconds(answer.encode_seconds),
            search=_milliseconds(answer.search_seconds),
            rerank=_milliseconds(found.seconds),
            total=_milliseconds(time.perf_counter() - started),
        )
        response = SearchResponse(
            snapshot=answer.snapshot,
            encoder_id=answer.encoder_id,
            reranker=_named(reranker),
            results=results,
            timings_ms=timings,
        )
        return Response(response.model_dump_json(), media_type="application/json")


def _add_pages(app: FastAPI, follower: Follower) -> None:
    @app.get("/v1/health")
    async def health() -> Health:
        """Tell what is served, and whether it is the newest. Answers as soon as a replica is ready."""
        state = follower.state
        with follower.snapshot() as retriever:
            body = retriever.body
            return Health(
                ready=True,
                snapshot=retriever.number,
                encoder_id=body.encoder_id,
                passages=body.passages,
                since=state.since,
                live=state.live,
                loading=state.loading,
                problem=state.problem,
            )

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            docs_page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


class _BodyLimit:
    """Stops reading a body that is too large. Starlette's own limit does not answer in JSON."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        read_bytes = 0

        async def limited() -> Message:
            nonlocal read_bytes
            message = await receive()
            read_bytes += len(message.get("body", b""))
            if read_bytes > MAX_BODY_BYTES:
                raise HTTPException(413)
            return message

        await self._app(scope, limited, send)


def _hit(hit: Hit) -> SearchHit:
    return SearchHit(
        rank=hit.rank,
        score=hit.score,
        id=hit.id,
        title=hit.title,
        text=hit.text,
        extra=hit.extra,
        dense=_side(hit.dense),
        bm25=_side(hit.bm25),
        before=_side(hit.before),
    )


def _named(reranker: Reranker | None) -> NamedReranker | None:
    if reranker is None:
        return None
    return NamedReranker(model=reranker.model, reranker_id=reranker.reranker_id, top=reranker.top)


def _side(side: Side | None) -> HitSide | None:
    return None if side is None else HitSide(rank=side.rank, score=side.score)


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _error(status: int, message: str) -> JSONResponse:
    return JSONResponse(ErrorBody(error=message).model_dump(), status)


async def _bad_request(_: Request, error: RequestValidationError) -> JSONResponse:
    return _error(422, sentence(error.errors()[0]))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    path = request.url.path
    message = {
        400: f"the body is not JSON; send one such as {EXAMPLE}",
        404: f"there is nothing at {path}; /docs shows what there is",
        405: f"{path} does not take {request.method}; /docs shows what it takes",
        413: f"the body is larger than {MAX_BODY_BYTES:,} bytes; send fewer questions at once",
    }.get(error.status_code, str(error.detail))
    # bytes that are no text at all are answered as text that is no JSON
    return _error(422 if error.status_code == 400 else error.status_code, message)


async def _cannot_be_asked(_: Request, error: RecipeError) -> JSONResponse:
    return _error(422, str(error))


async def _own_error(_: Request, error: DprError) -> JSONResponse:
    return _error(500, str(error))


async def _bug(_: Request, error: Exception) -> JSONResponse:
    return _error(500, f"the service failed with {type(error).__name__}; its log has the details")
