"""Server-sent events, cut out of the bytes as they pass, so that the bytes out are the bytes in.

The grammar is the WHATWG HTML standard's, 9.2.6: an event ends at an empty line; a line ends at CR, LF or CRLF; the
stream may open with a byte order mark; a line that starts with a colon is a comment; the `data` fields of an event are
joined with line feeds. Chunks may be cut anywhere, in a CRLF or in a character too. The LF of a CRLF that was cut is
counted to the event that follows: an empty line more is nothing there.
"""

import re
from typing import Final, NamedTuple

_BOM: Final = b"\xef\xbb\xbf"
_LINE_END: Final = re.compile(rb"\r\n|\n|\r")
_END: Final = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n|\n|\r)")
_PLAIN_END: Final = b"\n\n"
_LONGEST_END: Final = 4
_FIELD: Final = b"data:"


class Event(NamedTuple):
    """One event: its `raw` bytes with the empty line that ends it, and its `data`, None where it has none."""

    raw: bytes
    data: bytes | None


class EventScanner:
    """Cuts a stream of bytes into events. Mutable: what has come of the event that has not ended."""

    def __init__(self) -> None:
        """Start at the stream's first byte."""
        self._part = bytearray()
        self._begun = False

    @property
    def waiting(self) -> int:
        """How many bytes have come since the last event ended."""
        return len(self._part)

    def feed(self, chunk: bytes) -> list[Event]:
        """Take the next bytes, give the events that they complete; the work is linear in the bytes."""
        if self._begun and not self._part and _is_one(chunk):
            return [Event(chunk, chunk[6:-2])]
        if not self._part and chunk.endswith(_PLAIN_END) and b"\r" not in chunk:
            return [self._event(raw + _PLAIN_END) for raw in chunk[:-2].split(_PLAIN_END)]
        searched = max(0, len(self._part) - _LONGEST_END)
        self._part += chunk
        events: list[Event] = []
        start = 0
        for end in _END.finditer(self._part, searched):
            events.append(self._event(bytes(self._part[start : end.end()])))
            start = end.end()
        del self._part[:start]
        return events

    def rest(self) -> Event:
        """Give what has come of the event that has not ended, as if it had; nothing is left then."""
        raw = bytes(self._part)
        self._part.clear()
        return self._event(raw)

    def _event(self, raw: bytes) -> Event:
        text = raw
        if not self._begun:
            self._begun = True
            text = raw.removeprefix(_BOM)
        if text.startswith(_FIELD) and text.endswith(_PLAIN_END) and b"\r" not in text and text.count(b"\n") == 2:  # noqa: PLR2004 - those at its end
            return Event(raw, text[5:-2].removeprefix(b" "))
        return Event(raw, _data(text))


def _is_one(chunk: bytes) -> bool:
    """Tell whether bytes are one event of one line, as nearly all are: `data: ...` and the empty line."""
    return (
        chunk.startswith(b"data: ") and chunk.endswith(_PLAIN_END) and chunk.count(b"\n") == 2 and b"\r" not in chunk  # noqa: PLR2004 - those at its end
    )


def _data(text: bytes) -> bytes | None:
    values: list[bytes] = []
    for line in _LINE_END.split(text):
        name, _, value = line.partition(b":")
        if name == b"data":
            values.append(value.removeprefix(b" "))
    return b"\n".join(values) if values else None
