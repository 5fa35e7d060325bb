"""POST /v1/search.

A body that is valid is read and answered without FastAPI's own steps, which took as long as all others of a request in
the event loop (docs/log.md). Any other goes FastAPI's way, so that refusals and the OpenAPI document are FastAPI's.
"""

import time
from dataclasses import dataclass

import orjson
from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.types import Message, Receive, Scope, Send

from dpr.answers.search_answer import SearchAnswer
from dpr.operations.follow import Follower
from dpr.search.rerank import Reranker
from ray_jobs.serve.api_examples import SEARCHED, answers
from ray_jobs.serve.batch import Batcher
from ray_jobs.serve.doors import role_of
from ray_jobs.serve.filtering import FilterQueue
from ray_jobs.serve.messages import SearchRequest, milliseconds
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import ERRORS, refusal
from ray_jobs.serve.reranking import Reranked, RerankQueue
from ray_jobs.serve.shadow import Shadow
from ray_jobs.serve.traces import note_steps


class QuickRoute(APIRoute):
    """Reads a valid body at once; everything else goes FastAPI's way."""

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See Starlette's Route."""
        if scope["method"] != "POST" or not _is_json(scope):
            await super().handle(scope, receive, send)
            return
        http = Request(scope, receive)
        body = await http.body()
        try:
            request = SearchRequest.model_validate_json(body)
        except ValidationError:
            await super().handle(scope, _received(body, receive), send)
            return
        response: Response = await self.endpoint(request, http)
        await response(scope, receive, send)


def _is_json(scope: Scope) -> bool:
    kinds = [value for name, value in scope["headers"] if name == b"content-type"]
    return len(kinds) == 1 and kinds[0].partition(b";")[0].strip().lower() == b"application/json"


def _received(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives a body which was read already, and then what follows it."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


@dataclass(frozen=True)
class Searching:
    """What answers a search."""

    follower: Follower
    batcher: Batcher
    rerank: RerankQueue
    filters: FilterQueue
    shadow: Shadow
    metrics: Metrics

    async def answer(self, request: SearchRequest, http: Request) -> Response:
        """Return the answer to a request."""
        started = time.perf_counter()
        if request.exact and role_of(http.scope) != "admin":
            return refusal(403, "field exact is true, and only keys of role admin may ask for it; leave it out")
        questions = request.questions()
        if request.mode is not None:
            with self.follower.snapshot() as retriever:
                retriever.check_mode(request.mode)
        reranker = self.rerank.checked(questions, request.k) if request.rerank else None
        options = request.options(reranker.top if reranker else request.k)
        filter_seconds = 0.0
        if options.where is not None:
            filter_seconds = await self.filters.prepare(options.where)
            self.metrics.step("filter", filter_seconds)
        answer = await self.batcher.search(questions, options)
        self.shadow.draw(questions, options, answer)
        found = Reranked(answer.hits)
        if reranker is not None:
            found = await self.rerank.rerank(reranker, questions, answer.hits, request.k)
            self.metrics.step("rerank", found.seconds)
        timings = {
            "filter": milliseconds(filter_seconds + answer.filter_seconds),
            "encode": milliseconds(answer.encode_seconds),
            "search": milliseconds(answer.search_seconds),
            "rerank": milliseconds(found.seconds),
        }
        note_steps(http.scope, answer.snapshot, len(questions), timings)
        results = zip(questions, found.hits, answer.lost_tokens, strict=True)
        return _json(
            {  # the fields of SearchAnswer in their order; to make models of them takes as long as to search
                "snapshot": answer.snapshot,
                "encoder_id": answer.encoder_id,
                "partial": bool(answer.missing_shards),
                "missing_shards": answer.missing_shards,
                "reranker": _named(reranker),
                "results": [{"query": each, "hits": hits, "lost_tokens": lost} for each, hits, lost in results],
                "timings_ms": timings | {"total": milliseconds(time.perf_counter() - started)},
            }
        )


def add_search(app: FastAPI, searching: Searching) -> None:
    """Add the route."""

    async def search(request: SearchRequest, http: Request) -> Response:
        """Find the passages that answer one question (`query`) or several (`queries`)."""
        return await searching.answer(request, http)

    app.router.add_api_route(
        "/v1/search",
        search,
        methods=["POST"],
        response_model=SearchAnswer,
        responses=ERRORS | answers(SEARCHED),
        route_class_override=QuickRoute,
    )


def _json(answer: dict[str, object]) -> Response:
    return Response(orjson.dumps(answer), media_type="application/json")


def _named(reranker: Reranker | None) -> dict[str, object] | None:
    if reranker is None:
        return None
    return {"model": reranker.model, "reranker_id": reranker.reranker_id, "top": reranker.top}
