import asyncio
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from aiohttp import web
from aiohttp.http_exceptions import BadStatusLine, TransferEncodingError
from hypothesis import given
from hypothesis import strategies as st
from msgspec import json

from gateway.execution.outcome import Attempt, Outcome, Usage
from gateway.observe.batch import Batch
from gateway.observe.log import LEVELS, Log, RequestLog, capture_stdlib, make_logger, set_level
from gateway.observe.render import Record, Secrets, render, render_all
from gateway.observe.request import Requests
from gateway.observe.sink import LogSink

CANARY = "sk-canary-0123456789"


class Book:
    """A sink that is never started: what it holds is what was recorded."""

    def __init__(self) -> None:
        self.sink = LogSink()
        self.log = make_logger(self.sink, "info")

    def ends(self, *outcomes: Outcome) -> None:
        """Record requests that end at once."""
        RequestLog(self.log).take(Batch([0.0] * len(outcomes), outcomes))

    def recorded(self) -> list[Record]:
        records: list[Record] = []
        while not self.sink._queue.empty():
            told = self.sink._queue.get()
            if isinstance(told, Requests):
                records += told.ended()
            else:
                assert isinstance(told, dict)
                records.append(told)
        return records

    def raw(self) -> list[dict[str, Any]]:
        """Return the records that are no requests."""
        return [record for record in self.recorded() if isinstance(record, dict)]

    def lines(self) -> list[dict[str, Any]]:
        """Return the records as they are written, without their time."""
        return [json.decode(render(record, Secrets())) | {"time": None} for record in self.recorded()]

    def only(self) -> dict[str, Any]:
        (line,) = self.lines()
        del line["time"]
        return line


@pytest.fixture
def book() -> Book:
    return Book()


@pytest.fixture
def log(book: Book) -> Log:
    return book.log


@pytest.fixture
def library(log: Log) -> Iterator[logging.Logger]:
    undo = capture_stdlib(log)
    yield logging.getLogger("some.library")
    undo()


def throw(error: BaseException) -> None:
    raise error


def test_a_record_leads_with_time_level_and_event(book: Book, log: Log) -> None:
    log.info("config.reloaded", generation=3, event_count=1)
    (record,) = book.raw()
    assert list(record) == ["time", "level", "event", "generation", "event_count"]
    assert isinstance(record["time"], float)
    line = json.decode(render(record, Secrets()))
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
    assert line | {"time": 0} == {
        "time": 0,
        "level": "info",
        "event": "config.reloaded",
        "generation": 3,
        "event_count": 1,
    }


def test_no_field_takes_the_place_of_what_leads(book: Book, log: Log) -> None:
    log.info("x", time=1, level="loud", n=1)
    (record,) = book.raw()
    assert list(record) == ["time", "level", "event", "n"]
    assert (type(record["time"]), record["level"]) == (float, "info")


@pytest.mark.parametrize("level", LEVELS)
def test_the_level_is_changed_live_for_all_that_share_it(book: Book, log: Log, level: str) -> None:
    bound = log.bind(endpoint="box-a")
    set_level(log, level)
    for logger in (log, bound):
        logger.info("i")
        logger.warning("w")
        logger.error("e")
    passing = [name for name in ("info", "warning", "error") if LEVELS[name] >= LEVELS[level]]
    lines = book.lines()
    assert [line["level"] for line in lines] == passing * 2
    assert [line.get("endpoint") for line in lines] == [None] * len(passing) + ["box-a"] * len(passing)


def test_nothing_is_configured_for_the_whole_process(log: Log) -> None:
    log.info("x")
    assert not structlog.is_configured()


def test_an_exception_is_recorded_with_its_causes(book: Book, log: Log) -> None:
    with pytest.raises(ValueError, match="outer") as outer:  # noqa: PT012 - the exception is to have a cause
        try:
            throw(KeyError("inner"))
        except KeyError as inner:
            raise ValueError("outer") from inner
    log.error("probe.failed", endpoint="box-a", exc_info=outer.value)
    line = book.only()
    assert (line["level"], line["event"], line["endpoint"], line["error"]) == (
        "error",
        "probe.failed",
        "box-a",
        "ValueError",
    )
    assert "KeyError: 'inner'" in line["traceback"]
    assert 'raise ValueError("outer") from inner' in line["traceback"]


def test_an_exception_that_was_not_raised_has_no_stack(book: Book, log: Log) -> None:
    log.error("given", exc_info=ValueError("x"))
    given_one = book.only()
    assert (given_one["error"], given_one["traceback"]) == ("ValueError", "ValueError: x\n")


def test_library_messages_are_led_in_from_warning_up(book: Book, library: logging.Logger) -> None:
    library.setLevel(logging.DEBUG)
    library.debug("noise")
    library.info("noise")
    library.warning("%s left", "somebody")
    library.critical("down")
    (ours,) = (handler for handler in logging.getLogger().handlers if type(handler).__module__ == Log.__module__)
    for broken in ("%d", Book()):
        ours.handle(
            logging.makeLogRecord({"name": "x", "levelno": logging.ERROR, "msg": broken, "args": ("no number",)})
        )
    assert [(line["level"], line["event"], line["logger"], line["message"]) for line in book.lines()] == [
        ("warning", "library.message", "some.library", "somebody left"),
        ("error", "library.message", "some.library", "down"),
        ("error", "library.message", "x", "%d"),
        ("error", "library.message", "x", "<Book>"),
    ]


def test_library_exceptions_are_led_in(book: Book, library: logging.Logger) -> None:
    try:
        throw(KeyError("x"))
    except KeyError:
        library.exception("while %s", "serving")
    line = book.only()
    assert list(line) == ["level", "event", "logger", "message", "error", "traceback"]
    assert (line["level"], line["event"], line["message"], line["error"]) == (
        "error",
        "exception",
        "while serving",
        "KeyError",
    )
    assert line["traceback"].startswith("Traceback (most recent call last):\n")
    assert line["traceback"].endswith("KeyError: 'x'\n")


def test_pythons_warnings_are_led_in(book: Book, log: Log) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        before = warnings.showwarning
        undo = capture_stdlib(log)
        nested = capture_stdlib(Book().log)
        warnings.warn("old", DeprecationWarning, stacklevel=1)
        nested()
        assert warnings.showwarning is not before
        undo()
        assert warnings.showwarning is before
    line = book.only()
    assert (line["event"], line["logger"]) == ("library.message", "py.warnings")
    assert "DeprecationWarning: old" in line["message"]


def test_the_capture_is_undone(book: Book, log: Log) -> None:
    handlers = logging.getLogger().handlers[:]
    capture_stdlib(log)()
    assert logging.getLogger().handlers == handlers
    logging.getLogger("some.library").warning("after")
    assert book.raw() == []


@pytest.mark.usefixtures("library")
async def test_an_exception_that_nobody_awaited_is_recorded(book: Book) -> None:
    loop = asyncio.get_running_loop()
    loop.call_exception_handler({"message": "lost", "exception": KeyError("x")})
    line = book.only()
    assert (line["event"], line["logger"], line["message"], line["error"]) == (
        "exception",
        "asyncio",
        "lost",
        "KeyError",
    )


@pytest.mark.parametrize(
    "request_bytes",
    [
        f"GET / HTTP/1.1\r\nHost: x\r\n{CANARY} bad\r\n\r\n".encode(),
        f"GET / HTTP/9.{CANARY}\r\n\r\n".encode(),
        b"GET /" + CANARY.encode() * 1000 + b" HTTP/1.1\r\n\r\n",
    ],
)
@pytest.mark.usefixtures("library")
async def test_a_malformed_request_is_told_by_its_class_only(book: Book, request_bytes: bytes) -> None:
    async def handler(_: web.BaseRequest) -> web.Response:
        return web.Response()

    runner = web.ServerRunner(web.Server(handler))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    host, port = runner.addresses[0][:2]
    reader, writer = await asyncio.open_connection(host, port)
    writer.write(request_bytes)
    assert (await reader.read()).startswith(b"HTTP/1.0 400")
    writer.close()
    await writer.wait_closed()
    await runner.cleanup()
    line = book.only()
    assert list(line) == ["level", "event", "error"]
    assert (line["level"], line["event"]) == ("info", "http.malformed_request")
    assert line["error"] in {"BadHttpMessage", "BadStatusLine", "LineTooLong"}


def of_a_parse_error() -> BaseException:
    error = RuntimeError(f"upstream sent {CANARY}")
    error.__cause__ = BadStatusLine(CANARY)
    return error


def in_a_group() -> BaseException:
    return ExceptionGroup(CANARY, [ValueError(CANARY), TransferEncodingError(CANARY)])


def in_a_circle() -> BaseException:
    first, second = ValueError(CANARY), BadStatusLine(CANARY)
    first.__context__, second.__context__ = second, first
    return first


@pytest.mark.parametrize("make", [of_a_parse_error, in_a_group, in_a_circle])
def test_what_came_of_a_parse_error_shows_no_words(book: Book, library: logging.Logger, make: Any, log: Log) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - each of them
        throw(make())
    library.error("handling %r", caught.value, exc_info=caught.value)
    log.error("of.ours", exc_info=caught.value)
    led_in, ours = book.raw()
    assert CANARY.encode() not in render(led_in, Secrets()) + render(ours, Secrets())
    assert list(led_in) == ["time", "level", "event", "logger", "error", "traceback"]
    assert b"throw(make())" in render(led_in, Secrets())


def outcome(**changes: Any) -> Outcome:
    fields: dict[str, Any] = {
        "request_id": "r-1",
        "operation": "chat.completions",
        "model": "llama",
        "served_model": "llama",
        "generation": 3,
        "stream": False,
        "status": 200,
        "attempts": (Attempt("llama", "box-a:8000", "local", 1.25, status=200),),
        "fallback": False,
        "duration": 12.345,
        "bytes_out": 77,
        "model_id": "llama",
    }
    return Outcome(**fields | changes)


def test_a_plain_request_leaves_the_absent_out(book: Book) -> None:
    book.ends(outcome())
    assert list(book.only().items()) == [
        ("level", "info"),
        ("event", "request"),
        ("request_id", "r-1"),
        ("operation", "chat.completions"),
        ("model", "llama"),
        ("status", 200),
        ("generation", 3),
        ("stream", False),
        ("fallback", False),
        ("ms", 12.3),
        ("bytes", 77),
        ("deployment", "box-a:8000"),
        ("attempts", [{"deployment": "box-a:8000", "group": "local", "ms": 1.2, "status": 200}]),
    ]


def test_a_request_that_fell_back_tells_its_whole_story(book: Book) -> None:
    refused = Attempt("llama", "box-a:8000", "local", 2.0, failure="refused", detail="connect to box-a: refused")
    answered = Attempt("llama-70b", "cloud", "remote", 900.04, status=200)
    book.ends(
        outcome(
            served_model="llama-70b",
            stream=True,
            fallback=True,
            attempts=(refused, answered),
            first_content=90.06,
            usage=Usage(31, 230),
        )
    )
    line = book.only()
    assert list(line) == [
        "level",
        "event",
        "request_id",
        "operation",
        "model",
        "served_model",
        "status",
        "generation",
        "stream",
        "fallback",
        "ms",
        "first_content_ms",
        "bytes",
        "prompt_tokens",
        "completion_tokens",
        "deployment",
        "attempts",
    ]
    assert (line["served_model"], line["deployment"], line["first_content_ms"]) == ("llama-70b", "cloud", 90.1)
    assert (line["prompt_tokens"], line["completion_tokens"]) == (31, 230)
    assert line["attempts"] == [
        {
            "deployment": "box-a:8000",
            "group": "local",
            "ms": 2.0,
            "failure": "refused",
            "detail": "connect to box-a: refused",
        },
        {"model": "llama-70b", "deployment": "cloud", "group": "remote", "ms": 900.0, "status": 200},
    ]


@pytest.mark.parametrize(
    ("changes", "level"),
    [
        ({"status": 200}, "info"),
        ({"status": 404, "failure": "model_not_found", "served_model": None, "attempts": ()}, "info"),
        ({"status": 429, "failure": "rate_limited", "served_model": None}, "warning"),
        ({"status": 499, "failure": "client_left", "served_model": None}, "info"),
        ({"status": 499, "failure": "client_left", "stream": True}, "info"),
        ({"status": 500, "failure": "internal_error", "served_model": None}, "warning"),
        ({"status": 503, "failure": "no_deployment", "served_model": None, "attempts": ()}, "warning"),
        ({"status": 200, "failure": "broken", "stream": True}, "warning"),
    ],
)
def test_the_level_tells_what_an_operator_should_look_at(book: Book, changes: dict[str, Any], level: str) -> None:
    book.ends(outcome(**changes))
    assert book.only()["level"] == level


def test_requests_obey_the_live_level(book: Book, log: Log) -> None:
    observe = book.ends
    set_level(log, "warning")
    observe(outcome())
    observe(outcome(status=502, failure="server_error"))
    assert [line["status"] for line in book.lines()] == [502]


@pytest.mark.parametrize(
    ("served", "failure", "deployment"),
    [("llama", None, "box-b"), ("llama", "broken", "box-b"), (None, "connect_refused", None)],
)
def test_the_deployment_is_the_one_whose_answer_the_client_got(
    book: Book, served: str | None, failure: str | None, deployment: str | None
) -> None:
    first = Attempt("llama", "box-a", "local", 1.0, failure="connect_refused")
    last = Attempt("llama", "box-b", "local", 1.0, failure=failure)
    book.ends(outcome(served_model=served, failure=failure, attempts=(first, last)))
    assert book.only().get("deployment") == deployment


def test_a_request_without_attempts_names_no_deployment(book: Book) -> None:
    book.ends(outcome(status=404, served_model=None, attempts=()))
    line = book.only()
    assert line["attempts"] == []
    assert "deployment" not in line


def test_a_request_that_was_refused_unread_names_no_model_and_no_generation(book: Book) -> None:
    """It named the generation 0, which is none."""
    book.ends(outcome(status=400, served_model=None, model_id=None, model="", generation=0, attempts=()))
    assert not {"model", "generation"} & book.only().keys()


@given(st.text(min_size=1))
def test_a_model_name_of_any_length_makes_a_bounded_line(name: str) -> None:
    book = Book()
    book.ends(outcome(model=name * 10_000))
    assert len(book.only()["model"]) <= 256


def test_a_canary_appears_nowhere(book: Book, log: Log, library: logging.Logger) -> None:
    attempt = Attempt("llama", f"box-{CANARY}", "local", 1.0, failure="refused", detail=f"key {CANARY}")
    book.ends(outcome(model=CANARY, request_id=CANARY, attempts=(attempt,), status=502, failure=CANARY))
    event = "about." + CANARY
    log.info(event, header=f"Bearer {CANARY}", nested={CANARY: [CANARY]}, error=ValueError(CANARY))
    library.warning("key %s", CANARY)
    with pytest.raises(KeyError) as caught:
        throw(KeyError(CANARY))
    log.error("failed", url=f"http://x/?key={CANARY}", exc_info=caught.value)
    library.error("with %r", caught.value, exc_info=caught.value)
    lines = [render(record, Secrets.of({CANARY})) for record in book.recorded()]
    assert len(lines) == 5
    for line in lines:
        assert CANARY.encode() not in line
        json.decode(line)


def test_a_batch_says_what_its_records_say_one_by_one(book: Book, log: Log) -> None:
    secrets = Secrets.of({CANARY})
    observe = book.ends
    kept = []
    for name in ("llama", "lama-\u00e9", "half \ud800", CANARY):
        for _ in range(2):
            log.info("config.reloaded", at={1}, name=name)
            observe(outcome(model=name, usage=Usage(1, None, 0), lost=Usage(None, 5), malformed_events=2))
        kept += book.recorded()
        for records in (kept, kept[-4:]):
            assert render_all(records, secrets) == b"".join(render(record, secrets) for record in records)
    lines = render_all(kept, secrets)
    assert lines.isascii()
    assert lines.count(b"\n") == len(kept) == 16
    assert CANARY.encode() not in lines
    assert render_all([], secrets) == b""


def test_an_outcome_that_cannot_be_written_takes_no_other_along(book: Book) -> None:
    observe = book.ends
    observe(outcome())
    observe(outcome(duration=float("inf")))
    good, bad = (json.decode(line) for line in render_all(book.recorded(), Secrets()).splitlines())
    assert (good["event"], good["status"]) == ("request", 200)
    assert (bad["event"], bad["record"], bad["error"]) == ("log.unrendered", "request", "OverflowError")
