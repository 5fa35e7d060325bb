"""The form of every answer other than 200: one sentence, as JSON."""

from collections.abc import Callable, Mapping
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from dpr.errors import DprError, RecipeError, StoreError
from ray_jobs.serve.bad_fields import sentence, unreadable
from ray_jobs.serve.batch import BusyError
from ray_jobs.serve.messages import MAX_BODY_BYTES, ErrorBody

RETRY_SECONDS, MAX_MESSAGE_CHARS = 1, 1000
Responses = dict[int | str, dict[str, Any]]
"""FastAPI's own type: status → what the document says about an answer."""
ERRORS: Responses = {
    401: {"model": ErrorBody, "description": "The service has keys, and the request has none of them."},
    403: {"model": ErrorBody, "description": "The key does not allow this."},
    408: {"model": ErrorBody, "description": "The body took too long to come."},
    413: {"model": ErrorBody, "description": f"The body is larger than {MAX_BODY_BYTES:,} bytes."},
    422: {"model": ErrorBody, "description": "The body is not a request; the sentence says which field, and why."},
    500: {"model": ErrorBody, "description": "The service failed."},
    503: {"model": ErrorBody, "description": "More is asked at once than the service takes; ask again."},
}


def handlers() -> Mapping[Any, Callable[..., Any]]:
    """Return the handler of each kind of error, in FastAPI's form."""
    return {
        RequestValidationError: _bad_request,
        HTTPException: _http_error,
        BusyError: _busy,
        RecipeError: _cannot_be_asked,
        StoreError: _store_error,
        DprError: _own_error,
    }


def refusal(status: int, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return an answer of one sentence, cut if names that somebody sent make it long."""
    message = message.encode("utf-8", "backslashreplace").decode()  # lone surrogates have no UTF-8
    message = message if len(message) <= MAX_MESSAGE_CHARS else f"{message[:MAX_MESSAGE_CHARS]}…"
    return JSONResponse(ErrorBody(error=message).model_dump(), status, headers)


async def _bad_request(request: Request, error: RequestValidationError) -> JSONResponse:
    return refusal(422, sentence(error.errors()[0], request.url.path, request.headers.get("content-type", "")))


async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    path = request.url.path
    if error.status_code == 400:  # FastAPI's, for bytes that are not even the text of wrong JSON; so the same status
        return refusal(422, unreadable(error.__cause__, path, request.headers.get("content-encoding", "")))
    message = {
        404: f"there is nothing at {path}; /docs shows what there is",
        405: f"{path} does not take {request.method}; /docs shows what it takes",
        413: f"the body is larger than {MAX_BODY_BYTES:,} bytes; send fewer questions at once",
    }.get(error.status_code, str(error.detail))
    return refusal(error.status_code, message, error.headers)


async def _busy(_: Request, error: BusyError) -> JSONResponse:
    return refusal(503, str(error), {"Retry-After": str(RETRY_SECONDS)})


async def _cannot_be_asked(_: Request, error: RecipeError) -> JSONResponse:
    return refusal(422, str(error))


async def _store_error(_: Request, error: StoreError) -> JSONResponse:
    return refusal(503, str(error), {"Retry-After": str(RETRY_SECONDS)})


async def _own_error(_: Request, error: DprError) -> JSONResponse:
    return refusal(500, str(error))
