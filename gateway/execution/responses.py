"""An event stream of `/v1/responses` on its way to a client: what of the upstream's bytes may pass, and what they tell.

https://platform.openai.com/docs/api-reference/responses-streaming. Each event names its `type`, and one of three ends
the answer. Left out are events that are no JSON, and an upstream's error: it is a break, and what is told of that is
the executor's to say. All else passes in the upstream's own bytes, event by event.

Such a stream is not carried on elsewhere: the ids of its items, and what a tool did, are those of one box.
"""

import json
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from gateway.execution.chunks import MalformedError, is_done, parsed
from gateway.execution.outcome import Usage
from gateway.execution.sse import EventScanner
from gateway.execution.usage import usage_of

_LONGEST: Final = 32 << 20
"""Bytes of an event: it may hold the request's instructions and tools, and the whole answer."""
_TOO_LONG: Final = b'{"error": {"message": "an event is longer than 32 MiB"}}'
_ANNOUNCING: Final = frozenset(
    {
        "response.created",
        "response.queued",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.reasoning_summary_part.added",
    }
)
"""What says that something is to come, and nothing of it."""
_ENDS: Final = frozenset({"response.completed", "response.incomplete", "response.cancelled"})
_FAILED: Final = "response.failed"
_ERROR: Final = "error"
_NOTHING: Final = b""


class _Event(msgspec.Struct, gc=False):
    type: object = None
    sequence_number: object = None
    error: object = None
    code: object = None
    message: object = None
    response: object = None

    @property
    def kind(self) -> str:
        """Its type, where that is one."""
        return self.type if isinstance(self.type, str) else ""

    @property
    def failure(self) -> object:
        """The error that it tells of: in an `error` of its own, as the event itself, or as the response's."""
        if self.error is not None:
            return self.error
        if self.kind == _ERROR:
            return {"code": self.code, "message": self.message}
        if self.kind == _FAILED:
            return self.of_response("error") or {"code": _FAILED}
        return None

    @property
    def is_end(self) -> bool:
        """Whether it ends the answer."""
        return self.kind in _ENDS

    def of_response(self, name: str) -> object:
        """Give a field of the response that it shows."""
        return self.response.get(name) if isinstance(self.response, dict) else None


_NAMES: Final = _Event.__struct_fields__
_event: Final = msgspec.json.Decoder(_Event)


class ResponseStream:
    """One client's stream of events.

    Mutable: `done` (what ends it came), `failed` (an error came: `error`), `size` (bytes passed), `first_content` (when
    it came), `malformed` (events left out), the tokens that were told, and the last event's number.
    """

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
        self.error = _NOTHING
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
        """Whether it may end here, if nothing else is to come."""
        return self.done

    @property
    def truncated(self) -> bool:
        """Whether an end here would hide a loss."""
        return not (self.done or self.failed)

    @property
    def usage(self) -> Usage | None:
        """The tokens that the answer told of."""
        return usage_of(self._counts)

    @property
    def lost(self) -> None:
        """There is no second stream that anything is lost by."""

    @property
    def known(self) -> None:
        """There is nothing that may pass without being read."""

    def took(self, events: int, size: int) -> None:
        """Note what has passed without being read: nothing does."""

    def repeated(self, _: bytes) -> int:
        """Take no chunk without reading it."""
        return 0

    def feed(self, chunk: bytes) -> tuple[bytes, bool]:
        """Take the next bytes; give what may go to the client, and whether content came."""
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
        """Note that the stream is over; its last event counts without an empty line, if it is what ends the answer."""
        raw, data = self._scanner.rest()
        if data is None or self.done or self.failed or not _is_end(data):
            return _NOTHING
        return self._sent(self._take(raw, data)[0])

    def last_words(self, error: Mapping[str, object]) -> bytes:
        """Give an event to say last: OpenAI's, and with the `error` that its clients raise."""
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
            event = _read(data)
        except MalformedError:
            self.malformed += 1
            return _NOTHING, False
        if event is None:
            return raw, True
        if (failure := event.failure) is not None:
            self._fails(json.dumps({"error": failure}).encode())
            return _NOTHING, False
        if isinstance(event.sequence_number, int):
            self._number = event.sequence_number
        if event.is_end:
            self.done = True
            self._counts = msgspec.Raw(json.dumps(event.of_response("usage")).encode())
        return raw, event.kind not in _ANNOUNCING

    def _fails(self, error: bytes) -> None:
        if not self.done:  # else it is none of the answer's any more
            self.failed = True
            self.error = error


def _read(data: bytes) -> _Event | None:
    """Decode an event; None for JSON of another shape.

    Raises:
        MalformedError: it is no JSON.

    """
    try:
        return _event.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        told = parsed(data)
    return _Event(**{name: told[name] for name in _NAMES if name in told}) if isinstance(told, dict) else None


def _is_end(data: bytes) -> bool:
    try:
        event = None if is_done(data) else _read(data)
    except MalformedError:
        return False
    return is_done(data) or (event is not None and event.is_end)
