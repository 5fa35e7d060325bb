"""Spans, received by a collector that listens in this process and reads them with OpenTelemetry's own definitions."""

import gzip
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span
from opentelemetry.sdk.trace import TracerProvider
from starlette.testclient import TestClient

from dpr.errors import ServeError
from dpr.operations.follow import Follower
from ray_jobs.serve import app as app_module
from ray_jobs.serve.app import make_app
from ray_jobs.serve.keys import KeyRing, add_key
from ray_jobs.serve.traces import DISABLED, ENDPOINTS, EXPORTER, PROTOCOLS, provider_of_environment
from tests.collection import FirstNights

pytestmark = pytest.mark.without_ray
TRACE_ID, PARENT_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
SECRET_QUESTION = "w1 w2 what nobody else may read"


class Collector(ThreadingHTTPServer):
    """Receives spans over HTTP."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Receive)
        self.bodies: list[bytes] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def spans(self) -> list[Span]:
        return [span for body in self.bodies for scope in scopes(body) for span in scope.spans]


def scopes(body: bytes) -> list[object]:
    return [scope for resource in request(body).resource_spans for scope in resource.scope_spans]


def request(body: bytes) -> ExportTraceServiceRequest:
    found = ExportTraceServiceRequest()
    found.ParseFromString(body)
    return found


class _Receive(BaseHTTPRequestHandler):
    server: Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        body = gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body
        assert self.path == "/v1/traces"
        self.server.bodies.append(body)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Print nothing."""


@pytest.fixture
def collector() -> Iterator[Collector]:
    with Collector() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in (*ENDPOINTS, *PROTOCOLS, EXPORTER, DISABLED):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def providers(monkeypatch: pytest.MonkeyPatch) -> list[TracerProvider]:
    """What applications have made of the environment; to be shut down, so that all spans are sent."""
    made: list[TracerProvider] = []

    def remembered() -> TracerProvider | None:
        if (provider := provider_of_environment()) is not None:
            made.append(provider)
        return provider

    monkeypatch.setattr(app_module, "provider_of_environment", remembered)
    return made


@pytest.fixture(scope="module")
def follower(tmp_path_factory: pytest.TempPathFactory, first_nights: FirstNights) -> Iterator[Follower]:
    with Follower(first_nights.copy(tmp_path_factory.mktemp("traces")).store) as made:
        yield made


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in span.attributes}


def test_a_search_is_a_span_with_its_steps_in_the_trace_of_the_asker(
    follower: Follower,
    collector: Collector,
    providers: list[TracerProvider],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(ENDPOINTS[1], collector.url)
    key = add_key(tmp_path / "keys", "alice", "search")
    client = TestClient(make_app(follower, keys=KeyRing(tmp_path / "keys")))
    headers = {"Authorization": f"Bearer {key}", "traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}
    answer = client.post("/v1/search", json={"query": SECRET_QUESTION, "k": 2}, headers=headers)
    refused = client.get("/v1/health")
    (provider,) = providers
    provider.shutdown()

    spans = {span.name: span for span in collector.spans()}
    server, timings = spans.pop("POST /v1/search"), answer.json()["timings_ms"]
    assert (server.trace_id.hex(), server.parent_span_id.hex()) == (TRACE_ID, PARENT_ID)
    assert server.kind == Span.SPAN_KIND_SERVER
    assert attributes(server) == {
        "http.request.method": "POST",
        "url.path": "/v1/search",
        "http.route": "/v1/search",
        "http.response.status_code": 200,
        "dpr.request_id": answer.headers["X-Request-Id"],
        "dpr.snapshot": 1,
        "dpr.questions": 1,
    }
    other = spans.pop("GET")  # who has no key reaches no route
    assert attributes(other)["http.response.status_code"] == refused.status_code == 401
    assert other.trace_id.hex() != TRACE_ID
    assert set(spans) == {"encode", "search"}
    for name, span in spans.items():
        assert (span.trace_id, span.parent_span_id) == (server.trace_id, server.span_id)
        assert (span.end_time_unix_nano - span.start_time_unix_nano) / 1e6 == pytest.approx(timings[name], abs=1e-3)
    assert server.start_time_unix_nano <= spans["encode"].start_time_unix_nano
    assert spans["encode"].end_time_unix_nano == spans["search"].start_time_unix_nano
    assert spans["search"].end_time_unix_nano <= server.end_time_unix_nano
    for body in collector.bodies:
        assert not [secret for secret in (key, SECRET_QUESTION, "nobody") if secret.encode() in body]


def test_a_failure_is_marked(
    follower: Follower, collector: Collector, providers: list[TracerProvider], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENDPOINTS[0], f"{collector.url}/v1/traces")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "our-search")
    client = TestClient(make_app(follower))
    monkeypatch.setattr(Follower, "search", lambda *_, **__: 1 / 0)
    assert client.post("/v1/search", json={"query": "w1"}).status_code == 500
    providers[0].shutdown()
    (span,) = collector.spans()
    assert span.status.code == span.status.STATUS_CODE_ERROR
    (named,) = request(collector.bodies[0]).resource_spans
    assert [pair.value.string_value for pair in named.resource.attributes if pair.key == "service.name"] == [
        "our-search"
    ]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {EXPORTER: "none", ENDPOINTS[1]: "http://127.0.0.1:1"},
        {DISABLED: "true", ENDPOINTS[1]: "http://127.0.0.1:1"},
    ],
)
def test_nothing_is_made_unless_it_is_asked_for(
    follower: Follower, settings: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    assert provider_of_environment() is None
    assert "Traces" not in [middleware.cls.__name__ for middleware in make_app(follower).user_middleware]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({EXPORTER: "jaeger"}, "OTEL_TRACES_EXPORTER is jaeger, and spans are sent with otlp only; set that, or unset"),
        (
            {ENDPOINTS[1]: "http://127.0.0.1:1", PROTOCOLS[1]: "grpc"},
            "OTEL_EXPORTER_OTLP_PROTOCOL is grpc, and spans are sent with http/protobuf only",
        ),
    ],
)
def test_what_cannot_be_done_is_one_sentence(
    settings: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in settings.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(ServeError, match=message):
        provider_of_environment()


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(EXPORTER, "otlp")
    monkeypatch.setitem(sys.modules, "opentelemetry.exporter.otlp.proto.http.trace_exporter", None)
    with pytest.raises(ServeError, match=r"is not installed; pip install 'dpr\[traces\]', or unset OTEL_TRACES"):
        provider_of_environment()
