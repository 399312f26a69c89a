"""Renders a record as one line of JSON without secrets; runs in the sink's writer thread.

msgspec encodes, because it takes a tenth of the time of structlog's JSONRenderer (which is `json.dumps`) and the writer
shares the interpreter with the event loop. msgspec alone would reveal too much: it writes out dataclasses and bytes. So
a record is first made plain: strings, numbers, lists, sets and mappings stay, tracebacks become text, anything else
becomes the name of its type. A `request` record, the most frequent kind, has a line of known types (`observe.request`).

A batch is encoded in one go, and searched for secrets in one go. Only if it contains one, or cannot be encoded as
ASCII, are its records rendered one by one.

Lines are ASCII: clients choose the text of some fields, and terminals obey control characters beyond ASCII.

Secrets are searched for in the encoded line, where nothing can hide them, and masked in the record's strings, where a
mask cannot break the JSON. The field names of a record are the program's own and are not masked.
"""

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from math import isfinite
from traceback import StackSummary, TracebackException
from urllib.parse import quote

import msgspec

from gateway.observe.request import Ended, request_line

MASK = "***"
SHORTEST_SECRET = 8

_AS_IT_IS = frozenset({str, int, bool, type(None)})
_MAPPINGS = (dict, Mapping)
_TRACES = (TracebackException, StackSummary)
_SEQUENCES = (list, tuple)
_MILLION = 1_000_000
_THOUSANDTHS = tuple(f".{number:03}Z" for number in range(1000))
_encode = msgspec.json.Encoder().encode
_encode_lines = msgspec.json.Encoder().encode_lines

Record = dict[str, object] | Ended
"""A record's fields, in the order of its line; or a request that ended."""


@dataclass(frozen=True, slots=True, repr=False)
class Secrets:
    """Known secrets in all their spellings: `forms` inside a text, `marks` inside an encoded line."""

    forms: tuple[str, ...] = ()
    marks: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, values: Iterable[str]) -> "Secrets":
        """Spell every value of at least `SHORTEST_SECRET` characters: as it is, as in a `repr`, as in a URL.

        A `repr` spells an apostrophe in two ways, depending on whether the rest of its text has double quotes.
        Longer forms come first, so that a secret that contains another is masked whole.
        """
        known = [value for value in values if len(value) >= SHORTEST_SECRET]
        spelled = {
            form
            for value in known
            for form in (value, repr(value)[1:-1], repr(f'{value}"')[1:-2], quote(value, safe=""))
        }
        forms = tuple(sorted(spelled, key=lambda form: (-len(form), form)))
        return cls(forms, tuple(json.dumps(form)[1:-1].encode() for form in forms))

    def within(self, line: bytes) -> bool:
        """Return whether an encoded line contains one of them."""
        return any(mark in line for mark in self.marks)

    def redact(self, text: str) -> str:
        """Return `text` with each of them masked."""
        for form in self.forms:
            text = text.replace(form, MASK)
        return text


def render_all(records: Iterable[Record], secrets: Secrets) -> bytes:
    """Return records as JSON lines, as `render` does. Never raises."""
    records = tuple(records)
    try:
        lines = _encode_lines([_fields(record) for record in records])
        if lines.isascii() and not secrets.within(lines):
            return lines
    except Exception:  # noqa: BLE001, S110 - as below, where it is reported
        pass
    return b"".join(render(record, secrets) for record in records)


def render(record: Mapping[str, object] | Ended, secrets: Secrets) -> bytes:
    """Return `record` as one JSON line, newline included. Never raises.

    A float under `time` is seconds since the epoch and is written as RFC 3339 in UTC with milliseconds.
    """
    try:
        fields = _fields(record)
        if isinstance(fields, msgspec.Struct):
            fields = msgspec.to_builtins(fields)
        line = _line(fields)
        return _line(_masked(fields, secrets)) if secrets.within(line) else line
    except Exception as error:  # noqa: BLE001 - a record may hold any object, and its mappings may raise anything
        return _unrendered("request" if isinstance(record, Ended) else record.get("event"), error, secrets)


def rfc3339(when: float) -> str:
    """Return seconds since the epoch as `2026-01-31T12:00:00.000Z`."""
    second, microsecond = divmod(round(when * _MILLION), _MILLION)
    return _whole(second) + _THOUSANDTHS[microsecond // 1000]


@lru_cache(maxsize=8)
def _whole(second: int) -> str:
    """Write a whole second; cached, because many records fall into the same one."""
    return datetime.fromtimestamp(second, UTC).isoformat(timespec="seconds").removesuffix("+00:00")


def _fields(record: Mapping[str, object] | Ended) -> msgspec.Struct | dict[str, object]:
    """Make a record plain, in the order of its line."""
    if isinstance(record, Ended):
        return request_line(record, rfc3339(record.at))
    fields = {name: _plain(value) for name, value in record.items()}
    if isinstance(when := fields.get("time"), float):
        fields["time"] = rfc3339(when)
    return fields


def _unrendered(event: object, error: Exception, secrets: Secrets) -> bytes:
    lead = {"time": rfc3339(time.time()), "level": "error", "event": "log.unrendered"}
    return _line(lead | {"record": secrets.redact(str(_leaf(event))), "error": type(error).__name__})


def _line(fields: Mapping[str, object]) -> bytes:
    try:
        line = _encode(fields)
    except UnicodeEncodeError:  # a lone surrogate
        line = b"\xff"
    if not line.isascii():
        line = json.dumps(fields, separators=(",", ":")).encode()
    return line + b"\n"


def _plain(value: object) -> object:
    if type(value) in _AS_IT_IS:
        return value
    if isinstance(value, float):
        return float(value) if isfinite(value) else None
    if isinstance(value, _MAPPINGS):
        return {str(_plain(key)): _plain(held) for key, held in value.items()}
    if isinstance(value, _TRACES):
        return "".join(value.format())
    if isinstance(value, _SEQUENCES):
        return [_plain(held) for held in value]
    return _leaf(value)


def _leaf(value: object) -> object:
    match value:
        case str():
            return str.__str__(value)
        case int():
            return int(value)
        case set() | frozenset():
            return sorted((_plain(held) for held in value), key=str)
        case _:
            return f"<{type(value).__name__}>"


def _masked(fields: Mapping[str, object], secrets: Secrets) -> dict[str, object]:
    def mask(value: object) -> object:
        if isinstance(value, str):
            return secrets.redact(value)
        if isinstance(value, dict):
            return {secrets.redact(key): mask(held) for key, held in value.items()}
        return [mask(held) for held in value] if isinstance(value, list) else value

    return {name: mask(value) for name, value in fields.items()}
