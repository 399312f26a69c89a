"""Server-sent events, cut out of the bytes as they pass, so that the bytes out are the bytes in.

The grammar is the WHATWG HTML standard's, 9.2.6: an event ends at an empty line; a line ends at CR, LF or CRLF; the
stream may begin with a byte order mark; a line that starts with a colon is a comment; the `data` fields of an event are
joined with line feeds. Chunks may be cut anywhere, even inside a CRLF or a character. The LF of a CRLF that was cut
counts as part of the next event, where one more empty line has no effect.
"""

import re
from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"
_DATA: Final = re.compile(rb"data(?<![^\r\n]data)(?:: ?([^\r\n]*)|(?=[\r\n]|\Z))")
"""A field called `data`, at the beginning of a line, and its value."""
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_PLAIN_END: Final = b"\n\n"
_LONGEST_END: Final = 4
_CR: Final = 13  # as a number: searching for it is eight times as fast
_LF: Final = b"\n"
_FIELD: Final = b"data:"


class Event(NamedTuple):
    """One event: its `raw` bytes with the empty line that ends it, and its `data`, None if it has none."""

    raw: bytes
    data: bytes | None


class EventScanner:
    """Cuts a stream of bytes into events.

    Mutable: what has come of the event that has not ended, `waiting` bytes; and whether the first one has been read.
    """

    __slots__ = ("_begun", "_part", "waiting")

    def __init__(self) -> None:
        """Start at the stream's first byte."""
        self.waiting = 0
        self._part = bytearray()
        self._begun = False

    def cut(self, chunk: bytes) -> list[bytes]:
        """Take the next bytes; return those of the events that they complete. The work is linear in the bytes.

        `data` must be called for the first event, and may be for others. The chunk itself is returned only if it is one
        event of one line, whose data is `after_field`.
        """
        if not self.waiting and chunk[-2:] == _PLAIN_END and _CR not in chunk:
            if self._begun and is_one_line(chunk):
                return [chunk]
            return [raw + _PLAIN_END for raw in chunk[:-2].split(_PLAIN_END)]
        part = self._part
        searched = max(0, len(part) - _LONGEST_END)
        part += chunk
        events: list[bytes] = []
        start = 0
        for end in _END.finditer(part, searched):
            events.append(bytes(part[start : end.end()]))
            start = end.end()
        del part[:start]
        self.waiting = len(part)
        return events

    def rest(self) -> Event:
        """Return what has come of the event that has not ended, as if it had; nothing is left then."""
        raw = bytes(self._part)
        self._part.clear()
        self.waiting = 0
        return Event(raw, self.data(raw))

    def data(self, raw: bytes) -> bytes | None:
        """Return the data of an event that was cut out, None if it has none."""
        text = raw
        if not self._begun:
            self._begun = True
            text = raw.removeprefix(_BOM)
        if is_one_line(text):
            return after_field(text)
        return _data(text)


def is_one_line(event: bytes) -> bool:
    """Return whether an event has one line, as nearly all do: `data: ...` and the empty line."""
    return event[:5] == _FIELD and event[-2:] == _PLAIN_END and event.find(_LF) == len(event) - 2 and _CR not in event


def after_field(event: bytes) -> bytes:
    """Return the data of an event of one line."""
    return event[5:-2].removeprefix(b" ")


def _data(text: bytes) -> bytes | None:
    values = _DATA.findall(text)
    return b"\n".join(values) if values else None
