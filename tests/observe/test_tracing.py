"""When requests are traced."""

import os
import subprocess
import sys
from typing import Any

import pytest

from gateway.observe.log import make_logger
from gateway.observe.sink import LogSink
from gateway.observe.tracing import Tracing

ON = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"}


@pytest.mark.parametrize(
    "environ",
    [
        {},
        {"OTEL_SERVICE_NAME": "edge", "OTEL_EXPORTER_OTLP_ENDPOINT": " "},
        {**ON, "OTEL_SDK_DISABLED": "TRUE"},
        {**ON, "OTEL_TRACES_EXPORTER": "none"},
    ],
)
def test_it_is_off_unless_it_is_asked_for(environ: dict[str, str]) -> None:
    tracing = Tracing.of(environ)
    assert tracing == Tracing()
    assert tracing.observers == ()


@pytest.mark.parametrize(
    "environ",
    [
        ON,
        {**ON, "OTEL_SDK_DISABLED": "false"},
        {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://127.0.0.1:1/v1/traces"},
        {"OTEL_TRACES_EXPORTER": "otlp", "OTEL_EXPORTER_OTLP_PROTOCOL": "http/protobuf"},
        {"OTEL_TRACES_EXPORTER": "console"},
    ],
)
def test_it_is_on_where_an_exporter_is_named(environ: dict[str, str]) -> None:
    tracing = Tracing.of(environ)
    assert tracing.traces is not None
    assert tracing.observers == (tracing.traces.put,)
    assert (tracing.sampling and tracing.sampling.parent_decides, tracing.problems) == (True, ())


@pytest.mark.parametrize(
    ("environ", "exporter"),
    [
        ({**ON, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, "otlp_proto_grpc"),
        ({**ON, "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/json"}, "otlp_proto_http/json"),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
    ],
)
def test_an_exporter_that_is_not_installed_is_told(environ: dict[str, str], exporter: str) -> None:
    tracing = Tracing.of(environ)
    (problem,) = tracing.problems
    assert (tracing.traces, problem["reason"]) == (None, f"no exporter called {exporter} is installed")
    assert "pip install '.[otel]'" in problem["advice"]


def test_an_exporter_that_cannot_be_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_PYTHON_EXPORTER_OTLP_HTTP_TRACES_CREDENTIAL_PROVIDER", "nobody")
    (problem,) = Tracing.of(ON).problems
    assert problem == {"reason": "the exporter otlp_proto_http cannot be made: RuntimeError"}


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
@pytest.mark.parametrize(
    ("headers", "is_read"),
    [("authorization=Bearer%20key-99,x-team=edge", True), ("Authorization: Bearer key-99", False)],
)
def test_headers_that_cannot_be_read_are_told_without_their_text(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, variable: str, headers: str, *, is_read: bool
) -> None:
    monkeypatch.setenv(variable, headers)
    tracing = Tracing.of({**ON, variable: headers})
    assert tracing.traces is not None
    reason = f"{variable}: found an invalid header, expected name=value,name=value"
    assert [each["reason"] for each in tracing.problems] == ([] if is_read else [reason])
    assert "key-99" not in caplog.text + str(tracing.problems)


@pytest.mark.parametrize("variable", ["OTEL_EXPORTER_OTLP_HEADERS", "OTEL_EXPORTER_OTLP_TRACES_HEADERS"])
def test_what_headers_hold_is_secret(variable: str) -> None:
    tracing = Tracing.of({**ON, variable: "authorization=Bearer%20key-99%0A, x-team = edge=1"})
    assert tracing.secrets == {"Bearer%20key-99%0A", "Bearer key-99\n", "Bearer key-99", "edge=1", ""}
    assert "key-99" not in repr(tracing)


@pytest.mark.parametrize(
    ("sampler", "argument", "problem"),
    [
        ("traceidratio", "0.5", None),
        ("parentbased_traceidratio", "", None),
        ("always_on", "nonsense that it does not read", None),
        ("traceidratio", "2", "OTEL_TRACES_SAMPLER_ARG: found '2', expected a number from 0 to 1"),
        ("traceidratio", "half", "OTEL_TRACES_SAMPLER_ARG: found 'half', expected a number from 0 to 1"),
        ("jaeger_remote", "", "OTEL_TRACES_SAMPLER: found 'jaeger_remote', expected a sampler of the specification"),
    ],
)
def test_samplers_are_read(sampler: str, argument: str, problem: str | None) -> None:
    tracing = Tracing.of({**ON, "OTEL_TRACES_SAMPLER": sampler, "OTEL_TRACES_SAMPLER_ARG": argument})
    assert tracing.traces is not None
    assert [each["reason"] for each in tracing.problems] == ([problem] if problem else [])


async def test_problems_are_logged_at_the_start() -> None:
    sink = LogSink()
    tracing = Tracing(problems=({"reason": "why", "advice": "what"},))
    tracing.start(make_logger(sink, "info"))
    record: Any = sink._queue.get()
    assert {**record, "time": 0} == {
        "time": 0,
        "level": "warning",
        "event": "traces.problem",
        "reason": "why",
        "advice": "what",
    }
    await tracing.close(1)


def test_without_the_extra_it_is_off_and_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)
    monkeypatch.delitem(sys.modules, "gateway.observe.traces", raising=False)
    tracing = Tracing.of(ON)
    (problem,) = tracing.problems
    assert tracing.traces is None
    assert problem["reason"].startswith("the variables ask for traces, but OpenTelemetry cannot be imported: ")
    assert problem["advice"] == "pip install '.[otel]' in the gateway's checkout"


def test_nothing_is_imported_when_it_is_off() -> None:
    program = (
        "import sys; from gateway.server import create_app; create_app(); "
        "print([name for name in sys.modules if name.startswith('opentelemetry')])"
    )
    environ = os.environ | {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}
    command = [sys.executable, "-c", program]
    told = subprocess.run(command, capture_output=True, text=True, check=True, env=environ)  # noqa: S603 - our own
    assert told.stdout == "[]\n"
