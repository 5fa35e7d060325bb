"""The HTTP application: POST /v1/search, the OpenAPI document and a page that shows it; other modules add other routes.

It knows nothing of Ray: the deployment wraps it, and any ASGI server can run it.
"""

import time

from fastapi import FastAPI, Request, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from dpr import __version__
from dpr.answers.search_answer import HitSide, NamedReranker, SearchAnswer, SearchHit, SearchResult, Timings
from dpr.operations.follow import Follower
from dpr.search.hits import Hit, Side
from dpr.search.rerank import Reranker
from ray_jobs.serve.answer_cache import CACHE_MB, AnswerCache
from ray_jobs.serve.api_examples import SEARCHED, answers
from ray_jobs.serve.api_page import docs_page
from ray_jobs.serve.batch import Batcher
from ray_jobs.serve.doors import Doors, role_of
from ray_jobs.serve.embedding_route import add_embeddings
from ray_jobs.serve.filtering import FilterQueue
from ray_jobs.serve.front import AccessLog, Front
from ray_jobs.serve.keys import KeyRing
from ray_jobs.serve.limits import Limits
from ray_jobs.serve.messages import SearchRequest, milliseconds
from ray_jobs.serve.pages import add_pages
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import ERRORS, handlers, refusal
from ray_jobs.serve.reranking import Reranked, RerankQueue
from ray_jobs.serve.shadow import Shadow
from ray_jobs.serve.status_route import DEFAULT_WATCH, Watch, add_status
from ray_jobs.serve.store_routes import add_store_routes
from ray_jobs.serve.traces import Traces, note_steps, provider_of_environment

_DESCRIPTION = "Dense passage retrieval: questions in, the passages that answer them out, with scores and timings."


def make_app(
    follower: Follower,
    reranker: Reranker | None = None,
    keys: KeyRing | None = None,
    access_log: AccessLog | None = None,
    cache_mb: float = CACHE_MB,
    watch: Watch = DEFAULT_WATCH,
) -> FastAPI:
    """Return the application that answers from the snapshot that `follower` has, re-ranked for those who want it.

    `keys`: None: no key is needed, and everything is allowed. `cache_mb`: size of the answer cache; 0: no cache.
    """
    app = FastAPI(
        title="dpr",
        version=__version__,
        description=_DESCRIPTION,
        docs_url=None,  # FastAPI's own page loads its scripts from another host: blank behind a closed network
        redoc_url=None,
        exception_handlers=dict(handlers()),
        # only for the API's description: `Doors` checks keys before anything else
        dependencies=[]
        if keys is None
        else [Security(HTTPBearer(auto_error=False, description="`dpr key` makes keys."))],
    )
    metrics = Metrics()
    app.add_middleware(Limits, metrics=metrics)
    if keys is not None:
        app.add_middleware(Doors, keys=keys)
    if (provider := provider_of_environment()) is not None:
        app.add_middleware(Traces, provider=provider)
    app.add_middleware(Front, metrics=metrics, access_log=access_log)
    batcher = Batcher(follower, metrics, AnswerCache(int(cache_mb * 1e6)) if cache_mb else None)
    _add_search(app, follower, batcher, RerankQueue(reranker), metrics, Shadow(follower, metrics, watch.shadow_share))
    add_embeddings(app, follower, batcher)
    add_store_routes(app, follower)
    add_status(app, follower, metrics, watch)
    _add_documents(app, follower, metrics)
    add_pages(app)
    return app


def _add_search(
    app: FastAPI, follower: Follower, batcher: Batcher, queue: RerankQueue, metrics: Metrics, shadow: Shadow
) -> None:
    filters = FilterQueue(follower)

    @app.post("/v1/search", response_model=SearchAnswer, responses=ERRORS | answers(SEARCHED))
    async def search(request: SearchRequest, http: Request) -> Response:
        """Find the passages that answer one question (`query`) or several (`queries`)."""
        started = time.perf_counter()
        if request.exact and role_of(http.scope) != "admin":
            return refusal(403, "field exact is true, and only keys of role admin may ask for it; leave it out")
        questions = request.questions()
        if request.mode is not None:
            with follower.snapshot() as retriever:
                retriever.check_mode(request.mode)
        reranker = queue.checked(questions, request.k) if request.rerank else None
        options = request.options(reranker.top if reranker else request.k)
        filter_seconds = 0.0
        if options.where is not None:
            filter_seconds = await filters.prepare(options.where)
            metrics.step("filter", filter_seconds)
        answer = await batcher.search(questions, options)
        shadow.draw(questions, options, answer)
        found = Reranked(answer.hits)
        if reranker is not None:
            found = await queue.rerank(reranker, questions, answer.hits, request.k)
            metrics.step("rerank", found.seconds)
        results = [
            SearchResult(query=question, hits=[_hit(hit) for hit in hits], lost_tokens=lost_tokens)
            for question, hits, lost_tokens in zip(questions, found.hits, answer.lost_tokens, strict=True)
        ]
        timings = Timings(
            filter=milliseconds(filter_seconds + answer.filter_seconds),
            encode=milliseconds(answer.encode_seconds),
            search=milliseconds(answer.search_seconds),
            rerank=milliseconds(found.seconds),
            total=milliseconds(time.perf_counter() - started),
        )
        note_steps(http.scope, answer.snapshot, len(questions), timings.steps())
        response = SearchAnswer(
            snapshot=answer.snapshot,
            encoder_id=answer.encoder_id,
            partial=bool(answer.missing_shards),
            missing_shards=list(answer.missing_shards),
            reranker=_named(reranker),
            results=results,
            timings_ms=timings,
        )
        return Response(response.model_dump_json(), media_type="application/json")


def _add_documents(app: FastAPI, follower: Follower, metrics: Metrics) -> None:
    @app.get("/metrics", include_in_schema=False)
    async def measured() -> Response:
        return Response(metrics.text(follower), headers={"Content-Type": CONTENT_TYPE_LATEST})

    @app.get("/docs", include_in_schema=False)
    async def docs() -> HTMLResponse:
        return HTMLResponse(
            docs_page(app.openapi()),
            headers={"Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'"},
        )


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
