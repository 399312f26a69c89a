"""Builds the bytes of answers."""

import json
from collections.abc import Iterable
from http import HTTPStatus


def status(code: int, reason: str, body: bytes = b"", headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build an answer with a Content-Length."""
    return _whole(code, reason, body, headers)


def json_answer(obj: object, status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build a JSON answer with a Content-Length."""
    fields = (("content-type", "application/json"), *headers)
    return _whole(status, HTTPStatus(status).phrase, json.dumps(obj).encode(), fields)


def sse_head(status: int = 200, headers: Iterable[tuple[str, str]] = ()) -> bytes:
    """Build the head of a chunked event stream."""
    fields = (("content-type", "text/event-stream"), *headers, ("transfer-encoding", "chunked"))
    return _head(status, HTTPStatus(status).phrase, fields)


def sse_answer(*events: str) -> bytes:
    """Build a whole event stream, one chunk an event."""
    return sse_head() + b"".join(chunk(sse(event)) for event in events) + last_chunk()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def last_chunk() -> bytes:
    return b"0\r\n\r\n"


def sse(data: str) -> bytes:
    """Build one event, not framed."""
    return b"".join(b"data: %b\n" % line.encode() for line in data.split("\n")) + b"\n"


def _head(code: int, reason: str, fields: Iterable[tuple[str, str]]) -> bytes:
    lines = [f"HTTP/1.1 {code} {reason}", *(f"{name}: {value}" for name, value in fields)]
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"


def _whole(code: int, reason: str, body: bytes, fields: Iterable[tuple[str, str]]) -> bytes:
    return _head(code, reason, (*fields, ("content-length", str(len(body))))) + body
