"""The HTTP application: its layers, the OpenAPI document and a page that shows it; other modules add the routes.

It knows nothing of Ray: the deployment wraps it, and any ASGI server can run it.
"""

from fastapi import FastAPI, Response, Security
from fastapi.responses import HTMLResponse
from fastapi.security import HTTPBearer
from prometheus_client import CONTENT_TYPE_LATEST

from dpr import __version__
from dpr.operations.follow import Follower
from dpr.search.rerank import Reranker
from ray_jobs.serve.answer_cache import CACHE_MB, AnswerCache
from ray_jobs.serve.api_page import docs_page
from ray_jobs.serve.batch import Batcher
from ray_jobs.serve.doors import Doors
from ray_jobs.serve.embedding_route import add_embeddings
from ray_jobs.serve.filtering import FilterQueue
from ray_jobs.serve.front import AccessLog, Front
from ray_jobs.serve.keys import KeyRing
from ray_jobs.serve.limits import Limits
from ray_jobs.serve.pages import add_pages
from ray_jobs.serve.prometheus import Metrics
from ray_jobs.serve.refusals import handlers
from ray_jobs.serve.reranking import RerankQueue
from ray_jobs.serve.search_route import Searching, add_search
from ray_jobs.serve.shadow import Shadow
from ray_jobs.serve.status_route import DEFAULT_WATCH, Watch, add_status
from ray_jobs.serve.store_routes import add_store_routes
from ray_jobs.serve.traces import Traces, provider_of_environment

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
        redirect_slashes=False,  # behind TLS it would send clients, and their keys, to http://
        telemetry={"tracing": False, "metrics": False, "logs": False},  # `Traces` and `Metrics` do this
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
    shadow = Shadow(follower, metrics, watch.shadow_share)
    add_search(app, Searching(follower, batcher, RerankQueue(reranker), FilterQueue(follower), shadow, metrics))
    add_embeddings(app, follower, batcher)
    add_store_routes(app, follower, keys)
    add_status(app, follower, metrics, watch, keys)
    _add_documents(app, follower, metrics)
    add_pages(app)
    return app


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
