"""Spans as a collector gets them, over OTLP/HTTP, and what upstreams are told of them."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from msgspec.structs import replace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.execution.trace import SAMPLED, Trace
from gateway.observe.traces import Traces
from tests.execution.support import CHAT, CONTENT, DONE, FINISH, Running, chain, running
from tests.fakes.client import post
from tests.fakes.upstream import (
    Pause,
    ScriptedUpstream,
    Send,
    Step,
    chunk,
    json_answer,
    refused_url,
    sse,
    sse_head,
    status,
)
from tests.routing.planning import BOXES, serve, snapshot
from tests.running import Config, until

PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
TRACE_ID, PARENT_ID = bytes.fromhex(PARENT[3:35]), bytes.fromhex(PARENT[36:52])
SERVER, CLIENT, UNSET, ERROR = 2, 3, 0, 2

USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 7,
    "prompt_tokens_details": {"cached_tokens": 3},
    "completion_tokens_details": {"reasoning_tokens": 2},
}


class Collector:
    """An OTLP/HTTP receiver. `spans` are all that it got, in the order of their ends."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.resources: list[dict[str, object]] = []
        self.status = 200
        app = web.Application()
        app.add_routes([web.post("/v1/traces", self.take)])
        self.server = TestServer(app)

    async def take(self, request: web.Request) -> web.Response:
        assert request.content_type == "application/x-protobuf"
        if self.status == 200:
            for part in ExportTraceServiceRequest.FromString(await request.read()).resource_spans:
                self.resources.append(attributes(part.resource))
                self.spans += (span for scope in part.scope_spans for span in scope.spans)
        return web.Response(status=self.status, content_type="application/x-protobuf")

    async def got(self, number: int) -> list[Any]:
        """Wait for so many spans; give them, the request's first."""
        await until(lambda: len(self.spans) >= number)
        assert len(self.spans) == number, self.spans
        return sorted(self.spans, key=lambda span: (span.kind != SERVER, span.start_time_unix_nano))


def attributes(holder: Any) -> dict[str, object]:
    return {each.key: getattr(each.value, each.value.WhichOneof("value")) for each in holder.attributes}


@pytest.fixture
async def collector() -> AsyncIterator[Collector]:
    made = Collector()
    await made.server.start_server(shutdown_timeout=0.1)
    yield made
    await made.server.close()


Variables = Callable[..., None]


@pytest.fixture
def variables(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> Variables:
    """Set the variables that ask for traces: the SDK reads the process's own."""

    def given(**more: str) -> None:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": str(collector.server.make_url("/")),
            "OTEL_BSP_SCHEDULE_DELAY": "20",
            **more,
        }
        for name, value in environ.items():
            monkeypatch.setenv(name, value)

    return given


@asynccontextmanager
async def traced(config: Config, *urls: str) -> AsyncIterator[Running]:
    async with running(config, {"m": chain(*urls)}, retries={"ratio": 0}) as gate:
        yield gate


def parents_of(upstream: ScriptedUpstream) -> list[str]:
    return [request.values("traceparent")[0] for request in upstream.requests]


async def test_what_the_collector_is_told_in_headers_is_in_no_log_line(config: Config, variables: Variables) -> None:
    variables(OTEL_EXPORTER_OTLP_HEADERS="authorization=Bearer%20key-99%0A")
    async with ScriptedUpstream() as box, traced(config, box.url) as gate:
        gate.gateway.log.error("library.message", message="header value: 'Bearer key-99\\n'")
        told = [record["message"] for record in await gate.log() if record["event"] == "library.message"]
        assert told == ["header value: '***'"]


async def test_a_request_is_a_span_and_each_attempt_a_child(
    config: Config, collector: Collector, variables: Variables
) -> None:
    variables()
    async with (
        ScriptedUpstream([Send(status(503, "No"))]) as a,
        ScriptedUpstream([Send(json_answer({"choices": [{"message": {"content": "hi"}}], "usage": USAGE}))]) as b,
    ):
        async with traced(config, a.url, b.url) as gate:
            answer = await gate.say(
                post(
                    CHAT, {"model": "m"}, [("traceparent", PARENT), ("tracestate", "vendor=1"), ("x-request-id", "r-1")]
                )
            )
            assert answer.status == 200
            request, first, second = await collector.got(3)
        assert parents_of(a) == [f"00-{TRACE_ID.hex()}-{first.span_id.hex()}-01"]
        assert parents_of(b) == [f"00-{TRACE_ID.hex()}-{second.span_id.hex()}-01"]
        assert b.requests[0].values("tracestate") == ["vendor=1"]
    assert [span.trace_id for span in (request, first, second)] == [TRACE_ID] * 3
    assert (request.parent_span_id, first.parent_span_id, second.parent_span_id) == (
        PARENT_ID,
        request.span_id,
        request.span_id,
    )
    assert len({request.span_id, first.span_id, second.span_id}) == 3
    assert [(span.name, span.kind, span.status.code, span.trace_state) for span in (request, first, second)] == [
        ("POST /v1/chat/completions", SERVER, UNSET, "vendor=1"),
        ("chat m", CLIENT, ERROR, "vendor=1"),
        ("chat m", CLIENT, UNSET, "vendor=1"),
    ]
    assert request.start_time_unix_nano <= first.start_time_unix_nano < first.end_time_unix_nano
    assert first.end_time_unix_nano <= second.start_time_unix_nano + 1_000_000
    assert second.end_time_unix_nano <= request.end_time_unix_nano + 1_000_000
    assert attributes(request) == {
        "http.request.method": "POST",
        "http.route": "/v1/chat/completions",
        "url.path": "/v1/chat/completions",
        "url.scheme": "http",
        "http.response.status_code": 200,
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.response.model": "m",
        "gateway.request_id": "r-1",
        "gateway.generation": 1,
        "gateway.attempts": 2,
        "gateway.deployment": "b",
        "gateway.fallback": True,
    }
    host, port = "127.0.0.1", int(a.url.rpartition(":")[2])
    assert attributes(first) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "vllm",
        "gen_ai.request.model": "m",
        "http.response.status_code": 503,
        "error.type": attributes(first)["error.type"],
        "server.address": host,
        "server.port": port,
        "gateway.model": "m",
        "gateway.deployment": "a",
        "gateway.group": "unlisted",
    }
    told = attributes(second)
    assert {name: value for name, value in told.items() if "usage" in name} == {
        "gen_ai.usage.input_tokens": 5,
        "gen_ai.usage.output_tokens": 7,
        "gen_ai.usage.cache_read.input_tokens": 3,
        "gen_ai.usage.reasoning.output_tokens": 2,
    }
    assert (told["gen_ai.response.model"], told["gateway.deployment"]) == ("m", "b")
    assert {resource["service.name"] for resource in collector.resources} == {"hybrid-inference-gateway"}


async def test_a_stream_tells_its_first_chunk(config: Config, collector: Collector, variables: Variables) -> None:
    variables(OTEL_SERVICE_NAME="edge")
    usage = sse('{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}')
    script: list[Step] = [Send(sse_head() + chunk(CONTENT + FINISH + usage + DONE) + chunk(b""))]
    async with ScriptedUpstream(script) as box, traced(config, box.url) as gate:
        await gate.say(post(CHAT, {"model": "m", "stream": True}))
        request, attempt = await collector.got(2)
    told, below = attributes(request), attributes(attempt)
    assert (told["gen_ai.request.stream"], below["gen_ai.request.stream"]) == (True, True)
    first, from_attempt = told["gen_ai.response.time_to_first_chunk"], below["gen_ai.response.time_to_first_chunk"]
    assert isinstance(first, float)
    assert isinstance(from_attempt, float)
    assert 0 < from_attempt <= first
    assert below["gen_ai.usage.output_tokens"] == 2
    assert request.parent_span_id == b""
    assert collector.resources[0]["service.name"] == "edge"


async def test_what_is_refused_or_fails_is_told(config: Config, collector: Collector, variables: Variables) -> None:
    variables()
    async with traced(config, refused_url()) as gate:
        assert (await gate.post("other")).status == 404
        (request,) = await collector.got(1)
        assert (request.status.code, attributes(request)["error.type"]) == (UNSET, "model_not_found")
        collector.spans.clear()
        assert (await gate.post({"model": "m", "input": "x"}, "/v1/embeddings")).status == 502
        request, attempt = await collector.got(2)
    assert (request.name, attempt.name) == ("POST /v1/embeddings", "embeddings m")
    assert (request.status.code, request.status.message, attributes(request)["http.response.status_code"]) == (
        ERROR,
        "connect_refused",
        502,
    )
    assert (attempt.status.message, attributes(attempt)["error.type"]) == ("ECONNREFUSED", "connect_refused")


async def test_what_the_caller_does_not_record_is_not_recorded(
    config: Config, collector: Collector, variables: Variables
) -> None:
    variables()
    async with ScriptedUpstream([Send(json_answer({}))]) as box, traced(config, box.url) as gate:
        await gate.say(post(CHAT, {"model": "m"}, [("traceparent", PARENT[:-1] + "0")]))
        await gate.say(post(CHAT, {"model": "m"}, [("traceparent", PARENT)]))
        await collector.got(2)
        unrecorded, recorded = parents_of(box)
    assert unrecorded[:36] == recorded[:36] == PARENT[:36]
    assert (unrecorded[-3:], recorded[-3:]) == ("-00", "-01")
    assert PARENT[36:52] not in {unrecorded[36:52], recorded[36:52]}


async def test_a_malformed_traceparent_is_not_passed_on(config: Config, variables: Variables) -> None:
    variables()
    async with ScriptedUpstream([Send(json_answer({}))]) as box, traced(config, box.url) as gate:
        await gate.say(post(CHAT, {"model": "m"}, [("traceparent", "00-nonsense"), ("tracestate", "vendor=1")]))
        (request,) = box.requests
    assert request.values("traceparent")[0].endswith("-03")
    assert request.values("tracestate") == []


@pytest.mark.parametrize(("state", "passed"), [("Session=abc1", []), ("1session=abc1", ["1session=abc1"])])
async def test_a_tracestate_that_cannot_be_read_is_not_logged(
    config: Config, collector: Collector, variables: Variables, state: str, passed: list[str]
) -> None:
    variables()
    async with ScriptedUpstream([Send(json_answer({}))]) as box, traced(config, box.url) as gate:
        await gate.say(post(CHAT, {"model": "m"}, [("traceparent", PARENT), ("tracestate", state)]))
        spans = await collector.got(2)
        (request,) = box.requests
    assert (request.values("tracestate"), {span.trace_state for span in spans}) == (passed, {""})
    assert config.records("library.message") == []
    assert "abc1" not in config.log.read_text()


@pytest.mark.parametrize("off", [{"OTEL_SDK_DISABLED": "true"}, {"OTEL_TRACES_EXPORTER": "none"}])
async def test_without_traces_the_callers_fields_pass(
    config: Config, collector: Collector, variables: Variables, off: dict[str, str]
) -> None:
    variables(**off)
    async with ScriptedUpstream([Send(json_answer({}))]) as box, traced(config, box.url) as gate:
        await gate.say(post(CHAT, {"model": "m"}, [("traceparent", "what-ever"), ("tracestate", "vendor=1")]))
        (request,) = box.requests
        outcome = await gate.outcome()
    assert (request.values("traceparent"), request.values("tracestate")) == (["what-ever"], ["vendor=1"])
    assert (outcome.trace, outcome.attempts[0].span_id) == (None, None)
    assert collector.spans == []


async def test_requests_in_flight_are_told_as_they_were_routed(
    config: Config, collector: Collector, variables: Variables
) -> None:
    variables()
    go_on = asyncio.Event()
    script = [Pause(go_on), Send(json_answer({}))]
    async with ScriptedUpstream(script) as box, traced(config, box.url) as gate:
        in_flight = asyncio.create_task(gate.post("m"))
        await until(lambda: box.requests)
        config.models(m={"a": {"base_url": box.url, "kind": "gemini", "provider_model_id": "big"}})
        await until(lambda: gate.gateway.manager.snapshot and gate.gateway.manager.snapshot.generation == 2)
        go_on.set()
        assert (await in_flight).status == 200
        _, before = await collector.got(2)
        collector.spans.clear()
        assert (await gate.post("m")).status == 200
        _, after = await collector.got(2)
    told = [(span["gen_ai.provider.name"], span["gen_ai.request.model"]) for span in map(attributes, (before, after))]
    assert told == [("vllm", "m"), ("gcp.gemini", "big")]


async def test_all_that_is_left_is_exported_at_the_end(
    config: Config, collector: Collector, variables: Variables
) -> None:
    variables(OTEL_BSP_SCHEDULE_DELAY="600000")
    async with ScriptedUpstream([Send(json_answer({}))]) as box:
        async with traced(config, box.url) as gate:
            for _ in range(3):
                await gate.post("m")
            assert collector.spans == []
        assert len(collector.spans) == 6


async def test_a_collector_that_refuses_costs_spans_and_is_told(
    config: Config, collector: Collector, variables: Variables
) -> None:
    variables()
    async with ScriptedUpstream([Send(json_answer({}))]) as box, traced(config, box.url) as gate:
        collector.status = 400
        assert (await gate.post("m")).status == 200
        await until(lambda: gate.gateway.tracing.traces and gate.gateway.tracing.traces._failed)
        collector.status = 200
        assert (await gate.post("m")).status == 200
        await collector.got(2)
        await until(lambda: config.records("traces.dropped"))
        assert [record["count"] for record in config.records("traces.dropped")] == [1]


class Held(SpanExporter):
    """An exporter that waits to be let go, or fails."""

    def __init__(self, *, fails: bool = False) -> None:
        self.let_go = threading.Event()
        self.entered = threading.Event()
        self.fails = fails
        self.spans: list[ReadableSpan] = []
        self.is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        self.entered.set()
        assert self.let_go.wait(20)
        if self.fails:
            self.fails = False
            raise RuntimeError("a collector's own")
        self.spans += spans
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        self.is_shut = True
        self.let_go.set()


def outcome(**more: Any) -> Outcome:
    trace = Trace(0xABC, 0xDEF, None, SAMPLED)
    attempt = Attempt("llama", "a", "local", 1.0, 200, span_id=0x123, **more)
    return Outcome(
        request_id="r",
        operation="chat/completions",
        model="llama",
        served_model="llama",
        generation=1,
        stream=False,
        status=200,
        attempts=(attempt,),
        fallback=False,
        duration=2.0,
        usage=Usage(1, 2),
        trace=trace,
    )


@pytest.fixture
def held() -> Iterator[Held]:
    exporter = Held()
    yield exporter
    exporter.let_go.set()


def test_a_full_queue_takes_no_more_and_says_so(held: Held) -> None:
    dropped: list[int] = []
    traces = Traces(held, capacity=300, delay=600)
    traces.start(dropped.append)
    for _ in range(257):
        traces.put(outcome())
    assert held.entered.wait(20)
    for _ in range(302):
        traces.put(outcome())
    held.let_go.set()
    traces.close(20)
    assert len(held.spans) + 2 * sum(dropped) == 2 * (257 + 302)
    assert sum(dropped) >= 2
    assert held.is_shut


def test_an_exporter_that_raises_ends_nothing(held: Held, caplog: pytest.LogCaptureFixture) -> None:
    dropped: list[int] = []
    held.fails = True
    held.let_go.set()
    traces = Traces(held, delay=600)
    traces.start(dropped.append)
    traces.put(outcome())
    traces.close(20)
    assert (dropped, held.spans, held.is_shut) == ([1], [], True)
    assert "spans could not be exported" in caplog.text


@pytest.mark.parametrize("fails", [False, True])
def test_the_end_does_not_wait_for_a_collector_that_hangs(
    held: Held, caplog: pytest.LogCaptureFixture, *, fails: bool
) -> None:
    dropped: list[int] = []
    held.fails = fails
    traces = Traces(held, capacity=600, delay=600)
    traces.start(dropped.append)
    for _ in range(257):
        traces.put(outcome())
    assert held.entered.wait(20)
    for _ in range(700):
        traces.put(outcome())
    traces.close(0)
    assert dropped == [257 + 700]
    traces._thread.join(20)
    assert (traces._thread.is_alive(), held.is_shut, dropped) == (False, True, [957])
    assert len(held.spans) <= 2 * 257
    assert ("spans could not be exported" in caplog.text) is fails


def test_the_last_generations_are_known(held: Held) -> None:
    held.let_go.set()
    traces = Traces(held, delay=600)
    first = snapshot(serve(BOXES))
    for generation in range(1, 8):
        traces.adopt(replace(first, generation=generation))
    assert list(traces._deployments) == [4, 5, 6, 7]
    traces.start(lambda _: None)
    traces.put(outcome())
    traces.close(20)
    span = next(span for span in held.spans if span.name == "chat llama")
    assert span.attributes is not None
    assert "server.address" not in span.attributes
    assert span.attributes["gen_ai.request.model"] == "llama"


@pytest.mark.parametrize(("failure", "code"), [("client_left", "UNSET"), ("stalled", "ERROR")])
def test_nobody_is_blamed_for_a_client_that_left(held: Held, failure: str, code: str) -> None:
    held.let_go.set()
    traces = Traces(held, delay=600)
    traces.start(lambda _: None)
    traces.put(outcome(failure=failure))
    traces.close(20)
    (attempt,) = [span for span in held.spans if span.name == "chat llama"]
    assert attempt.status.status_code.name == code


@pytest.mark.parametrize(
    ("given", "seconds"),
    [(None, 5.0), ("", 5.0), ("x", 5.0), ("250", 0.25), ("0", 0.001), ("inf", 5.0), ("1e30", 5.0), ("nan", 5.0)],
)
def test_the_delay_is_the_standard_one(
    held: Held, monkeypatch: pytest.MonkeyPatch, given: str | None, seconds: float
) -> None:
    monkeypatch.delenv("OTEL_BSP_SCHEDULE_DELAY", raising=False)
    if given is not None:
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", given)
    assert Traces(held)._delay == seconds
