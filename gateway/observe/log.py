"""The log: structlog's pipeline in front of the sink, standard-library logging routed into it, and the request line.

A record is a dict in the order of its line: time (seconds since the epoch), level, event, then the event's fields.
Nothing here renders, formats or does I/O; the sink's writer thread does.

Events pass through structlog's chain. The `request` records, one per request, go to the same Recorder by the batch
(`observe.request`): a bound logger's copies and calls would cost more than all the rest of it.

aiohttp's parse errors quote the bytes that a peer sent, which may hold a key or a prompt. Of such an error, and of any
error that it caused, the class and the stack are logged at most, never the message.
"""

import logging
import time
import warnings
from collections.abc import Callable
from traceback import TracebackException
from typing import cast

import structlog
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web import RequestPayloadError
from structlog.typing import EventDict

from gateway.observe.batch import Batch
from gateway.observe.request import Requests
from gateway.observe.sink import LogSink, Told

LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_QUOTING = (HttpProcessingError, RequestPayloadError)


class Recorder:
    """The end of the pipeline. `threshold` is read for each record, so that the level can change live."""

    __slots__ = ("threshold", "write")

    def __init__(self, write: Callable[[Told], None], level: str) -> None:
        self.write = write
        self.threshold = LEVELS[level]

    def passes(self, level: str) -> bool:
        """Return whether records of `level` are written."""
        return LEVELS[level] >= self.threshold


class Log(structlog.BoundLoggerBase):
    """The bound logger: `log.info("config.reloaded", generation=3)`. Of non-JSON values, only the type is shown."""

    @property
    def recorder(self) -> Recorder:
        """Where the records of this logger, and of those bound from it, go."""
        return cast("Recorder", self._logger)

    def info(self, event: str, **fields: object) -> None:
        """Record an event of normal service."""
        self._say("info", event, fields)

    def warning(self, event: str, **fields: object) -> None:
        """Record something that an operator should look at."""
        self._say("warning", event, fields)

    def error(self, event: str, **fields: object) -> None:
        """Record a failure, with the exception given as `exc_info`."""
        self._say("error", event, fields)

    def _say(self, level: str, event: str, fields: dict[str, object]) -> None:
        if self.recorder.passes(level):
            _, record = self._process_event(level, event, fields)
            self.recorder.write(dict(record))


def make_logger(sink: LogSink, level: str) -> Log:
    """Return a logger that writes to `sink`; `level` is a key of `LEVELS`."""
    proxy = structlog.wrap_logger(Recorder(sink.emit, level), processors=(_explain, _lead), wrapper_class=Log)
    return cast("Log", proxy.bind())


def set_level(log: Log, level: str) -> None:
    """Write records of `level` and above from now on, for `log` and all loggers that share its Recorder."""
    log.recorder.threshold = LEVELS[level]


def _lead(_: Recorder, level: str, record: EventDict) -> EventDict:
    lead = {"time": time.time(), "level": level, "event": record["event"]}
    return lead | dict(record) | lead


def _explain(_: Recorder, __: str, record: EventDict) -> EventDict:
    error = record.pop("exc_info", None)
    if isinstance(error, BaseException):
        record.update(_explanation(error))
    return record


def _explanation(error: BaseException) -> dict[str, object]:
    trace = TracebackException.from_exception(error, lookup_lines=False, compact=True)
    return {"error": type(error).__name__, "traceback": trace.stack if _quotes(error) else trace}


def _quotes(error: BaseException) -> bool:
    """Return whether the error, or any of its causes and members, is a parse error."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        member = waiting.pop()
        if isinstance(member, _QUOTING):
            return True
        if member is not None and id(member) not in seen:
            seen.add(id(member))
            waiting += (member.__cause__, member.__context__)
            waiting += member.exceptions if isinstance(member, BaseExceptionGroup) else ()
    return False


class _Capture(logging.Handler):
    def __init__(self, log: Log) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        say = self._log.error if record.levelno >= logging.ERROR else self._log.warning
        if isinstance(error, _QUOTING):
            self._log.info("http.malformed_request", error=type(error).__name__)
        elif error is None:
            say("library.message", logger=record.name, message=_message(record))
        elif _quotes(error):
            say("exception", logger=record.name, exc_info=error)
        else:
            say("exception", logger=record.name, message=_message(record), exc_info=error)


def _message(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - a caller's arguments may not fit its format, and their str may raise anything
        return record.msg if isinstance(record.msg, str) else f"<{type(record.msg).__name__}>"


def capture_stdlib(log: Log) -> Callable[[], None]:
    """Route what libraries log at warning and above, and Python's warnings, into `log`; return an undo function.

    aiohttp's parse errors become `http.malformed_request` at info, other exceptions `exception`, everything else
    `library.message`.
    """
    handler = _Capture(log)
    root = logging.getLogger()
    root.addHandler(handler)
    show = warnings.showwarning
    logging.captureWarnings(True)  # noqa: FBT003 - the standard library's signature
    ours = warnings.showwarning is not show

    def undo() -> None:
        root.removeHandler(handler)
        if ours:
            logging.captureWarnings(False)  # noqa: FBT003 - the standard library's signature

    return undo


class RequestLog:
    """Records every finished request as one `request` event."""

    def __init__(self, log: Log) -> None:
        self._recorder = log.recorder

    def take(self, batch: Batch) -> None:
        """Record requests that ended: at warning those that are errors, the others at info."""
        recorder = self._recorder
        if recorder.passes("info"):
            recorder.write(Requests(batch.at, batch.outcomes))
        elif recorder.passes("warning"):
            errors = [each for each in zip(batch.at, batch.outcomes, strict=True) if each[1].is_error]
            if errors:
                recorder.write(Requests(*zip(*errors, strict=True)))
