"""Spans for OpenTelemetry, as an extra (`pip install 'dpr[traces]'`): one a request, and below it one for each step.

They are off unless OpenTelemetry's own environment variables say where spans go. Spans contain no question, no passage
and no key. If a client sends the header `traceparent`, the spans become part of its trace.
"""

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from dpr import __version__
from dpr.errors import ServeError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.trace import Span

ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
EXPORTER, PROTOCOL, DISABLED = "OTEL_TRACES_EXPORTER", "http/protobuf", "OTEL_SDK_DISABLED"
SERVICE = "dpr"
"""Name of the service, unless OTEL_SERVICE_NAME or OTEL_RESOURCE_ATTRIBUTES names it."""
NANOSECONDS = 1_000_000


@dataclass(frozen=True)
class Steps:
    """What a search leaves in the state of its request, for the spans."""

    snapshot: int
    questions: int
    steps_ms: Mapping[str, float]
    """Step → milliseconds, in the order of the steps, of the batch that the questions were part of."""
    ended_ns: int
    """When the last one ended, in nanoseconds since 1970."""


def note_steps(scope: Scope, snapshot: int, questions: int, steps_ms: Mapping[str, float]) -> None:
    """Record the times of a search that has just ended."""
    scope.setdefault("state", {})["steps"] = Steps(snapshot, questions, steps_ms, time.time_ns())


def provider_of_environment() -> "TracerProvider | None":
    """Return the provider that makes and sends spans, as the environment says; None: it wants none.

    Raises ServeError if the package is not installed, or a setting is not supported.
    """
    exporter = os.environ.get(EXPORTER, "otlp" if any(map(os.environ.get, ENDPOINTS)) else "none")
    if exporter == "none" or os.environ.get(DISABLED, "").lower() == "true":
        return None
    protocol = next(filter(None, map(os.environ.get, PROTOCOLS)), PROTOCOL)
    for variable, value, known in ((EXPORTER, exporter, "otlp"), (PROTOCOLS[1], protocol, PROTOCOL)):
        if value != known:
            raise ServeError(f"{variable} is {value}, and spans are sent with {known} only; set that, or unset it")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise ServeError(
            f"the environment asks for OpenTelemetry traces, and {error.name} is not installed; "
            f"pip install 'dpr[traces]', or unset {', '.join((EXPORTER, *ENDPOINTS))}"
        ) from error
    named = Resource.create().attributes
    mine = {SERVICE_VERSION: __version__}
    if str(named[SERVICE_NAME]).startswith("unknown_service"):
        mine[SERVICE_NAME] = SERVICE
    provider = TracerProvider(resource=Resource.create(mine))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider


class Traces:
    """Makes a span of each request."""

    def __init__(self, app: ASGIApp, provider: "TracerProvider") -> None:
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        self._app, self._tracer = app, provider.get_tracer("dpr", __version__)
        self._propagator = TraceContextTextMapPropagator()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        from opentelemetry.trace import SpanKind

        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        asked_by = self._propagator.extract(headers)
        span = self._tracer.start_span(scope["method"], context=asked_by, kind=SpanKind.SERVER)
        status = 0

        async def answer(message: Message) -> None:
            nonlocal status
            status = message["status"] if message["type"] == "http.response.start" else status
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            self._end(span, scope, status)

    def _end(self, span: "Span", scope: Scope, status: int) -> None:
        """Record the outcome of the request, add its steps, and end its span."""
        from opentelemetry.trace import Status, StatusCode

        route, state = getattr(scope.get("route"), "path", None), scope.get("state", {})
        span.set_attributes({"http.request.method": scope["method"], "url.path": scope["path"]})
        if route is not None:
            span.update_name(f"{scope['method']} {route}")
            span.set_attribute("http.route", route)
        if status:
            span.set_attribute("http.response.status_code", status)
        if not status or status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        if "request_id" in state:
            span.set_attribute("dpr.request_id", state["request_id"])
        if isinstance(steps := state.get("steps"), Steps):
            span.set_attributes({"dpr.snapshot": steps.snapshot, "dpr.questions": steps.questions})
            self._add_steps(span, steps)
        span.end()

    def _add_steps(self, span: "Span", steps: Steps) -> None:
        """Add a span for each step.

        Only their lengths are known, so they are placed one after the other up to the end.
        """
        from opentelemetry.trace import set_span_in_context

        below, end = set_span_in_context(span), steps.ended_ns
        for name, milliseconds in reversed([step for step in steps.steps_ms.items() if step[1] > 0]):
            start = end - int(milliseconds * NANOSECONDS)
            self._tracer.start_span(name, context=below, start_time=start).end(end)
            end = start
