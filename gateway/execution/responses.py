"""An event stream of `/v1/responses` on its way to a client: which of the upstream's bytes may pass, and what they say.

https://platform.openai.com/docs/api-reference/responses-streaming. Each event names its `type`, and one of three types
ends the answer. Left out are events that are not JSON, and an upstream's error: it is a break, and the executor decides
what to say about it. Everything else passes in the upstream's own bytes, event by event.

Such a stream is not carried on elsewhere: the ids of its items, and what a tool did, belong to one box.
"""

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import msgspec

from gateway.execution.chunks import MalformedError, is_done, parsed
from gateway.execution.outcome import Usage
from gateway.execution.sse import EventScanner
from gateway.execution.template import Reader
from gateway.execution.usage import usage_of

_LONGEST: Final = 32 << 20
"""Bytes that an event may have: it may hold the request's instructions and tools, and the whole answer."""
_TOO_LONG: Final = {"message": "an event is longer than 32 MiB"}
_ANNOUNCING: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
        "keepalive",
    }
)
"""Events that announce content and hold none of it; OpenAI sends `keepalive` so that clients keep waiting."""
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.cancelled"})
_UNREAD: Final = ("response", "usage")
"""Members that stay JSON until they are needed: they may be long."""
_FAILED: Final = "response.failed"
_ERROR: Final = "error"
_UNTOLD: Final = b'{"error": {"code": "error"}}'
_NOTHING: Final = b""


class _Event(msgspec.Struct, gc=False):
    type: object = None
    sequence_number: object = None
    error: object = None
    code: object = None
    message: object = None
    response: msgspec.Raw = msgspec.Raw()

    @property
    def kind(self) -> str:
        """Its type, if it is a string; empty otherwise."""
        return self.type if isinstance(self.type, str) else ""

    @property
    def failure(self) -> object:
        """The error that it reports: in an `error` of its own, as the event itself, or as the response's."""
        if self.error:
            return self.error
        if self.kind == _ERROR:
            return {"code": self.code, "message": self.message}
        return (self.shown.error or {"code": _FAILED}) if self.kind == _FAILED else None

    @property
    def shown(self) -> "_Response":
        """The response that it holds."""
        try:
            return (self.response and _read(_response, self.response)) or _Response()
        except MalformedError:  # nested too deeply
            return _Response()


class _Response(msgspec.Struct, gc=False):
    error: object = None
    usage: msgspec.Raw = msgspec.Raw()


T = TypeVar("T", _Event, _Response)
_event: Final = msgspec.json.Decoder(_Event)
_response: Final = msgspec.json.Decoder(_Response)


class ResponseStream(Reader):
    """One client's stream of events.

    Mutable: `done` (the event that ends it came), `failed` (an error came: `error`), `size` (bytes passed),
    `first_content` (when it came), `malformed` (events left out), the usage that was reported, and the last event's
    number.
    """

    most_held: Final = 8 << 20
    """Bytes that may be held back until the first content: the request's instructions and tools come before it."""

    __slots__ = (
        "_clock",
        "_counts",
        "_number",
        "_scanner",
        "done",
        "error",
        "failed",
        "first_content",
        "malformed",
        "size",
    )

    def __init__(self, clock: Callable[[], float]) -> None:
        """`clock` is monotonic, in seconds."""
        self.done = self.failed = False
        self.error = _UNTOLD
        self.size = self.malformed = 0
        self.first_content: float | None = None
        self._clock = clock
        self._counts = msgspec.Raw()
        self._scanner = EventScanner()
        self._number = -1

    @property
    def complete(self) -> bool:
        """Whether all that counts has come."""
        return self.done

    @property
    def whole(self) -> bool:
        """Whether the stream may end here, if nothing else comes."""
        return self.done

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return not (self.done or self.failed)

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer reported."""
        return usage_of(self._counts)

    @property
    def lost(self) -> None:
        """None: there is no second stream, so no tokens are lost."""

    def feed(self, chunk: bytes) -> tuple[bytes, bool]:
        """Take the next bytes; return those that may go to the client, and whether content came."""
        content, parts = False, list[bytes]()
        for raw in self._scanner.cut(chunk):
            passed, says = self._take(raw, self._scanner.data(raw))
            if self.failed:
                break
            content = content or says
            parts.append(passed)
        if self._scanner.waiting > _LONGEST and not self.failed:
            self._fails(_TOO_LONG)
        if content and self.first_content is None:
            self.first_content = self._clock()
        return self._sent(b"".join(parts)), content

    def end(self) -> bytes:
        """Note that the stream is over; its last event counts without an empty line if it ends the answer."""
        raw, data = self._scanner.rest()
        if data is None or self.done or self.failed or not _is_end(data):
            return _NOTHING
        return self._sent(self._take(raw, data)[0])

    def last_words(self, error: Mapping[str, object]) -> bytes:
        """Return a last event that reports `error`: in OpenAI's form, with the `error` that its clients raise."""
        told = {**error, "type": _ERROR, "sequence_number": self._number + 1, "error": error}
        return b"event: error\ndata: " + msgspec.json.encode(told) + b"\n\n"

    def _sent(self, data: bytes) -> bytes:
        self.size += len(data)
        return data

    def _take(self, raw: bytes, data: bytes | None) -> tuple[bytes, bool]:
        if data is None or not data.strip():
            return raw, False
        if is_done(data):
            self.done = True
            return raw, False
        try:
            event = _read(_event, data)
        except MalformedError:
            self.malformed += 1
            return _NOTHING, False
        if event is None:
            return raw, True
        if (failure := event.failure) is not None:
            self._fails(failure)
            return _NOTHING, False
        if isinstance(event.sequence_number, int):
            self._number = event.sequence_number
        if event.kind in _ENDS:
            self.done = True
            self._counts = event.shown.usage
        return raw, event.kind not in _ANNOUNCING

    def _fails(self, error: object) -> None:
        if not self.done:  # else it is no longer part of the answer
            self.failed = True
            with suppress(MalformedError):  # it is nested too deeply to be encoded
                self.error = bytes(_raw({"error": error}))


def _read(decoder: msgspec.json.Decoder[T], data: bytes | msgspec.Raw) -> T | None:
    """Decode an event, or the response that it holds; None for JSON of another shape.

    Raises:
        MalformedError: it is not JSON.

    """
    try:
        return decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = parsed(bytes(data))
    if not isinstance(told, dict):
        return None
    known = {name: told[name] for name in decoder.type.__struct_fields__ if name in told}
    return decoder.type(**known | {name: _raw(known[name]) for name in _UNREAD if name in known})


def _raw(told: object) -> msgspec.Raw:
    try:
        return msgspec.Raw(json.dumps(told).encode())
    except RecursionError:
        raise MalformedError from None


def _is_end(data: bytes) -> bool:
    try:
        event = _read(_event, data)
    except MalformedError:
        return is_done(data)
    return event is not None and event.kind in _ENDS
