"""OpenTelemetry spans of finished requests: one per request, and below it one per attempt.

Imported only when traces are wanted: it needs the extra `otel`.

The observer puts an Outcome into a queue. A thread takes it from there, makes spans with the ids that were chosen when
the request arrived (`execution.trace`), and exports them. When the queue is full, because the collector is slow or
gone, further Outcomes are dropped, counted, and reported when an export succeeds again.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Final

from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)
from opentelemetry.util.re import parse_env_headers

from gateway import __version__
from gateway.execution.outcome import Attempt, Outcome
from gateway.execution.trace import Trace
from gateway.observe.spans import attempt_attributes, attempt_name, request_attributes, request_name
from gateway.routing.snapshot import Deployment, Identity, Snapshot

_SERVICE: Final = "hybrid-inference-gateway"
_CAPACITY: Final = 4096
_BATCH: Final = 256
_DELAY: Final = 5.0
_SHORTEST_DELAY: Final = 0.001
_GENERATIONS: Final = 4
_MILLISECOND: Final = 1_000_000
_NOBODYS: Final = frozenset({"client_left", "cut"})
_CLIENTS: Final = range(400, 500)
_log: Final = logging.getLogger(__name__)
_states_log: Final = logging.getLogger(TraceState.__module__)
_headers_log: Final = logging.getLogger(parse_env_headers.__module__)


class _Withheld(logging.Filter):
    """Drops records in which OpenTelemetry quotes what it could not read of a header; `number` counts them."""

    def __init__(self) -> None:
        super().__init__()
        self.number = 0

    def filter(self, _: logging.LogRecord) -> bool:
        self.number += 1
        return False


_unread: Final = _Withheld()
_headers_log.addFilter(_unread)  # may quote a key
_states_log.addFilter(_Withheld())  # quotes clients: OpenTelemetry reads fewer keys than the standard allows


def exporter_named(name: str) -> tuple[SpanExporter | None, bool]:
    """Make the exporter of that name, if one is installed; also return whether it could read all of its headers.

    It reads its own variables (OTEL_EXPORTER_OTLP_*), and raises whatever they cause.
    """
    found = tuple(entry_points(group="opentelemetry_traces_exporter", name=name))
    before = _unread.number
    made: SpanExporter | None = found[0].load()() if found else None
    return made, _unread.number == before


_Ended = tuple[int, Trace, Outcome]
"""A recorded request: when it ended, in nanoseconds since the epoch, its trace and its Outcome."""


class _Ids(IdGenerator):
    """Returns the ids that were chosen before. For one thread."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 1

    def generate_span_id(self) -> int:
        return self.span_id

    def generate_trace_id(self) -> int:
        return self.trace_id


class _Collected(SpanProcessor):
    """Keeps the spans that have ended."""

    def __init__(self) -> None:
        self.spans: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.spans.append(span)


class Traces:
    """The observer, and the thread that exports.

    Mutable: the queue; counts of requests that it refused, that are being exported, whose export failed, and that were
    reported; and the deployments of the last few generations. `_lock` keeps the thread's counts consistent.
    """

    def __init__(self, exporter: SpanExporter, *, capacity: int = _CAPACITY, delay: float | None = None) -> None:
        """`delay` is the longest time that a span waits, in seconds; by default OTEL_BSP_SCHEDULE_DELAY or 5."""
        self._exporter = exporter
        self._capacity = capacity
        self._delay = _delay() if delay is None else delay
        self._queue: deque[_Ended] = deque()
        self._refused = self._in_hand = self._failed = self._reported = 0
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closing = self._over = False
        self._ids, self._collected = _Ids(), _Collected()
        provider = TracerProvider(
            sampler=ALWAYS_ON, resource=_resource(), id_generator=self._ids, shutdown_on_exit=False
        )
        provider.add_span_processor(self._collected)
        self._tracer = provider.get_tracer(_SERVICE, __version__)
        self._deployments: dict[int, Mapping[Identity, Deployment]] = {}
        self._thread = threading.Thread(target=self._run, name="gateway-traces", daemon=True)
        self._told: Callable[[int], None] = lambda _: None

    def put(self, outcome: Outcome) -> None:
        """Take in a finished request, if it is recorded."""
        trace = outcome.trace
        if trace is None or not trace.sampled:
            return
        waiting = len(self._queue)
        if waiting >= self._capacity:
            self._refused += 1
            return
        self._queue.append((time.time_ns(), trace, outcome))
        if waiting == _BATCH:
            self._wake.set()

    def adopt(self, snapshot: Snapshot) -> None:
        """Learn the deployments of a new generation; requests in flight may belong to older ones."""
        kept = list(self._deployments.items())[1 - _GENERATIONS :]
        self._deployments = dict([*kept, (snapshot.generation, snapshot.catalogue.deployments)])

    def start(self, dropped: Callable[[int], None]) -> None:
        """Start exporting; `dropped` is called, from any thread, with how many requests have left no spans."""
        self._told = dropped
        self._thread.start()

    def close(self, timeout: float) -> None:
        """Export what is left, for at most `timeout` seconds; a longer export is stopped and reported. Blocking."""
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        self._over = True
        if self._thread.is_alive():
            self._report(given_up=True)
        self._exporter.shutdown()

    def _run(self) -> None:
        while not self._closing:
            self._wake.wait(self._delay)
            self._wake.clear()
            self._flush()
        self._flush()
        self._report()

    def _flush(self) -> None:
        while self._queue and not self._over:
            with self._lock:
                taken = [self._queue.popleft() for _ in range(min(_BATCH, len(self._queue)))]
                self._in_hand = len(taken)
            is_exported = self._export(taken)
            with self._lock:
                self._in_hand = 0
                self._failed += 0 if is_exported else len(taken)
            if is_exported:
                self._report()

    def _export(self, taken: list[_Ended]) -> bool:
        try:
            for ended, trace, outcome in taken:
                self._record(ended, trace, outcome)
            return self._exporter.export(self._collected.spans) is SpanExportResult.SUCCESS
        except Exception:  # noqa: BLE001 - an exporter of the user's own may raise anything
            _log.exception("spans could not be exported")
            return False
        finally:
            self._collected.spans = []

    def _report(self, *, given_up: bool = False) -> None:
        """Report what is not reported yet; with `given_up`, also what waits and what is being exported."""
        with self._lock:
            waiting = len(self._queue) + self._in_hand if given_up else 0
            dropped = self._refused + self._failed + waiting - self._reported
            self._reported += max(0, dropped)  # what is given up is reported before it fails
        if dropped > 0:
            self._told(dropped)

    def _record(self, ended: int, trace: Trace, outcome: Outcome) -> None:
        """Make a request's spans."""
        began = ended - round(outcome.duration * _MILLISECOND)
        self._ids.trace_id, self._ids.span_id = trace.trace_id, trace.span_id
        span = self._tracer.start_span(
            request_name(outcome),
            set_span_in_context(_caller(trace)) if trace.parent_id else None,
            kind=SpanKind.SERVER,
            attributes=request_attributes(outcome),
            start_time=began,
        )
        for attempt in outcome.attempts:
            self._attempt(span, began, outcome, attempt)
        if outcome.failure is not None and outcome.status not in _CLIENTS:
            span.set_status(Status(StatusCode.ERROR, outcome.failure))
        span.end(ended)

    def _attempt(self, request: Span, began: int, outcome: Outcome, attempt: Attempt) -> None:
        known = self._deployments.get(outcome.generation, {})
        start = began + round(attempt.offset * _MILLISECOND)
        self._ids.span_id = attempt.span_id or 1
        span = self._tracer.start_span(
            attempt_name(outcome, attempt),
            set_span_in_context(request),
            kind=SpanKind.CLIENT,
            attributes=attempt_attributes(outcome, attempt, known.get((attempt.model, attempt.deployment))),
            start_time=start,
        )
        if attempt.failure is not None and attempt.failure not in _NOBODYS:
            span.set_status(Status(StatusCode.ERROR, attempt.detail or attempt.failure))
        span.end(start + round(attempt.milliseconds * _MILLISECOND))


def _delay() -> float:
    """Read OTEL_BSP_SCHEDULE_DELAY; treat a value that no thread can wait for (`inf`, `nan`) as unset."""
    try:
        given = float(os.environ["OTEL_BSP_SCHEDULE_DELAY"]) / 1000
    except (KeyError, ValueError):
        return _DELAY
    return max(_SHORTEST_DELAY, given) if given <= threading.TIMEOUT_MAX else _DELAY


def _resource() -> Resource:
    """Return the resource that OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES describe, by default with our name."""
    resource = Resource.create()
    if str(resource.attributes.get(SERVICE_NAME, "unknown_service")).startswith("unknown_service"):
        resource = resource.merge(Resource({SERVICE_NAME: _SERVICE}))
    return resource


def _caller(trace: Trace) -> NonRecordingSpan:
    state = TraceState.from_header([trace.state]) if trace.state else None
    return NonRecordingSpan(
        SpanContext(
            trace.trace_id, trace.parent_id or 0, is_remote=True, trace_flags=TraceFlags(trace.flags), trace_state=state
        )
    )
